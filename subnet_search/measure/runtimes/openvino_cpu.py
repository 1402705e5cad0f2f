"""OpenVINO on the CPU, in its latency mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.measure.runtimes.base import Arguments, Prepared, Runtime, in_this_process, tensors_of
from subnet_search.measure.runtimes.onnx_files import noise_for
from subnet_search.settings import DeviceSettings

HINTS = {"fp32": "f32", "bf16": "bf16"}
TYPES = {"f32": "float", "f64": "double", "f16": "float16", "i64": "int64", "i32": "int32", "u8": "uint8"}


def prepare(net: nn.Module, arguments: Arguments, profile: DeviceSettings, folder: Path) -> Prepared:
    """The net as torch.export sees it, converted and compiled for these sizes."""
    import openvino

    args, kwargs = arguments
    exported = torch.export.export(net, args, kwargs)
    with _unreported():
        model = openvino.convert_model(exported)
    arrays = [tensor.cpu().numpy() for tensor in tensors_of(arguments)]
    model.reshape(
        {i: list(array.shape) for i, array in enumerate(arrays)}
    )  # conversion leaves all sizes free
    path = folder / "net.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return _ready(model, arrays, profile, path)


def open_model(path: Path, profile: DeviceSettings) -> Prepared:
    """An ONNX or OpenVINO file that was written elsewhere, with noise for its inputs."""
    import openvino

    model = openvino.Core().read_model(path)
    inputs = [
        (port.any_name, _sizes(port), f"tensor({TYPES.get(name := port.element_type.to_string(), name)})")
        for port in model.inputs
    ]
    feed = noise_for(inputs, profile)
    model.reshape({name: list(array.shape) for name, array in feed.items()})
    return _ready(model, list(feed.values()), profile, path)


@contextmanager
def _unreported() -> Iterator[None]:
    """OpenVINO's converter tells its makers about each use, from forked processes that it waits for; not in CI jobs."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before


def _sizes(port: Any) -> list[int | str]:
    return [size.get_length() if size.is_static else "free" for size in port.partial_shape]


def _ready(model: Any, arrays: list[Any], profile: DeviceSettings, path: Path) -> Prepared:
    import openvino

    core = openvino.Core()
    has = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if profile.precision == "bf16" and "BF16" not in has:
        raise InvalidInput(
            f'precision = "bf16" is not what OpenVINO has on this processor, which is {", ".join(has)}; use "fp32"'
        )
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": profile.threads or torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[profile.precision],
        },
    )
    request = compiled.create_infer_request()

    def answers(inputs: Arguments) -> list[Tensor]:
        found = request.infer([tensor.cpu().numpy() for tensor in tensors_of(inputs)])
        return [torch.from_numpy(found[i].copy()) for i in range(len(compiled.outputs))]

    request.infer(arrays)  # the inputs stay with the request

    return Prepared(in_this_process(request.infer), answers, path)


OPENVINO = Runtime(
    prepare,
    lambda: f"openvino {version('openvino')}",
    dict.fromkeys((".onnx", ".xml"), open_model),
    ("openvino",),
    "openvino",
)
