"""A dynamic net as ONNX files, one for each part and gate, and a short loop that runs them in ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from search_spaces import SubnetSearchError
from subnet_search.dynamic.building import features_of
from subnet_search.dynamic.gates import DoubleHeadedGate
from subnet_search.dynamic.slimming import SlimmingNet, name_of
from subnet_search.elastic.image_size import as_taken
from subnet_search.exporting import export
from subnet_search.record.atomic import telling_what_failed, write_whole

INDEX, LOOP = "ways.json", "run_ways.py"

RUN_WAYS = '''"""Runs a network that decides for each image how much of it to compute. Needs numpy and onnxruntime.

    net = Ways("FOLDER OF THIS FILE")
    logits, way = net(image)    # float32 [1, C, H, W]; way: the decisions that were made

A part takes one tensor and gives one. "head.onnx" comes first. After it, and after a part named by the decisions made
so far ("1.onnx", "1_0.onnx"), the gate of that name ("gate_head.onnx", "gate_1.onnx") reads the features; it gives a
score for each choice and the features as the next part wants them. The choice is argmax(score - price * cost), and the
part of that name runs. Where there is no further gate, what came out is logits. Only the parts on the way run.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime


class Ways:
    def __init__(self, folder, price=None, threads=1):
        self.folder = Path(folder)
        self.index = json.loads((self.folder / "ways.json").read_text("utf-8"))
        self.price = self.index["price"] if price is None else price
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {
            name: onnxruntime.InferenceSession(
                str(self.folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in self.index["files"]
        }

    def __call__(self, image):
        way = []
        value = self._run("head", image)[0]
        while (gate := "gate_" + self._name(way)) in self.sessions:
            scores, value = self._run(gate, value)
            costs = np.array(self.index["costs"][self._name(way)], dtype=np.float32)
            way.append(int((scores[0] - self.price * costs).argmax()))
            value = self._run(self._name(way), value)[0]
        return value, tuple(way)

    def _name(self, way):
        return "_".join(map(str, way)) or "head"

    def _run(self, name, value):
        session = self.sessions[name]
        return session.run(None, {session.get_inputs()[0].name: value})
'''


class _Whole(nn.Module):
    """A gate whose features always come out as a tensor of their own."""

    def __init__(self, gate: DoubleHeadedGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and features."""
        scores, weighed = self.gate(features)
        return scores, weighed * 1.0


def export_ways(net: SlimmingNet, example: Tensor, folder: str | Path) -> list[Path]:
    """Writes `<part>.onnx`, `gate_<part>.onnx`, `ways.json` and `run_ways.py`; each network is checked in the runtime.

    The price in `ways.json` is the net's own; another operating point of the same net is another price.

    Args:
        net: on the CPU.
        example: an image `[1, ...]`.
        folder: made if missing.

    Returns:
        The files.

    Raises:
        InvalidInput: onnx, onnxscript or onnxruntime is not installed.
        SubnetSearchError: a part cannot be expressed, or answers differently in the runtime.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    by_prefix = {(): net.parts["head"]} | {
        leaf[:depth]: net.parts[name_of(leaf[:depth])]
        for leaf in net.leaves
        for depth in range(1, len(leaf) + 1)
    }
    features = features_of(by_prefix, as_taken(net, example[:1]), net)
    written = []
    for prefix, part in by_prefix.items():
        given = features[prefix[:-1]] if prefix else as_taken(net, example[:1])
        written.append(_export(part, given, folder / f"{name_of(prefix)}.onnx"))
    for prefix in net.prefixes():
        gate = _Whole(net.gate(prefix)).eval()
        written.append(_export(gate, features[prefix], folder / f"gate_{name_of(prefix)}.onnx"))
    prices = {float(net.gate(prefix).price) for prefix in net.prefixes()}
    if len(prices) != 1:
        raise SubnetSearchError(
            f"all gates of a net decide at one price, got {sorted(prices)}; use set_price"
        )
    index = {
        "files": [path.stem for path in written],
        "costs": {name_of(prefix): net.gate(prefix).cost.tolist() for prefix in net.prefixes()},
        "price": prices.pop(),
        "macs": {name_of(leaf): macs for leaf, macs in zip(net.leaves, net.macs, strict=True)},
        "input": list(as_taken(net, example[:1]).shape[1:]),
    }
    for name, text in ((INDEX, json.dumps(index, indent=1) + "\n"), (LOOP, RUN_WAYS)):
        with telling_what_failed(folder / name):
            write_whole(folder / name, text.encode())
        written.append(folder / name)
    return written


def _export(part: nn.Module, given: Tensor, path: Path) -> Path:
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        export(part, given.detach(), scratch, ["onnx"])
        return (Path(scratch) / "net.onnx").replace(path)
