"""A block that runs for the inputs whose score is high, with the groups of channels whose scores are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subnet_search.elastic.groups import ChannelMap, Kept
from subnet_search.elastic.layers import Active, ElasticLayer
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import count_macs

START = 2.0  # bias of the scores: everything runs at first


class Scores(nn.Module):
    """Scores from 0 to 1 of the mean over positions: sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, channels: int, count: int, hidden: int = 16) -> None:
        super().__init__()
        self.squeeze, self.score = nn.Linear(channels, hidden), nn.Linear(hidden, count)
        nn.init.constant_(self.score.bias, START)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, C, H, W]` or `[B, tokens, C]` to `[B, count]`."""
        pooled = features.mean(dim=(2, 3)) if features.ndim == 4 else features.mean(dim=1)
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


class ScoredBlock(nn.Module):
    """A block that runs for the inputs whose score is high, with the channels whose scores are.

    out = x + s (block(x) - x) where the block runs, else x: what it adds is scaled by its score s. What reads a kept
    group of channels gets it multiplied with the group's score.
    """

    def __init__(
        self, block: nn.Module, path: str, number: int, supernet: Supernet, parts: int, width: int
    ) -> None:
        super().__init__()
        self.block, self.number, self.path = block, number, path
        self.groups = [_Group(g, supernet.groups[g].units, parts) for g in inner_groups(supernet, path)]
        self._sites = {
            inside: supernet.sites[inside]
            for inside in supernet.sites
            if inside.startswith(f"{path}.")
            and isinstance(supernet.model.get_submodule(inside), ElasticLayer)
        }
        count = sum(group.parts for group in self.groups)
        self.channels = Scores(width, count) if count else None
        self.decisions = Decisions()  # exchanged by the net around it
        self._macs: dict[str, int] = {}  # of each layer, at full width
        for name, layer in block.named_modules():
            if (site := self._sites.get(f"{path}.{name}")) is not None and _reads_to_mix(site, self.groups):
                layer.register_forward_pre_hook(self._scaling(f"{path}.{name}", layer))

    def _scaling(self, path: str, layer: nn.Module) -> Any:
        axis = 1 if isinstance(layer, nn.Conv2d) else -1

        def scale(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            factors = self.decisions.scales.get(path)
            if factors is None:
                return None
            x = args[0]
            for place in range(1, x.ndim):
                if place != axis % x.ndim:
                    factors = factors.unsqueeze(place)
            return (x * factors, *args[1:])

        return scale

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
            self._set_scales(channels * chosen, None)
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
            patterns = self._chosen(channels, self.decisions.threshold) > 0.5
        distinct, group = patterns[rows].unique(dim=0, return_inverse=True)
        for i, pattern in enumerate(distinct):
            mine = rows[group == i]
            if channels is not None:
                self._slice(pattern.cpu())
                self._set_scales(channels[mine], pattern.cpu())
            weight = score[mine].reshape(-1, *[1] * (x.ndim - 1))
            out[mine] = x[mine] + weight * (self.block(x[mine]) - x[mine])
        self.decisions.scales.clear()
        self._slice(None)
        return out

    def first_parts(self, share: float) -> Tensor:
        """A pattern that keeps so much of each group of channels."""
        return torch.cat([torch.arange(g.parts) < max(1, round(share * g.parts)) for g in self.groups])

    def alone(self, x: Tensor, pattern: Tensor | None) -> Callable[[], Tensor]:
        """A call of the block's own layers with the kept channels alone, to be timed."""

        def call() -> Tensor:
            self._slice(pattern)
            out: Tensor = self.block(x.clone())
            self._slice(None)
            return out

        return call

    def _kept_units(self, pattern: Tensor) -> dict[str, np.ndarray]:
        parts = pattern.split([g.parts for g in self.groups])
        return {g.name: part[g.part_of].numpy() for g, part in zip(self.groups, parts, strict=True)}

    def _slice(self, pattern: Tensor | None) -> None:
        """Lets the layers of the block run with the kept channels alone; None: with all."""
        units = None if pattern is None or bool(pattern.all()) else self._kept_units(pattern)
        for path, site in self._sites.items():
            layer: Any = self.block.get_submodule(path.removeprefix(f"{self.path}."))
            if units is None:
                layer.active = None
                continue
            inputs, num_inputs = _kept(site.reads, units)
            outputs, num_outputs = _kept(site.writes, units)
            layer.active = Active(inputs, outputs, num_inputs, num_outputs)

    def _set_scales(self, channels: Tensor, pattern: Tensor | None) -> None:
        """Spreads scores of parts over the positions of the layers that read them."""
        units = None if pattern is None else self._kept_units(pattern)
        parts = dict(
            zip(
                [g.name for g in self.groups],
                channels.split([g.parts for g in self.groups], dim=1),
                strict=True,
            )
        )
        part_of = {g.name: g.part_of for g in self.groups}
        for path, site in self._sites.items():
            if not _reads_to_mix(site, self.groups):
                continue
            reads = site.reads
            assert reads is not None
            factors = channels.new_ones(len(channels), reads.size)
            for i, name in enumerate(reads.groups):
                if name in parts:
                    places = torch.from_numpy(np.flatnonzero(reads.group_at == i))
                    own = part_of[name][torch.from_numpy(reads.unit_at)[places]].to(channels.device)
                    factors = factors.index_copy(1, places.to(channels.device), parts[name][:, own])
            if units is not None:
                kept, _ = _kept(reads, units)
                factors = factors if kept is None else factors[:, kept]
            self.decisions.scales[path] = factors

    @torch.no_grad()
    def note_macs(self, example: Tensor) -> None:
        """Counts what each layer of the block multiplies and adds, for one input of the block."""
        seen: dict[str, Tensor] = {}
        hooks = [layer.register_forward_pre_hook(noting(seen, path)) for path, layer in self._layers()]
        self.block(example.clone())
        for hook in hooks:
            hook.remove()
        whole = count_macs(self.block, example)
        self._macs = {path: count_macs(layer, seen[path]) for path, layer in self._layers() if path in seen}
        self._macs[""] = whole - sum(self._macs.values())  # products that are no layer's

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        for path, site in self._sites.items():
            if site.writes is not None:
                yield path, self.block.get_submodule(path.removeprefix(f"{self.path}."))

    def macs(self, shares: Tensor) -> Tensor:
        """Multiply-adds for inputs that run the block, `[B]`, with shares of its groups `[B, num_groups]`."""
        share_of = {g.name: shares[:, i] for i, g in enumerate(self.groups)}
        total = torch.full_like(shares[:, 0], float(self._macs[""]))
        for path, layer in self._layers():
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
    """The groups of channels that are written and read inside of a block alone."""
    found = []
    for name in supernet.knob_of:
        touching = [
            path
            for path, site in supernet.sites.items()
            if any(name in m.groups for m in (site.reads, site.writes) if m is not None)
        ]
        if touching and all(path.startswith(f"{block}.") for path in touching):
            found.append(name)
    return found
