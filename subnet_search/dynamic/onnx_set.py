"""Many sub-nets as ONNX files over one file of weights, and a controller that runs them in ONNX Runtime.

An ONNX tensor lies in one piece. A weight that keeps fewer outputs and all inputs is a shorter piece of the shared
one, at the same offset. One that keeps fewer inputs, too, is cut out of the whole one by a Slice, which the runtime
folds when it opens the file: on the disk such weights are there once, in memory each session has its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetSearchError
from search_spaces.files import config_to_json
from subnet_search.dynamic.control import ControlSettings
from subnet_search.dynamic.controller import QUICK, Rung, SwitchingNet, rungs_of
from subnet_search.dynamic.dynamic_files import Loaded, check_format, input_size, member_from
from subnet_search.dynamic.sharing import split_shared
from subnet_search.elastic.image_size import Size, as_taken
from subnet_search.measure.runtimes.onnx_files import open_session
from subnet_search.measure.timing import time_alone
from subnet_search.record.atomic import sha256_of, telling_what_failed, write_whole
from subnet_search.seeding import derive_seed

WEIGHTS, INDEX, ALIGNMENT, FORMAT = "weights.bin", "index.json", 64, 2
TOLERANCE = 1e-4  # relative to the largest output
CHECKED_BATCH = 3


@dataclass(frozen=True, slots=True)
class OnnxSizes:
    """Bytes of what was written: shared weights, all .onnx files; and of the weights of separate files."""

    shared: int
    own: int
    separate: int


def export_dynamic_onnx(loaded: Loaded, folder: str | Path) -> OnnxSizes:
    """Writes `weights.bin`, `<key>.onnx` for each sub-net and `index.json`; each is compared with its network.

    Args:
        loaded: from `load_dynamic`, on the CPU.
        folder: made if missing.

    Raises:
        InvalidInput: onnx, onnxscript or onnxruntime is not installed, or the network is not of single precision.
        SubnetSearchError: a sub-net cannot be expressed, or answers differently in the runtime.
    """
    onnx = _onnx()
    if loaded.example.dtype != torch.float32:
        raise InvalidInput(
            f"the ONNX form is of torch.float32, and the network of {loaded.example.dtype}; save it from "
            "supernet.float()"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in loaded.whole.items()}
    models = [_exported(net, loaded.example) for net in loaded.nets]
    found = [split_shared(_initial(onnx, model), whole)[0] for model in models]
    used = {name for shapes in found for name in shapes if whole[name].ndim > 0}
    places, content = _laid_out({name: tensor for name, tensor in whole.items() if name in used})
    own = separate = 0
    sums = {WEIGHTS: hashlib.sha256(content).hexdigest()}
    with telling_what_failed(folder):
        write_whole(folder / WEIGHTS, content)
        for member, model, shapes in zip(loaded.members, models, found, strict=True):
            separate += model.ByteSize()
            _share(
                onnx, model, {name: shape for name, shape in shapes.items() if name in used}, whole, places
            )
            data = model.SerializeToString(deterministic=True)
            own += len(data)
            write_whole(folder / f"{member.key}.onnx", data)
            sums[f"{member.key}.onnx"] = hashlib.sha256(data).hexdigest()
        told = [
            {
                "config": config_to_json(member.config),
                "macs": member.macs,
                "top1_percent": member.top1_percent,
                "input_px": getattr(net, "input_px", None),
            }
            for member, net in zip(loaded.members, loaded.nets, strict=True)
        ]
        about = {"format": FORMAT, "input": list(loaded.example.shape[1:]), "subnets": told, "sha256": sums}
        write_whole(folder / INDEX, (json.dumps(about, indent=1) + "\n").encode())
    _compare(loaded, folder)
    return OnnxSizes(len(content), own, separate)


def _onnx() -> ModuleType:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if missing:
        raise InvalidInput(
            f'the ONNX form needs {", ".join(missing)}, not installed here; pip install "subnet-search[onnx]"'
        )
    import onnx

    return onnx


def _exported(net: nn.Module, example: Tensor) -> Any:
    """The network as an ONNX message with every tensor under its own name; any batch size."""
    shown = as_taken(net, example.cpu()[:1].repeat(2, *[1] * (example.ndim - 1)))
    try:
        program = torch.onnx.export(
            net.cpu(),
            (shown,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
            optimize=False,  # it would fold batch norms into weights, which then are no longer shared
        )
        assert program is not None
        model = program.model_proto
    except Exception as error:  # exporters raise nearly anything
        raise SubnetSearchError(f"{type(net).__name__} cannot be written as ONNX: {error}") from error
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # where each operation stood in the user's files
    return model


def _initial(onnx: ModuleType, model: Any) -> dict[str, Tensor]:
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def _laid_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], bytes]:
    """The offsets of tensors in one file, and its content."""
    places, content = {}, bytearray()
    for name, tensor in tensors.items():
        content += bytes(-len(content) % ALIGNMENT)
        places[name] = len(content)
        content += tensor.numpy().tobytes()
    return places, bytes(content)


def _share(
    onnx: ModuleType,
    model: Any,
    shapes: Mapping[str, tuple[int, ...]],
    whole: Mapping[str, Tensor],
    places: Mapping[str, int],
) -> None:
    """Makes initial tensors point into the file of shared weights."""
    graph, slices = model.graph, []
    for tensor in list(graph.initializer):
        if tensor.name not in shapes:
            continue
        name, shape, there = tensor.name, shapes[tensor.name], whole[tensor.name]
        if shape[1:] == tuple(there.shape[1:]):
            _point(onnx, tensor, places[name], shape, there)
            continue
        tensor.name = f"{name}.whole"
        _point(onnx, tensor, places[name], tuple(there.shape), there)
        told = {f"{name}.starts": [0] * len(shape), f"{name}.ends": list(shape)}
        for given, values in told.items():
            graph.initializer.append(
                onnx.helper.make_tensor(given, onnx.TensorProto.INT64, [len(values)], values)
            )
        slices.append(onnx.helper.make_node("Slice", [tensor.name, *told], [name]))
    nodes = [*slices, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _point(onnx: ModuleType, tensor: Any, offset: int, shape: tuple[int, ...], whole: Tensor) -> None:
    length = whole.element_size() * int(torch.Size(shape).numel())
    kind, name = tensor.data_type, tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type, tensor.data_location = name, kind, onnx.TensorProto.EXTERNAL
    tensor.dims.extend(shape)
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _compare(loaded: Loaded, folder: Path) -> None:
    generator = torch.Generator().manual_seed(derive_seed(0, "onnx"))
    x = torch.randn(CHECKED_BATCH, *loaded.example.shape[1:], generator=generator)
    for member, net in zip(loaded.members, loaded.nets, strict=True):
        run = OnnxSession(folder / f"{member.key}.onnx", threads=1, input_px=getattr(net, "input_px", None))
        with torch.no_grad():
            wanted = net(as_taken(net, x))
        difference = float((run(x) - wanted).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            raise SubnetSearchError(
                f"sub-net {member.key} answers differently in ONNX Runtime, by {difference:.3g}; leave it out"
            )


class OnnxSession:
    """One file in ONNX Runtime on the CPU; a callable from a batch to an answer.

    Attributes:
        input_px: height and width that images are resized to, for a sub-net that takes smaller ones.
    """

    def __init__(self, path: Path, threads: int | None = None, input_px: Size | None = None) -> None:
        _onnx()
        self.input_px = input_px
        try:
            self._session = open_session(path, threads)
        except Exception as error:  # of many kinds
            raise InvalidInput(f"{path} cannot be opened: {error}; write the folder again") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: Tensor) -> Tensor:
        """Runs the file on a batch in fp32 on the CPU."""
        given = as_taken(self, x.detach().cpu())
        [answer] = self._session.run(None, {self._input: given.numpy()})
        return torch.from_numpy(answer)


class OnnxDynamicNet(SwitchingNet):
    """What `export_dynamic_onnx` wrote, behind the same controller as `DynamicNet`; runs on the CPU."""

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        latencies_ms: Sequence[float] | None = None,
        settings: ControlSettings | None = None,
    ) -> OnnxDynamicNet:
        """Opens a session for each sub-net.

        Args:
            folder: of `export_dynamic_onnx`.
            threads: of each session; by default the runtime's choice.
            latencies_ms: of each sub-net at rest, in the order of the index; measured here by default.
            settings: how the controller reacts.

        Raises:
            InvalidInput: a file is missing or damaged.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / INDEX).read_text("utf-8"))
            check_format(about, FORMAT)
            members = [member_from(told) for told in about["subnets"]]
            size, sizes_px = input_size(about), [_size_px(told["input_px"]) for told in about["subnets"]]
            for name, sum_ in about["sha256"].items():
                if (folder / name).exists() and sha256_of(folder / name) != sum_:
                    raise ValueError(f"{name} is not what was written")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(
                f"{folder} holds no ONNX files of a dynamic network: {error}; write it with export_dynamic_onnx"
            ) from error
        nets = [
            OnnxSession(folder / f"{member.key}.onnx", threads, size_px)
            for member, size_px in zip(members, sizes_px, strict=True)
        ]
        if latencies_ms is None:
            latencies_ms = list(_latencies(nets, torch.zeros(1, *size)))
        kept = rungs_of(members, latencies_ms)
        rungs = [Rung(members[place], float(latencies_ms[place])) for place in kept]
        return cls(rungs, [nets[place] for place in kept], size, settings)


def _size_px(told: Any) -> Size | None:
    if told is None:
        return None
    height, width = map(int, told)
    if min(height, width) < 1:
        raise ValueError(f"images of {height} x {width} pixels")
    return height, width


def _latencies(nets: Sequence[OnnxSession], example: Tensor) -> Iterator[float]:
    for place, net in enumerate(nets):
        yield time_alone(partial(net, example), np.random.default_rng(place), QUICK).median_ms
