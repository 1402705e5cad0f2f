"""In which steps of channels time goes up on a target, found for each type of layer of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.batches import resolve_device
from subnet_search.elastic.graph import at_batch_one
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.counter import call
from subnet_search.measure.latency import LatencyMeter
from subnet_search.measure.subnet_latency import profile_device
from subnet_search.modes import evaluation_mode
from subnet_search.progress import progress
from subnet_search.settings import DeviceSettings

STEPS = (1, 2, 4, 8, 16, 32)
WINDOW = 33  # widths that are looked at, up to that of the layer
FREE = 0.25  # of what rounding up would cost if time grew evenly: below it, time goes in steps


@dataclass(frozen=True, slots=True)
class Staircase:
    """Times of one type of layer by width, and the step that they show.

    Attributes:
        kind: "conv 3x3", "depthwise 3x3", "linear" and the like.
        layer: the layer of this kind with the most multiply-adds; it stands for all of them.
        widths, times_ms, noise_ms: of two such layers in a row, of width out and back; for depthwise ones of one.
        step: rounding a width up to a multiple of it costs next to no time; 1: time goes up evenly.
        rounding_percent: what rounding up to that step costs on average.
        even_percent: what it would cost if time went up evenly.
    """

    kind: str
    layer: str
    widths: tuple[int, ...]
    times_ms: tuple[float, ...]
    noise_ms: tuple[float, ...]
    step: int
    rounding_percent: float
    even_percent: float


def find_steps(
    supernet: Supernet, profile: DeviceSettings, *, window: int = WINDOW, seed: int = 0
) -> list[Staircase]:
    """Times small nets of one or two layers at all widths just below those of the network's own layers.

    Args:
        supernet: whose kinds of layer, and sizes of feature maps.
        profile: runtime, threads, precision and so on.
        window: how many widths.
        seed: of the order in which widths are measured.

    Raises:
        InvalidInput: no convolution or linear layer is elastic, or the profile cannot be had here.
    """
    largest = _largest_layers(supernet)
    if not largest:
        raise InvalidInput("no convolution or linear layer of this network has a width that could have steps")
    found, device = [], resolve_device(profile_device(profile))
    for kind, (path, layer, size) in largest.items():
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        widths = list(range(max(width - window + 1, 2), width + 1))
        whole = _micro_net(layer, width).to(device)
        meter = LatencyMeter(whole, torch.randn(1, *_entering(layer, size, width)), profile)
        times, noise = dict[int, float](), dict[int, float]()
        order = np.random.default_rng(seed).permutation(widths)
        for one in progress(list(map(int, order)), f"steps of {kind}", "width"):
            latency = _timed(layer, size, one, profile, meter)
            times[one], noise[one] = latency
        ms, wide = [times[w] for w in widths], [noise[w] for w in widths]
        found.append(staircase(kind, path, widths, ms, wide))
    return found


def staircase(
    kind: str, layer: str, widths: Sequence[int], times_ms: Sequence[float], noise_ms: Sequence[float]
) -> Staircase:
    """The largest step to whose multiples widths can be rounded up at next to no cost."""
    best, costs = 1, (0.0, 0.0)
    for step in STEPS[1:]:
        rounding, even = rounding_cost(widths, times_ms, step)
        if even and rounding <= FREE * even:
            best, costs = step, (rounding, even)
    return Staircase(
        kind, layer, tuple(widths), tuple(times_ms), tuple(noise_ms), best, 100 * costs[0], 100 * costs[1]
    )


def rounding_cost(widths: Sequence[int], times_ms: Sequence[float], step: int) -> tuple[float, float]:
    """What rounding up to multiples of a step costs on average, as a share of time; and what it costs in channels.

    Of widths whose next multiple was measured too; zeros where there are not two whole steps of them.
    """
    by_width = dict(zip(widths, times_ms, strict=True))
    pairs = [(w, up) for w in widths if (up := -(-w // step) * step) in by_width]
    if len({up for _, up in pairs}) < 2 or len(pairs) < 2 * step:
        return 0.0, 0.0
    rounding = np.mean([by_width[up] / by_width[w] - 1 for w, up in pairs])
    return float(rounding), float(np.mean([up / w - 1 for w, up in pairs]))


def steps_table(found: Sequence[Staircase]) -> str:
    """The steps for people, and how a recipe says them."""
    lines = [f"{'layers':16}  {'step':>4}  {'rounding up costs':>18}  {'without steps':>14}  looked at"]
    for one in found:
        lines.append(
            f"{one.kind:16}  {one.step:>4}  {one.rounding_percent:>16.1f} %  {one.even_percent:>12.1f} %  "
            f"{one.layer}, widths {one.widths[0]} to {one.widths[-1]}"
        )
    steps = sorted({one.step for one in found})
    lines.append(
        f"[elastic] step = {steps[-1]} fills the steps of all of them; a smaller one offers more sub-nets, but none "
        "that is faster"
    )
    return "\n".join(lines)


def steps_to_json(found: Sequence[Staircase]) -> dict[str, Any]:
    """The same as plain data."""
    return {"staircases": [asdict(one) for one in found]}


def _timed(
    layer: Any, size: torch.Size, width: int, profile: DeviceSettings, meter: LatencyMeter
) -> tuple[float, float]:
    """Milliseconds and half their interval, of a micro-net whose own input has its width where that must be so."""
    net, example = _micro_net(layer, width), torch.randn(1, *_entering(layer, size, width))
    latency = meter.measured(net, width, example=example)[0]
    return latency.median_ms, latency.half_interval_ms


def _largest_layers(supernet: Supernet) -> dict[str, tuple[str, Any, torch.Size]]:
    """For each kind the path, module and input size `[C, ...]` of the layer with the most multiply-adds."""
    found: dict[str, tuple[int, str, Any, torch.Size]] = {}
    elastic = {path for group in supernet.groups.values() for path in group.writers}

    def note(path: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            macs = output[0].numel() * module.weight[0].numel()
            kind = kind_of(module)
            if kind not in found or macs > found[kind][0]:
                found[kind] = macs, path, module, inputs[0].shape[1:]

        return hook

    model = supernet.model
    layers = [
        (p, m) for p, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and p in elastic
    ]
    hooks = [module.register_forward_hook(note(path)) for path, module in layers]
    try:
        with evaluation_mode(model), torch.no_grad():
            call(model, at_batch_one(supernet.example))
    finally:
        for hook in hooks:
            hook.remove()
    return {kind: (path, module, size) for kind, (_, path, module, size) in sorted(found.items())}


def kind_of(module: Any) -> str:
    """The kind of a convolution or linear layer, such as "conv 3x3"."""
    if isinstance(module, nn.Linear):
        return "linear"
    high, wide = module.kernel_size
    name = (
        "depthwise"
        if _is_depthwise(module)
        else "conv"
        if module.groups == 1
        else f"conv of {module.groups} groups"
    )
    return f"{name} {high}x{wide}"


def _is_depthwise(module: Any) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _entering(layer: Any, size: torch.Size, width: int) -> tuple[int, ...]:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return (width if _is_depthwise(layer) else size[0], *size[1:])
    return tuple(size)


def _micro_net(layer: Any, width: int) -> nn.Sequential:
    """The layer at a width, and where it stands for coupled ones another one that reads it."""
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, width), nn.ReLU(), nn.Linear(width, layer.in_features)
        ).eval()
    same: dict[str, Any] = {
        "kernel_size": layer.kernel_size,
        "padding": layer.padding,
        "dilation": layer.dilation,
    }
    if _is_depthwise(layer):
        return nn.Sequential(nn.Conv2d(width, width, groups=width, stride=layer.stride, **same)).eval()
    if layer.groups > 1:
        width = max(width // layer.groups, 1) * layer.groups
    first = nn.Conv2d(layer.in_channels, width, groups=layer.groups, stride=layer.stride, **same)
    return nn.Sequential(
        first, nn.ReLU(), nn.Conv2d(width, layer.in_channels, groups=layer.groups, **same)
    ).eval()
