"""The independent judge of closed-form costs: operators are counted while the network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from subnet_search.batches import device_of
from subnet_search.elastic.image_size import as_taken
from subnet_search.modes import evaluation_mode

Example = Tensor | tuple[Any, ...] | dict[str, Any]


def count_macs(net: nn.Module, example: Example) -> int:
    """Multiply-adds of one call: convolutions, linear layers and matrix products, attention's two included.

    Counted by torch's FlopCounterMode (two per multiply-add), with attention's fast path off and its plain
    formula on, because fused operators hide their products. No bias, norm, pooling or element-wise work.

    Args:
        net: any network, used in evaluation mode.
        example: arguments of the call; its batch size counts.
    """
    return sum(macs_by_operator(net, example).values())


def macs_by_operator(net: nn.Module, example: Example) -> dict[str, int]:
    """`count_macs`, operator by operator: "convolution", "addmm", "bmm" and the like."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluation_mode(net),
            torch.no_grad(),
            _without_gradients(net),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            call(net, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    flops = counter.get_flop_counts().get("Global", {})
    return {operator.__name__.partition(".")[0]: int(count) // 2 for operator, count in flops.items()}


@contextmanager
def _without_gradients(net: nn.Module) -> Iterator[None]:
    """The counter follows gradients of what modules are given, and fails where that is a parameter under `no_grad`."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def count_params(net: nn.Module) -> int:
    """Numbers that were trained; a tensor with two names counts once."""
    return sum(parameter.numel() for parameter in net.parameters())


def call(net: nn.Module, example: Example) -> Any:
    """Calls `net` with a tensor, positional arguments or named ones, on the net's device and of the size it takes."""
    device, example = device_of(net), as_taken(net, example)

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(example, dict):
        return net(**{name: there(value) for name, value in example.items()})
    return net(*(there(value) for value in (example if isinstance(example, tuple) else (example,))))
