"""A block that runs for the inputs whose score is high, with the groups of channels whose scores are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import SubnetSearchError
from subnet_search.elastic.groups import ChannelMap, Kept
from subnet_search.elastic.layers import Active, ElasticLayer
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import count_macs

TRIED, SAME = 3, 1e-4  # rows with which a group is tried, and how much relative to the largest may differ
START = 2.0  # bias of the scores: everything runs at first


class Scores(nn.Module):
    """Scores from 0 to 1 of the mean over positions: sigmoid(W2 relu(W1 mean(x))).

    Args:
        channels: that come in.
        count: of scores.
        hidden: units in between.
        axis: of the channels, 1 or -1.
    """

    def __init__(self, channels: int, count: int, hidden: int = 16, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.squeeze, self.score = nn.Linear(channels, hidden), nn.Linear(hidden, count)
        nn.init.constant_(self.score.bias, START)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, C, ...]` or `[B, ..., C]` to `[B, count]`."""
        places = [i for i in range(1, features.ndim) if i != self.axis % features.ndim]
        pooled = features.mean(dim=places) if places else features
        return torch.sigmoid(self.score(F.relu(self.squeeze(pooled))))

    def macs(self) -> int:
        """Multiply-adds for one input."""
        return self.squeeze.weight.numel() + self.score.weight.numel()


@dataclass
class Decisions:
    """What the blocks of one call share: the thresholds, the layer scores, and what was decided.

    Attributes:
        threshold: scores above it are kept, of layers and of channels.
        sliced: run what is kept alone; else everything runs and is masked, as training needs it.
        layers: scores `[B, num_blocks]`.
        kept: by block, whether each input runs it, `[B]`.
        shares: by block, the share of each group of channels that is kept, `[B, num_groups]`.
        scales: by layer that reads a group of channels, what its inputs are multiplied with.
    """

    threshold: float = 0.5
    sliced: bool = False
    layers: Tensor | None = None
    kept: dict[int, Tensor] = field(default_factory=dict)
    shares: dict[int, Tensor] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)


def kept_or_not(scores: Tensor, threshold: float) -> Tensor:
    """1 where a score is above the threshold, else 0, with the score's own gradient."""
    hard = (scores > threshold).to(scores)
    return hard + (scores - scores.detach())


class _Group:
    """One inner group of channels of a block: its parts, and which layer reads what."""

    def __init__(self, name: str, units: int, parts: int) -> None:
        self.name, self.units, self.parts = name, units, min(parts, units)
        self.part_of = torch.from_numpy(np.arange(units) * self.parts // units)


class _Scaling:
    """A hook that multiplies what comes into a layer with the scores of its channels; copied with its block."""

    def __init__(self, block: ScoredBlock, path: str, layer: nn.Module) -> None:
        self.block, self.path = block, path
        self.axis = 1 if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else -1

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        factors = self.block.decisions.scales.get(self.path)
        if factors is None:
            return None
        x = args[0]
        for place in range(1, x.ndim):
            if place != self.axis % x.ndim:
                factors = factors.unsqueeze(place)
        return (x * factors, *args[1:])


class Sliceable(Protocol):
    """What a block of a network that runs its graph is: a call, which can be told which units it keeps."""

    def __call__(self, x: Tensor) -> Tensor:
        """What the block makes of its input."""

    def keep(self, units: Mapping[str, np.ndarray] | None) -> None:
        """Which units of each inner group it keeps from now on; None: all."""

    def layer(self, path: str) -> nn.Module:
        """One of its layers, by path in the whole network."""


class ScoredBlock(nn.Module):
    """A block that runs for the inputs whose score is high, with the channels whose scores are.

    out = x + s (block(x) - x) where the block runs, else x: what it adds is scaled by its score s. What reads a kept
    group of channels gets it multiplied with the group's score. A group whose channels cannot be left out alone, as
    what is computed then differs from what masks give, is not scored.

    Args:
        block: a module of the network's own classes, or one of its graph.
        path: of the block.
        number: in the order of the calls.
        supernet: whose block it is.
        parts: of each inner group of channels.
        example: what comes into the block.
        axis: of its channels, 1 or -1.
        names: of the groups to score; by default all that can be left out.
    """

    def __init__(
        self,
        block: nn.Module | Sliceable,
        path: str,
        number: int,
        supernet: Supernet,
        parts: int,
        example: Tensor,
        axis: int = 1,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.block, self.number, self.path = block, number, path
        self.decisions = Decisions()  # exchanged by the net around it
        self._sites = {
            inside: supernet.sites[inside]
            for inside in supernet.sites
            if inside.startswith(f"{path}.")
            and isinstance(supernet.model.get_submodule(inside), ElasticLayer)
        }
        candidates = [_Group(g, supernet.groups[g].units, parts) for g in inner_groups(supernet, path)]
        for inside, site in self._sites.items():
            if _reads_to_mix(site, candidates):
                layer = self._layer(inside)
                layer.register_forward_pre_hook(_Scaling(self, inside, layer))
        self.groups: list[_Group] = []
        self.groups = [
            group
            for group in candidates
            if (self._can_leave_out(group, example) if names is None else group.name in names)
        ]
        self._all_columns = self.columns(None)
        count = sum(group.parts for group in self.groups)
        self.channels = Scores(example.shape[axis], count, axis=axis) if count else None
        self._macs: dict[str, int] = {}  # of each layer, at full width
        self.terms: dict[tuple[str, ...], float] | None = (
            None  # multiply-adds by the groups whose shares they go with
        )

    def _layer(self, path: str) -> nn.Module:
        if isinstance(self.block, nn.Module):
            return self.block.get_submodule(path.removeprefix(f"{self.path}."))
        return self.block.layer(path)

    @torch.no_grad()
    def _can_leave_out(self, group: _Group, example: Tensor) -> bool:
        """Whether the block computes the same with half of a group masked and with that half alone."""
        if group.parts < 2:
            return False
        self.groups = [group]
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(TRIED, *example.shape[1:], generator=generator).to(example)
        pattern = torch.arange(group.parts) % 2 == 1
        scores = torch.linspace(0.5, 1.0, group.parts).to(example).expand(TRIED, -1)
        try:
            self.scale_by(scores * pattern.to(example), self.columns(None))
            masked = self.block(x.clone())
            self.use_parts(pattern)
            self.scale_by(scores, self.columns(pattern))
            alone = self.block(x.clone())
        except (RuntimeError, SubnetSearchError):  # sizes that do not meet
            return False
        finally:
            self.decisions.scales.clear()
            self.use_parts(None)
        return bool((masked - alone).abs().max() <= SAME * max(1.0, float(masked.abs().max())))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, ...]`, the shape kept."""
        told = self.decisions
        assert told.layers is not None
        score = told.layers[:, self.number]  # [B]
        keep = kept_or_not(score, told.threshold)
        channels = None if self.channels is None else self.channels(x)  # [B, parts of all groups]
        told.kept[self.number] = keep
        shares = [torch.ones_like(score)]
        if channels is not None:
            chosen = self._chosen(channels, told.threshold)
            shares = [part.mean(dim=1) for part in chosen.split([g.parts for g in self.groups], dim=1)]
        told.shares[self.number] = torch.stack(shares, dim=1)
        if told.sliced:
            return self._sliced(x, score, keep > 0.5, channels)
        if channels is not None:
            self.scale_by(channels * chosen, self._all_columns)
        weight = (keep * score).reshape(-1, *[1] * (x.ndim - 1))
        out: Tensor = x + weight * (self.block(x.clone()) - x)
        told.scales.clear()
        return out

    def _chosen(self, channels: Tensor, threshold: float) -> Tensor:
        """Which parts are kept, `[B, parts]`; of each group at least the best one."""
        kept = kept_or_not(channels, threshold)
        best = []
        for part in channels.detach().split([g.parts for g in self.groups], dim=1):
            best.append(F.one_hot(part.argmax(dim=1), part.shape[1]).to(part))
        return torch.maximum(kept, torch.cat(best, dim=1))

    def _sliced(self, x: Tensor, score: Tensor, keep: Tensor, channels: Tensor | None) -> Tensor:
        out = x.clone()
        rows = keep.nonzero()[:, 0]
        if not len(rows):
            return out
        patterns = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
        if channels is not None:
            patterns = self.pattern_of(channels)
        distinct, group = patterns[rows].unique(dim=0, return_inverse=True)
        for i, pattern in enumerate(distinct):
            mine = rows[group == i]
            if channels is not None:
                self.use_parts(pattern.cpu())
                self.scale_by(channels[mine], self.columns(pattern.cpu()))
            weight = score[mine].reshape(-1, *[1] * (x.ndim - 1))
            out[mine] = x[mine] + weight * (self.block(x[mine]) - x[mine])
        self.decisions.scales.clear()
        self.use_parts(None)
        return out

    def pattern_of(self, channels: Tensor) -> Tensor:
        """Which parts of all groups are kept at the threshold, bool `[B, parts]`, of their scores."""
        return self._chosen(channels, self.decisions.threshold) > 0.5

    def first_parts(self, share: float) -> Tensor:
        """A pattern that keeps so much of each group of channels."""
        return torch.cat([torch.arange(g.parts) < max(1, round(share * g.parts)) for g in self.groups])

    def alone(self, x: Tensor, pattern: Tensor | None) -> Callable[[], Tensor]:
        """A call of the block's own layers with the kept channels alone, to be timed."""

        def call() -> Tensor:
            self.use_parts(pattern)
            out: Tensor = self.block(x.clone())
            self.use_parts(None)
            return out

        return call

    def _kept_units(self, pattern: Tensor) -> dict[str, np.ndarray]:
        parts = pattern.split([g.parts for g in self.groups])
        return {g.name: part[g.part_of].numpy() for g, part in zip(self.groups, parts, strict=True)}

    def use_parts(self, pattern: Tensor | None) -> None:
        """Lets the layers of the block run with the kept channels alone; None: with all."""
        units = None if pattern is None or bool(pattern.all()) else self._kept_units(pattern)
        if not isinstance(self.block, nn.Module):
            self.block.keep(units)
        for path, site in self._sites.items():
            layer: Any = self._layer(path)
            if units is None:
                layer.active = None
                continue
            inputs, num_inputs = _kept(site.reads, units)
            outputs, num_outputs = _kept(site.writes, units)
            layer.active = Active(inputs, outputs, num_inputs, num_outputs)

    def scale_by(self, channels: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Spreads scores of parts `[B, parts]` over the positions of the layers that read them, as `columns` says."""
        table = torch.cat([channels, torch.ones_like(channels[:, :1])], dim=1)  # the last column: not scaled
        for path, places in columns.items():
            self.decisions.scales[path] = table.index_select(1, places.to(channels.device))

    def columns(self, pattern: Tensor | None) -> dict[str, Tensor]:
        """For each layer that reads groups of channels, whose score each position that is kept is scaled by."""
        units = None if pattern is None else self._kept_units(pattern)
        start, begins = 0, {}
        for group in self.groups:
            begins[group.name] = (start, group.part_of)
            start += group.parts
        found: dict[str, Tensor] = {}
        for path, site in self._sites.items():
            if not _reads_to_mix(site, self.groups):
                continue
            reads = site.reads
            assert reads is not None
            columns = torch.full((reads.size,), start)
            for i, name in enumerate(reads.groups):
                if name in begins:
                    places = np.flatnonzero(reads.group_at == i)
                    first, part_of = begins[name]
                    columns[torch.from_numpy(places)] = (
                        first + part_of[torch.from_numpy(reads.unit_at[places])]
                    )
            if units is not None:
                kept, _ = _kept(reads, units)
                columns = columns if kept is None else columns[kept]
            found[path] = columns
        return found

    @torch.no_grad()
    def note_macs(self, example: Tensor) -> None:
        """Counts what each layer of the block multiplies and adds, for one input of the block of own classes."""
        assert isinstance(self.block, nn.Module)
        seen: dict[str, Tensor] = {}
        hooks = [layer.register_forward_pre_hook(noting(seen, path)) for path, layer in self.layers()]
        self.block(example.clone())
        for hook in hooks:
            hook.remove()
        whole = count_macs(self.block, example)
        self._macs = {path: count_macs(layer, seen[path]) for path, layer in self.layers() if path in seen}
        self._macs[""] = whole - sum(self._macs.values())  # products that are no layer's

    def note_terms(self, supernet: Supernet) -> None:
        """Takes what the block multiplies and adds from the supernet's closed forms, products of tensors included."""
        costs, largest = supernet.costs, supernet.space.largest()
        unit = dict(zip(costs.knobs, costs.divisors, strict=True))
        depth = supernet.depth_of[self.path]
        named = {supernet.knob_of[group.name]: group.name for group in self.groups}
        found: dict[tuple[str, ...], float] = {}
        for monomial, coefficient in costs.macs_terms.items():
            if depth in monomial:
                inner = tuple(named[name] for name in monomial if name in named)
                whole = math.prod(largest[name] // unit[name] for name in monomial)
                found[inner] = found.get(inner, 0.0) + float(coefficient * whole)
        self.terms = found

    def _by_terms(self, share_of: Mapping[str, Tensor], like: Tensor) -> Tensor:
        total = torch.zeros_like(like)
        for inner, whole in (self.terms or {}).items():
            cost = torch.full_like(like, whole)
            for name in inner:
                cost = cost * share_of[name]
            total = total + cost
        return total

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers that write channels, by path."""
        for path, site in self._sites.items():
            if site.writes is not None:
                yield path, self._layer(path)

    def macs(self, shares: Tensor) -> Tensor:
        """Multiply-adds for inputs that run the block, `[B]`, with shares of its groups `[B, num_groups]`."""
        share_of = {g.name: shares[:, i] for i, g in enumerate(self.groups)}
        if self.terms is not None:
            return self._by_terms(share_of, shares[:, 0])
        total = torch.full_like(shares[:, 0], float(self._macs[""]))
        for path, layer in self.layers():
            if path not in self._macs:
                continue
            site, cost = self._sites[path], torch.full_like(total, float(self._macs[path]))
            if site.writes is not None:
                cost = cost * _share(site.writes, share_of, cost)
            if site.reads is not None and getattr(layer, "groups", 1) == 1:
                cost = cost * _share(site.reads, share_of, cost)
            total = total + cost
        return total


def noting(seen: dict[str, Tensor], path: str) -> Any:
    """A hook that notes what comes into a module."""

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[path] = args[0]

    return note


def _share(channel_map: ChannelMap, share_of: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The share of an axis that is kept, where each of its groups has one."""
    found = torch.zeros_like(like)
    for i, name in enumerate((*channel_map.groups, "")):  # the last ones are fixed
        part = float((channel_map.group_at == i).mean())
        found = found + part * (share_of[name] if name in share_of else torch.ones_like(like))
    return found


def _reads_to_mix(site: Any, groups: Sequence[_Group]) -> bool:
    """Whether a layer reads one of the groups and writes other channels; what passes channels on does not."""
    if site.reads is None or site.writes is None:
        return False
    names = {group.name for group in groups} & set(site.reads.groups)
    return bool(names) and not names & set(site.writes.groups)


def _kept(channel_map: ChannelMap | None, units: Mapping[str, np.ndarray]) -> tuple[Kept, int]:
    """The positions of an axis that stay when each group keeps those of its units that are true."""
    if channel_map is None:
        return None, 0
    mask = np.ones(channel_map.size, dtype=bool)
    for i, name in enumerate(channel_map.groups):
        if name in units:
            mine = channel_map.group_at == i
            mask[mine] = units[name][channel_map.unit_at[mine]]
    index = np.flatnonzero(mask)
    return (None if len(index) == channel_map.size else torch.from_numpy(index)), len(index)


def inner_groups(supernet: Supernet, block: str) -> list[str]:
    """The groups of channels that are written and read inside of a block alone, and have a knob of their own."""
    found, knobs = [], list(supernet.knob_of.values())
    for name, knob in supernet.knob_of.items():
        if knobs.count(knob) > 1 and isinstance(supernet.model, RunsGraph):
            continue
        touching = [
            path
            for path, site in supernet.sites.items()
            if any(name in m.groups for m in (site.reads, site.writes) if m is not None)
        ]
        if touching and all(path.startswith(f"{block}.") for path in touching):
            found.append(name)
    return found
