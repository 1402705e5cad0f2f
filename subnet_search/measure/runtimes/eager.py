"""Torch's eager mode, on the CPU or a CUDA device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from subnet_search.batches import device_of
from subnet_search.measure.runtimes.base import Arguments, Prepared, Runtime, in_this_process
from subnet_search.settings import DeviceSettings


def prepare(net: nn.Module, arguments: Arguments, profile: DeviceSettings, folder: Path) -> Prepared:
    """The net itself, on the device where it lives; a copy of it for another precision."""
    net, arguments = in_precision(net, arguments, profile)
    return prepared_call(net, net, arguments)


def prepared_call(net: nn.Module, run: Callable[..., Any], arguments: Arguments) -> Prepared:
    """Something that is called as `net` is; a call returns when the answer is there."""
    device = device_of(net)
    args, kwargs = arguments
    wait: Callable[[], object] = (
        (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
    )

    def call() -> None:
        run(*args, **kwargs)
        wait()

    def answers(inputs: Arguments) -> list[Tensor]:
        args, kwargs = tree_map(lambda value: in_type_of(value, net), inputs)
        with torch.inference_mode():
            return [leaf for leaf in tree_leaves(run(*args, **kwargs)) if isinstance(leaf, Tensor)]

    return Prepared(in_this_process(call), answers)


def in_precision(
    net: nn.Module, arguments: Arguments, profile: DeviceSettings
) -> tuple[nn.Module, Arguments]:
    """Net and arguments in the profile's precision; fp32 means the net's own."""
    if profile.precision != "bf16":
        return net, arguments
    net = copy.deepcopy(net).to(torch.bfloat16)
    return net, tree_map(lambda value: in_type_of(value, net), arguments)


def in_type_of(value: Any, net: nn.Module) -> Any:
    """Floating-point tensors in the type of the net's weights."""
    weight = next((p for p in net.parameters() if p.is_floating_point()), None)
    if weight is None or not (isinstance(value, Tensor) and value.is_floating_point()):
        return value
    return value.to(weight.dtype)


EAGER = Runtime(prepare, lambda: f"torch {torch.__version__} eager", {})
