"""ONNX files and ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from search_spaces import InvalidInput
from subnet_search.measure.runtimes.base import Arguments, Prepared, Runtime, in_this_process, tensors_of
from subnet_search.settings import DeviceSettings

ELEMENT_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
ATTENTION = (
    F.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)
ATTENTION_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
CALIBRATED_ON = 4  # inputs of noise: they set scales, which no time depends on


def write_onnx(net: nn.Module, arguments: Arguments, path: Path, dynamic_shapes: Any = None) -> None:
    """Writes a net in evaluation mode for arguments of these sizes, or of free ones as torch.onnx says."""
    args, kwargs = arguments
    with _AttentionInFourDimensions():
        program = torch.onnx.export(
            net, args, kwargs=kwargs, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False
        )
    assert program is not None
    program.save(str(path))


class _AttentionInFourDimensions(TorchFunctionMode):
    """Gives attention the four dimensions that torch's ONNX exporter wants: further ones join the batch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in ATTENTION:
            return func(*args, **kwargs)
        given = {**dict(zip(ATTENTION_ARGUMENTS, args, strict=False)), **kwargs}
        if given["query"].ndim == 4:
            return func(*args, **kwargs)
        query, key, mask = given["query"], given["key"], given.get("attn_mask")
        before = query.shape[:-3]
        if mask is not None:
            scores = (*query.shape[:-1], key.shape[-2])
            given["attn_mask"] = mask.expand(scores).reshape(-1, *scores[-3:])
        for name in ("query", "key", "value"):
            sizes = given[name].shape[-3:]
            given[name] = given[name].expand(*before, *sizes).reshape(-1, *sizes)
        found = func(**given)
        return found.reshape(*before, *found.shape[1:])


def open_session(path: Path, threads: int | None = None) -> Any:
    """An `InferenceSession` on the CPU with so many threads; none: as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: warnings go to the terminal otherwise
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def session_answers(session: Any) -> Callable[[Arguments], list[Tensor]]:
    """What a session answers to the tensors among arguments."""
    names = [value.name for value in session.get_inputs()]

    def answers(arguments: Arguments) -> list[Tensor]:
        arrays = [tensor.cpu().numpy() for tensor in tensors_of(arguments)]
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return answers


def prepare(net: nn.Module, arguments: Arguments, profile: DeviceSettings, folder: Path) -> Prepared:
    """The net as an ONNX file for these sizes; for int8 with weights and activations quantised on noise."""
    path = folder / "net.onnx"
    write_onnx(net, arguments, path)
    if profile.precision == "int8":
        path = _quantized(path)
    session = open_session(path, profile.threads or torch.get_num_threads())
    feed = dict(
        zip(
            [value.name for value in session.get_inputs()],
            [tensor.cpu().numpy() for tensor in tensors_of(arguments)],
            strict=True,
        )
    )
    return Prepared(in_this_process(lambda: session.run(None, feed)), session_answers(session), path)


def open_onnx(path: Path, profile: DeviceSettings) -> Prepared:
    """A file that was written elsewhere, with noise for its inputs."""
    session = open_session(path, profile.threads or torch.get_num_threads())
    feed = noise_for([(value.name, value.shape, value.type) for value in session.get_inputs()], profile)
    return Prepared(in_this_process(lambda: session.run(None, feed)), session_answers(session), path)


def noise_for(inputs: list[tuple[str, list[Any], str]], profile: DeviceSettings) -> dict[str, np.ndarray]:
    """Arrays for inputs given by name, shape and type; a free first size is the profile's batch."""
    rng, feed = np.random.default_rng(0), dict[str, np.ndarray]()
    for name, shape, kind in inputs:
        sizes = [profile.batch_size if i == 0 and not isinstance(s, int) else s for i, s in enumerate(shape)]
        if profile.input_px is not None and len(sizes) == 4:
            sizes[2:] = [s if isinstance(s, int) else profile.input_px for s in sizes[2:]]
        free = [size for size in sizes if not isinstance(size, int)]
        if free or kind not in ELEMENT_TYPES:
            raise InvalidInput(
                f"input {name!r} of this file has the shape {shape} and type {kind}; what can be measured has fixed "
                "sizes but for the batch (input_px says how large images are) and a usual type"
            )
        values = rng.standard_normal(sizes) if "float" in kind or "double" in kind else np.zeros(sizes)
        feed[name] = values.astype(ELEMENT_TYPES[kind])
    return feed


def _quantized(path: Path) -> Path:
    """The file in 8 bits, beside the other one, which is deleted."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    session = open_session(path, 1)
    shapes = [(value.name, value.shape, value.type) for value in session.get_inputs()]

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = CALIBRATED_ON

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            return noise_for(shapes, DeviceSettings()) if self.left >= 0 else None

    found = path.with_name("net-int8.onnx")
    quantize_static(str(path), str(found), Noise(), per_channel=True)
    for part in path.parent.glob("net.*"):
        part.unlink()
    return found


ONNX = Runtime(
    prepare,
    lambda: f"onnxruntime {version('onnxruntime')}",
    {".onnx": open_onnx},
    ("onnx", "onnxscript", "onnxruntime"),
    "onnx",
)
