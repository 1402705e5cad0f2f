"""An LC-Net as ONNX files: pieces, scores and blocks, and a short loop that runs what is kept in ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces import SubnetSearchError
from subnet_search.dynamic.bottlenecks import bottlenecks, parts_between
from subnet_search.dynamic.layer_channel import LayerChannelNet
from subnet_search.dynamic.scored_blocks import ScoredBlock
from subnet_search.dynamic.staged import Stage, Told
from subnet_search.elastic.layers import ElasticLayer
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.exporting import export
from subnet_search.record.atomic import telling_what_failed, write_whole

INDEX, LOOP = "layers.json", "run_layers.py"
MOST_VARIANTS = 4
ALL = "all"

RUN_LAYERS = '''"""Runs a network that decides for each image which blocks run. Needs numpy and onnxruntime.

    net = Layers("FOLDER OF THIS FILE")
    logits, kept = net(image)    # float32 [1, C, H, W]; kept: for each block None, or which parts of its channels ran

Pieces run one after the other, "steps" in layers.json. Before the first block "layers.onnx" scores all of them. A block
whose score is not above the threshold is left out: what came in goes on. Else "scores_N.onnx", if there is one, scores
the parts of its channels; those above the threshold run, and of every group at least the best one. There is a file for
patterns of parts that were seen often ("block_N_0110.onnx"), which computes these alone. Any other pattern runs all
channels ("block_N_all.onnx"), those that are not kept multiplied by zero, which gives the same answer.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime


class Layers:
    def __init__(self, folder, threshold=None, threads=1):
        self.folder = Path(folder)
        self.index = json.loads((self.folder / "layers.json").read_text("utf-8"))
        self.threshold = self.index["threshold"] if threshold is None else threshold
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {
            name: onnxruntime.InferenceSession(
                str(self.folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in self.index["files"]
        }

    def __call__(self, image):
        value, layers, kept = image, None, []
        for step in self.index["steps"]:
            if isinstance(step, str):
                value = self._run(step, value)
                continue
            if layers is None:
                layers = self._run("layers", value)
            number, groups = step["block"], step["groups"]
            if layers[0, number] <= self.threshold:
                kept.append(None)
                continue
            score, name, given = layers[:, number : number + 1], "all", ()
            if groups:
                parts = self._run(f"scores_{number}", value)
                chosen = self._chosen(parts[0], groups)
                name = "".join("01"[int(bit)] for bit in chosen)
                kept.append(name)
                name = name if f"block_{number}_{name}" in self.sessions else "all"
                given = ((parts * chosen).astype(np.float32),)
            else:
                kept.append("")
            value = self._run(f"block_{number}_{name}", value, score, *given)
        return value, tuple(kept)

    def _chosen(self, parts, groups):
        chosen, begin = parts > self.threshold, 0
        for size in groups:
            chosen[begin + int(parts[begin : begin + size].argmax())] = True
            begin += size
        return chosen

    def _run(self, name, *values):
        session = self.sessions[name]
        names = [one.name for one in session.get_inputs()]
        return session.run(None, dict(zip(names, values)))[0]
'''


class _Block(nn.Module):
    """What a kept block adds, with the parts of its channels that it keeps now."""

    def __init__(self, block: ScoredBlock, pattern: Tensor | None, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.block, self.columns, self.used = block, block.columns(pattern), nn.ModuleList(layers)

    def forward(self, x: Tensor, score: Tensor, factors: Tensor | None = None) -> Tensor:
        """Of x `[B, ...]`, the block's score `[B, 1]` and those of its parts, 0 where not kept, `[B, parts]`."""
        if factors is not None:
            self.block.scale_by(factors, self.columns)
        out: Tensor = x + score.reshape(-1, *[1] * (x.ndim - 1)) * (self.block.block(x) - x)
        self.block.decisions.scales.clear()
        return out


class _Piece(nn.Module):
    """One stage of a graph that every image runs."""

    def __init__(self, stage: Stage, told: Told) -> None:
        super().__init__()
        self.stage, self.told = stage, told
        self.used = nn.ModuleList(told.model.get_submodule(path) for path in stage.paths)

    def forward(self, x: Tensor) -> Any:
        """One tensor in, one out."""
        return self.stage.function(self.told, x.shape[0], x.device, x)[0]


def export_layers(
    net: LayerChannelNet,
    images: Sequence[Tensor],
    folder: str | Path,
    threshold: float | None = None,
    variants: int = MOST_VARIANTS,
) -> list[Path]:
    """Writes pieces, scores and blocks as `.onnx`, `layers.json` and `run_layers.py`; each file is checked.

    Args:
        net: on the CPU.
        images: batches on which is counted which parts of channels are kept together.
        folder: made if missing.
        threshold: by default the net's own; another one works with the same files.
        variants: of each block, that run fewer channels: those that images take most often.

    Returns:
        The files.

    Raises:
        InvalidInput: onnx, onnxscript or onnxruntime is not installed.
        SubnetSearchError: the network has no such pieces, as something leads past its blocks; or a piece cannot be
            expressed, or answers differently in the runtime.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    net.eval()
    own, net.threshold = net.threshold, net.threshold if threshold is None else threshold
    try:
        steps = _steps(net, images[0][:1])
        seen = _patterns(net, images, variants)
        written = _write(net, steps, seen, images[0][:1], folder)
    finally:
        net.threshold = own
    index = {
        "files": [path.stem for path in written],
        "steps": [step if isinstance(step, str) else _told(step) for step, _ in steps],
        "threshold": own if threshold is None else threshold,
        "input": list(images[0].shape[1:]),
        "blocks": [block.path for block in net.blocks],
    }
    for name, text in ((INDEX, json.dumps(index, indent=1) + "\n"), (LOOP, RUN_LAYERS)):
        with telling_what_failed(folder / name):
            write_whole(folder / name, text.encode())
        written.append(folder / name)
    return written


def check_pieces(net: LayerChannelNet, image: Tensor) -> None:
    """Raises `SubnetSearchError` where the network cannot be written in pieces; no file is written.

    Args:
        net: not yet trained, on the device of the image.
        image: one, `[1, ...]`.
    """
    net.eval()
    _steps(net, image)


Steps = Sequence[tuple[str | ScoredBlock, nn.Module | None]]


def _told(block: ScoredBlock) -> dict[str, Any]:
    return {"block": block.number, "groups": [group.parts for group in block.groups]}


@torch.no_grad()
def _write(
    net: LayerChannelNet, steps: Steps, seen: Mapping[int, Sequence[Tensor]], image: Tensor, folder: Path
) -> list[Path]:
    value, written, scored = image, [], False
    for step, piece in steps:
        if isinstance(step, str):
            assert piece is not None
            written.append(_export(piece, value, folder / f"{step}.onnx"))
            value = piece(value)
            continue
        if not scored:
            written.append(_export(net.layers, value, folder / "layers.onnx"))
            scored = True
        given: tuple[Tensor, ...] = (value, torch.ones(1, 1))
        if step.channels is not None:
            written.append(_export(step.channels, value, folder / f"scores_{step.number}.onnx"))
            given = (*given, step.channels(value))
        for pattern in (None, *seen.get(step.number, ())):
            name = ALL if pattern is None else "".join(str(int(bit)) for bit in pattern)
            step.use_parts(pattern)
            try:
                part = _Block(step, pattern, [layer for _, layer in step.layers()])
                tried = given if pattern is None else (*given[:2], given[2] * pattern)
                written.append(_export(part, tried, folder / f"block_{step.number}_{name}.onnx"))
            finally:
                step.use_parts(None)
    return written


@torch.no_grad()
def _patterns(net: LayerChannelNet, images: Sequence[Tensor], most: int) -> dict[int, list[Tensor]]:
    """For each block the parts that were most often kept together, where that is not all of them."""
    found: dict[int, Counter[tuple[bool, ...]]] = {block.number: Counter() for block in net.blocks}

    def note(block: ScoredBlock, _: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        if block.channels is not None and block.decisions.layers is not None:
            rows = block.decisions.layers[:, block.number] > block.decisions.threshold
            patterns = block.pattern_of(block.channels(args[0][rows]))
            found[block.number].update(tuple(row) for row in patterns.tolist() if not all(row))

    hooks = [block.register_forward_hook(partial(note, block)) for block in net.blocks]
    try:
        for batch in images:
            net(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        number: [torch.tensor(pattern) for pattern, _ in counter.most_common(most)]
        for number, counter in found.items()
    }


def _steps(net: LayerChannelNet, image: Tensor) -> Steps:
    steps = _of_classes(net, image) if net.graph is None else _of_graph(net, image)
    with torch.no_grad():
        wanted, value = net.decide(image, sliced=False), image
        for step, piece in steps:
            value = step(value) if isinstance(step, ScoredBlock) else piece(value)  # type: ignore[misc]
    if not torch.allclose(value, wanted, rtol=1e-4, atol=1e-4):
        raise SubnetSearchError(f"the pieces of this network answer differently from it; {WAY_OUT}")
    return steps


WAY_OUT = 'leave "onnx" out of [export] formats'


def _past() -> SubnetSearchError:
    return SubnetSearchError(
        "this network cannot be written in pieces between its blocks: something leads past them that later layers "
        f"need; {WAY_OUT}"
    )


def _of_graph(net: LayerChannelNet, image: Tensor) -> Steps:
    """The stages of a graph; each reads what came out of the one before."""
    graph = net.graph
    assert graph is not None
    with torch.no_grad():
        net.decide(image, sliced=False)  # so that blocks know what they read beside their input
    told, before, number = graph.told, graph.program.form.program.inputs, 0
    steps: list[Any] = []
    assert told is not None
    for place, stage in enumerate(graph.program.stages):
        if stage.block is not None:
            reads = stage.inputs[:1]
            steps.append((net.blocks[number], None))
            number += 1
        else:
            reads = stage.inputs
            steps.append((f"piece_{place}", _Piece(stage, told)))
        if tuple(reads) != tuple(before) or len(stage.outputs) != 1:
            raise _past()
        before = stage.outputs
    if tuple(before) != tuple(graph.program.form.program.answer_uses):
        raise _past()
    return steps


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = isinstance(m, ScoredBlock | ElasticLayer | PaddedShortcut)
        return leaves or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Notes the shape of every value."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = value.shape if isinstance(value, Tensor) else None
        return value


def _of_classes(net: LayerChannelNet, image: Tensor) -> Steps:
    """The trace of a network of its own classes, cut before and after each block."""
    try:
        graph = _Tracer().trace(net.model)
    except Exception as error:  # the user's forward, in one of many ways
        raise SubnetSearchError(f"{type(net.model).__name__} cannot be traced: {error}; {WAY_OUT}") from error
    with torch.no_grad():
        net.decide(image, sliced=False)
        _Shapes(fx.GraphModule(net.model, graph)).run(image)
    by_path = {block.path: block for block in net.blocks}
    calls = [node for node in graph.nodes if node.op == "call_module" and str(node.target) in by_path]
    ends = dict.fromkeys(end for node in calls for end in (node.args[0], node))
    cuts = [node for node in ends if isinstance(node, fx.Node) and node.op != "placeholder"]
    last = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    cuts = [node for node in cuts if node is not last]
    if not set(cuts) <= bottlenecks(graph):
        raise _past()
    steps: list[Any] = []
    for place, (end, piece) in enumerate(
        zip((*cuts, last), parts_between(net.model, graph, cuts), strict=True)
    ):
        own = end in calls if isinstance(end, fx.Node) else False
        steps.append((by_path[str(end.target)], None) if own else (f"piece_{place}", piece))
    return steps


def _export(part: nn.Module, given: Tensor | tuple[Tensor, ...], path: Path) -> Path:
    with (
        torch.no_grad(),
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory(dir=path.parent) as scratch,
    ):
        warnings.simplefilter("ignore", UserWarning)  # the exporter's, of names of axes
        detached: Any = given.detach() if isinstance(given, Tensor) else tuple(t.detach() for t in given)
        export(part, detached, scratch, ["onnx"])
        return (Path(scratch) / "net.onnx").replace(path)
