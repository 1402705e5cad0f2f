"""Modules that can run as a smaller version of themselves: sub-classes exchanged in place.

Parameters, buffers, hooks and names stay those of the user's modules; only the class changes, and `active`
says what the sub-net at hand keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import SubnetSearchError
from subnet_search.elastic.detour import Detour
from subnet_search.elastic.graph import plain_kind
from subnet_search.elastic.grouped import kept_groups, kept_in_group
from subnet_search.elastic.groups import Kept
from subnet_search.elastic.padding import PaddedShortcut


class WrongCouplingError(SubnetSearchError):
    """A layer received another number of channels than the active sub-net promises."""


@dataclass(frozen=True, eq=False)
class Active:
    """The part of a layer that the active sub-net uses; a layer of the largest sub-net has None instead."""

    inputs: Kept
    outputs: Kept
    num_inputs: int
    num_outputs: int
    sources: Tensor | None = None  # of a padded shortcut, in terms of the kept channels


def take(tensor: Tensor, axis: int, kept: Kept) -> Tensor:
    """The kept positions of one axis: a view where they are contiguous, a copy where not."""
    if kept is None:
        return tensor
    if isinstance(kept, slice):
        return tensor.narrow(axis, 0, kept.stop)
    return tensor.index_select(axis, kept.to(tensor.device))


def expect(layer: nn.Module, width: int, promised: int) -> None:
    """Raises `WrongCouplingError` if another number of channels came in than the active sub-net promises."""
    if width != promised:
        raise WrongCouplingError(
            f"{type(layer).__name__} received {width} channels where the active sub-net promises {promised}: the "
            "model couples channels in a way that the rules did not see; name the layer before it in "
            "ElasticSettings(exclude=(...)) and please report the model"
        )


class Exchanged:
    """A module whose class was exchanged; it is pickled by its own class, as the new one may have no name."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        exchange = make_skippable if isinstance(self, SkippableBlock) else make_layer_elastic
        return _blank, (PLAIN[type(self)], exchange), self.__getstate__()  # type: ignore[index]


def _blank(kind: type[nn.Module], exchange: Callable[[nn.Module], None]) -> nn.Module:
    module = kind.__new__(kind)
    exchange(module)
    return module


class ElasticLayer(Exchanged):
    """What all exchanged leaf modules share."""

    active: Active | None = None
    followed: ClassVar[Mapping[str, int] | None] = None  # axes of channels, by a user's rule


class ElasticConv(ElasticLayer):
    """Convolutions; while `folded` is set (weight, bias and groups of the active part), that is what they use."""

    convolve: Callable[..., Tensor]
    folded: tuple[Tensor, Tensor, int] | None = None

    def forward(self: Any, x: Tensor) -> Tensor:
        """`[B, C, ...]` with C sliced."""
        active = self.active
        if active is not None:
            expect(self, x.shape[1], active.num_inputs)
        if self.folded is not None:
            weight, bias, groups = self.folded
        elif active is None:
            return super().forward(x)  # type: ignore[misc]
        else:
            weight, groups = sliced_conv_weight(self, active)
            bias = None if self.bias is None else take(self.bias, 0, active.outputs)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return type(self).convolve(x, weight, bias, self.stride, padding, self.dilation, groups)


def sliced_conv_weight(conv: Any, active: Active) -> tuple[Tensor, int]:
    """The kept weight `[out, in per group, ...]` of a convolution and its number of groups."""
    weight = take(conv.weight, 0, active.outputs)
    return take(weight, 1, kept_in_group(conv, active.inputs)), kept_groups(conv, active.num_outputs)


def kept_part(layer: Any, name: str, tensor: Tensor, part: Active) -> Tensor:
    """The kept part of a layer's parameter or buffer."""
    if isinstance(layer, PaddedShortcut):
        return tensor if part.sources is None else part.sources
    followed = getattr(layer, "followed", None)
    if followed is not None:
        return take(tensor, followed[name], part.inputs) if name in followed else tensor
    if hasattr(layer, "num_features") or isinstance(layer, nn.LayerNorm | nn.GroupNorm):
        return take(tensor, 0, part.inputs)
    tensor = take(tensor, 0, part.outputs)
    if name != "weight":
        return tensor
    return take(tensor, 1, kept_in_group(layer, part.inputs) if hasattr(layer, "groups") else part.inputs)


class ElasticConv1d(ElasticConv, nn.Conv1d):
    """`[B, C, L]` with C sliced."""

    convolve = staticmethod(F.conv1d)


class ElasticConv2d(ElasticConv, nn.Conv2d):
    """`[B, C, H, W]` with C sliced."""

    convolve = staticmethod(F.conv2d)


class ElasticConv3d(ElasticConv, nn.Conv3d):
    """`[B, C, D, H, W]` with C sliced."""

    convolve = staticmethod(F.conv3d)


class ElasticLinear(ElasticLayer, nn.Linear):
    """`[..., C]` with C sliced."""

    def forward(self, x: Tensor) -> Tensor:
        """The linear map between the kept features."""
        active = self.active
        if active is None:
            return super().forward(x)
        expect(self, x.shape[-1], active.num_inputs)
        weight = take(take(self.weight, 0, active.outputs), 1, active.inputs)
        return F.linear(x, weight, None if self.bias is None else take(self.bias, 0, active.outputs))


class ElasticBatchNorm(ElasticLayer):
    """Batch norm whose statistics belong to a sub-net.

    In training, running statistics are updated for the largest sub-net only; every other one normalises with
    those of the batch and writes nothing. In evaluation `statistics` (mean and variance of the kept channels)
    are used where given, else the kept part of the running ones. While `collected` is set, the statistics of
    the batches seen are averaged there, as torch does with momentum=None; while `folded` is, the convolution
    before does the work.
    """

    updates_running = True
    statistics: tuple[Tensor, Tensor] | None = None
    collected: tuple[Tensor, Tensor] | None = None
    batches_collected = 0
    folded = False

    def start_collecting(self: Any) -> None:
        """Averages the statistics of the batches to come, for the channels kept now."""
        width = self.num_features if self.active is None else self.active.num_inputs
        self.collected = (self.running_mean.new_zeros(width), self.running_var.new_zeros(width))
        self.batches_collected = 0

    def forward(self: Any, x: Tensor) -> Tensor:
        """`[B, C, ...]` with C sliced."""
        kept = None if self.active is None else self.active.inputs
        expect(self, x.shape[1], self.num_features if self.active is None else self.active.num_inputs)
        if self.folded:
            return x
        if self.training and self.updates_running and self.collected is None:
            return super().forward(x)  # type: ignore[misc]
        weight = None if self.weight is None else take(self.weight, 0, kept)
        bias = None if self.bias is None else take(self.bias, 0, kept)
        if self.collected is not None:
            self.batches_collected += 1
            share = 1.0 / self.batches_collected
            mean, variance = self.collected
            return F.batch_norm(x, mean, variance, weight, bias, True, share, self.eps)
        if self.training or self.running_mean is None:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)
        mean, variance = self.statistics or (
            take(self.running_mean, 0, kept),
            take(self.running_var, 0, kept),
        )
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)


class ElasticBatchNorm1d(ElasticBatchNorm, nn.BatchNorm1d):
    """Batch norm over `[B, C]` or `[B, C, L]`."""


class ElasticBatchNorm2d(ElasticBatchNorm, nn.BatchNorm2d):
    """Batch norm over `[B, C, H, W]`."""


class ElasticBatchNorm3d(ElasticBatchNorm, nn.BatchNorm3d):
    """Batch norm over `[B, C, D, H, W]`."""


class ElasticLayerNorm(ElasticLayer, nn.LayerNorm):
    """Layer norm over `[..., C]` with C sliced."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises over the kept channels."""
        active = self.active
        if active is None:
            return super().forward(x)
        expect(self, x.shape[-1], active.num_inputs)
        weight = None if self.weight is None else take(self.weight, 0, active.inputs)
        bias = None if self.bias is None else take(self.bias, 0, active.inputs)
        return F.layer_norm(x, (active.num_inputs,), weight, bias, self.eps)


class ElasticGroupNorm(ElasticLayer, nn.GroupNorm):
    """Group norm over `[B, C, ...]` with whole groups of C sliced (all channels alike, where there is one group)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises each of the kept groups."""
        active = self.active
        if active is None:
            return super().forward(x)
        expect(self, x.shape[1], active.num_inputs)
        weight = None if self.weight is None else take(self.weight, 0, active.inputs)
        bias = None if self.bias is None else take(self.bias, 0, active.inputs)
        return F.group_norm(x, kept_norm_groups(self, active.num_inputs), weight, bias, self.eps)


def kept_norm_groups(norm: nn.GroupNorm, channels: int) -> int:
    """The number of groups of a group norm that keeps so many channels."""
    return 1 if norm.num_groups == 1 else norm.num_groups * channels // norm.num_channels


class ElasticPaddedShortcut(ElasticLayer, PaddedShortcut):
    """The zero-padded shortcut between two streams that shrink independently."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros stand where a kept output channel has no source among the kept input channels."""
        if self.active is None or self.active.sources is None:
            return super().forward(x)
        expect(self, x.shape[1], self.active.num_inputs)
        return self.gather(x, self.active.sources.to(x.device))


class SkippableBlock(Exchanged):
    """A residual block that passes its input on while `skipped` is set."""

    skipped = False
    detour: Detour | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's own forward; skipped what its detour answers, or without one the only argument."""
        if not self.skipped:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if self.detour is not None:
            return self.detour.answer(args, kwargs)
        (value,) = args
        return value


ELASTIC: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: ElasticConv1d,
    nn.Conv2d: ElasticConv2d,
    nn.Conv3d: ElasticConv3d,
    nn.Linear: ElasticLinear,
    nn.BatchNorm1d: ElasticBatchNorm1d,
    nn.BatchNorm2d: ElasticBatchNorm2d,
    nn.BatchNorm3d: ElasticBatchNorm3d,
    nn.LayerNorm: ElasticLayerNorm,
    nn.GroupNorm: ElasticGroupNorm,
    PaddedShortcut: ElasticPaddedShortcut,
}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {elastic: plain for plain, elastic in ELASTIC.items()}
_SKIPPABLE: dict[type[nn.Module], type[nn.Module]] = {}
_OWN = (
    "active",
    "skipped",
    "detour",
    "updates_running",
    "statistics",
    "collected",
    "batches_collected",
    "folded",
)


def make_layer_elastic(layer: nn.Module) -> None:
    """Exchanges the class of a leaf module for its elastic sub-class; other kinds stay as they are."""
    kind, base = type(layer), plain_kind(layer)
    if base not in ELASTIC:
        return
    if kind not in ELASTIC:
        ELASTIC[kind] = type(f"Elastic{kind.__name__}", (ELASTIC[base], kind), {})
        PLAIN[ELASTIC[kind]] = kind
    layer.__class__ = ELASTIC[kind]


def make_exactly_elastic(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Exchanges the class of a layer for the elastic one of a plain kind, whatever a sub-class adds to it."""
    layer.__class__ = ELASTIC[kind]


def make_skippable(block: Any, detour: Detour | None = None) -> None:
    """Exchanges the class of a block for a sub-class that can be skipped; `detour` says what it then answers."""
    kind = type(block)
    if kind not in _SKIPPABLE:
        _SKIPPABLE[kind] = type(f"Skippable{kind.__name__}", (SkippableBlock, kind), {})
        PLAIN[_SKIPPABLE[kind]] = kind
    block.__class__ = _SKIPPABLE[kind]
    block.detour = detour


def make_plain(module: nn.Module) -> None:
    """Gives a module its own class back and forgets what was active."""
    if type(module) in PLAIN:
        module.__class__ = PLAIN[type(module)]
        for name in _OWN:
            module.__dict__.pop(name, None)


def is_batch_norm(module: nn.Module) -> TypeGuard[ElasticBatchNorm]:
    """Whether the module keeps running statistics."""
    return isinstance(module, ElasticBatchNorm) and getattr(module, "running_mean", None) is not None
