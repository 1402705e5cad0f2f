"""The supernet: the user's network with every smaller version of itself inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import RESOLUTION_KNOB, CostTable, InvalidInput, SearchSpace, SubnetConfig
from search_spaces.presets import SkipPaths
from subnet_search.elastic.graph import Example
from subnet_search.elastic.grouped import makes_thinner
from subnet_search.elastic.groups import ChannelMap, Group, Kept, Site
from subnet_search.elastic.image_size import Size, resized
from subnet_search.elastic.layers import Active, ElasticBatchNorm, ElasticLayer, is_batch_norm
from subnet_search.elastic.operations.graph_form import GraphForm, RunsGraph, tensor_of
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.statistics import Statistics

Ranking = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Branches:
    """What a supernet in branches has beside its knobs.

    Attributes:
        count: K.
        head: path of the classifier, which reads the channels of all groups.
        allowed: for each layer that mixes channels, ones where a weight may be other than zero, shaped to broadcast.
        row_macs: multiply-adds that each further group adds where rows are computed one after the other, `[count]`.
    """

    count: int
    head: str
    allowed: Mapping[str, Tensor]
    row_macs: tuple[int, ...]


class Supernet(nn.Module):
    """A network of which any sub-net of `space` can be made active.

    Made by `make_elastic`; calling it runs the user's own forward. Weights are those of `model`, under the
    user's own names.

    Attributes:
        model: the elastic copy of the user's network.
        space: the sub-nets to choose from.
        costs: their costs in closed form.
        groups: the coupled channel groups by name; group g's width is the knob `knob_of[g]`.
        blocks: paths of the blocks that may be skipped; block b's depth knob is `depth_of[b]`, by default of its name.
        coverage: what is elastic, what is not and why, as plain data.
        example: the example input at batch 1.
        sizes_px: height and width of the images that sub-nets may take, by height; empty if all take what comes. Where
            there is a choice, the resolution knob, a call resizes its images for the active sub-net.
        sub_paths: the halves of stages that are skipped as one, with `ElasticSettings(adaptive_depth=True)`; else None.
        branches: the groups of channels and the classifier, with `ElasticSettings(branches=K)`; else None.
    """

    sub_paths: SkipPaths | None = None
    branches: Branches | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        space: SearchSpace,
        costs: CostTable,
        groups: Mapping[str, Group],
        knob_of: Mapping[str, str],
        sites: Mapping[str, Site],
        blocks: tuple[str, ...],
        coverage: dict[str, Any],
        example: Example,
        sizes_px: Mapping[int, Size] | None = None,
        lower_forms: Mapping[int, GraphForm] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.space, self.costs, self.groups, self.knob_of = space, costs, groups, knob_of
        self.sites, self.blocks, self.coverage, self.example = sites, blocks, coverage, example
        self.depth_of = {block: block for block in blocks}
        self.sizes_px = dict(sizes_px or {})
        self._largest = space.largest()
        self._active = self._largest
        self._forms = dict(lower_forms or {})  # of the graph form, by height
        if isinstance(model, RunsGraph):
            self._whole_form = model.graph_form
            self.activate(self._largest)

    @property
    def active(self) -> SubnetConfig:
        """The canonical config of the sub-net that a call runs now."""
        return self._active

    @property
    def batch_norms(self) -> dict[str, ElasticBatchNorm]:
        """The layers that keep running statistics, by path."""
        return {path: m for path, m in self.model.named_modules() if is_batch_norm(m)}

    @property
    def uses_batch_norm(self) -> bool:
        """Whether sub-nets need statistics of their own."""
        return bool(self.batch_norms)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The active sub-net's answer; arguments are those of the user's model, images of whatever size it takes."""
        args, kwargs = self.as_taken((args, kwargs))
        return self.model(*args, **kwargs)

    def as_taken(self, given: T) -> T:
        """What the supernet is given, with images of the size that the active sub-net takes."""
        return resized(given, self.size_px(self._active))

    def size_px(self, config: SubnetConfig) -> Size | None:
        """Height and width of the images that a sub-net takes; None if there is no choice."""
        return self.sizes_px[config[RESOLUTION_KNOB]] if self.sizes_px else None

    def form_of(self, config: SubnetConfig) -> GraphForm:
        """The program that a sub-net of the graph form runs: at each size of images another one."""
        return self._forms.get(config.get(RESOLUTION_KNOB, 0), self._whole_form)

    def activate(self, config: SubnetConfig, statistics: Statistics | None = None) -> None:
        """Makes one sub-net the active one.

        Args:
            config: a member of the space.
            statistics: batch-norm statistics of that sub-net, from `recalibrate`; without them evaluation
                uses the kept part of the largest net's.

        Raises:
            InvalidInput: the config is not in the space, or the statistics belong to another one.
        """
        self.space.check(config)
        config = self.space.canonical(config)
        if statistics is not None and statistics.config_key != config.key:
            raise InvalidInput(
                f"statistics belong to sub-net {statistics.config_key}, but {config.key} is to be activated; "
                "call recalibrate for this config"
            )
        is_largest = config == self._largest
        units = self.units_of(config)
        for path, site in self.sites.items():
            layer = self.model.get_submodule(path)
            if isinstance(layer, ElasticLayer):
                layer.active = None if is_largest else active_part(layer, site, units)
        skipped = self.skipped_in(config)
        for block in self.blocks:
            self.model.get_submodule(block).skipped = block in skipped  # type: ignore[assignment]
        for path, norm in self.model.named_modules():
            if isinstance(norm, ElasticBatchNorm):
                norm.updates_running = is_largest
                norm.statistics = None if statistics is None else statistics.of(path)
        if isinstance(self.model, RunsGraph):
            device = next(self.model.parameters()).device
            self.model.graph_form = self.form_of(config)
            self.model.choice = self.model.graph_form.choice(units, skipped, device)
        self._active = config

    @contextmanager
    def subnet(self, config: SubnetConfig, statistics: Statistics | None = None) -> Iterator[Supernet]:
        """Activates a sub-net inside the `with` block and the largest one after it."""
        self.activate(config, statistics)
        try:
            yield self
        finally:
            self.activate(self._largest)

    def units_of(self, config: SubnetConfig) -> dict[str, int]:
        """How many units of each group a canonical config keeps."""
        whole = self._largest
        return {
            name: config[knob] * group.units // whole[knob]
            if (knob := self.knob_of.get(name))
            else group.units
            for name, group in self.groups.items()
        }

    def skipped_in(self, config: SubnetConfig) -> list[str]:
        """The blocks that a canonical config skips."""
        return [block for block in self.blocks if config[self.depth_of[block]] == 0]

    def respace(
        self,
        space: SearchSpace,
        costs: CostTable,
        *,
        knob_of: Mapping[str, str],
        depth_of: Mapping[str, str],
    ) -> None:
        """Puts other knobs over the same groups and blocks; blocks without a knob always run.

        Args:
            space: of the new knobs; the largest choice of a group's knob stands for all of its units.
            costs: over that space.
            knob_of: the knob of each group that may shrink.
            depth_of: the knob of each block that may be skipped.
        """
        self.activate(self._largest)
        self.space, self.costs, self.knob_of = space, costs, dict(knob_of)
        self.blocks, self.depth_of = tuple(depth_of), dict(depth_of)
        self._largest = space.largest()
        self.activate(self._largest)

    def unit_sums(self, group: str, path: str, values: Tensor, side: str = "out") -> Tensor:
        """Adds up one value per channel of a layer over the units of a group.

        Args:
            group: name of the group.
            path: a writer (side "out") or reader (side "in") of it.
            values: `[channels of that side of the layer]`.
            side: "out" or "in".

        Returns:
            float64 `[group.units]`.
        """
        site = self.sites[path]
        channel_map = site.writes if side == "out" else site.reads
        if channel_map is None or group not in channel_map.groups or side not in ("out", "in"):
            raise InvalidInput(f"layer {path!r} has no channels of group {group!r} on side {side!r}")
        if len(values) != channel_map.size:
            raise InvalidInput(
                f"layer {path!r} has {channel_map.size} channels there, got {len(values)} values"
            )
        array = values.detach().to("cpu", torch.float64).numpy()
        return torch.from_numpy(channel_map.sum_per_unit(group, array, self.groups[group].units))

    @torch.no_grad()
    def reorder(self, ranking: Ranking) -> None:
        """Sorts the units of every ranked group, best first, without changing the function.

        Args:
            ranking: for each group the order over its units, `[group.units]`, best first; groups that are
                not named stay as they are.

        Raises:
            InvalidInput: a group that is unknown, or an order that is no permutation. Nothing is changed then.
        """
        orders = {name: self._checked_order(name, order) for name, order in ranking.items()}
        for path, site in self.sites.items():
            _permute(self.model.get_submodule(path), site, orders)
        if isinstance(self.model, RunsGraph):
            for name, maps in self.model.graph_form.parameters.items():
                tensor = tensor_of(self.model, name)
                for axis, channel_map in maps.items():
                    order = torch.from_numpy(channel_map.permutation(orders)).to(tensor.device)
                    tensor.copy_(tensor.index_select(axis, order))

    def _checked_order(self, name: str, order: Tensor) -> np.ndarray:
        if name not in self.groups:
            raise InvalidInput(
                f"ranking names the unknown group {name!r}; known are {', '.join(self.groups)}"
            )
        array: np.ndarray = np.asarray(torch.as_tensor(order).cpu())
        units = self.groups[name].units
        if array.shape != (units,) or not np.array_equal(np.sort(array), np.arange(units)):
            raise InvalidInput(
                f"the order of group {name!r} must be a permutation of its {units} units, got {order}"
            )
        return array


def active_part(layer: nn.Module | ElasticLayer, site: Site, units: Mapping[str, int]) -> Active:
    """What a layer keeps when each group keeps so many units."""
    inputs, num_inputs = _kept(site.reads, units)
    outputs, num_outputs = _kept(site.writes, units)
    if not isinstance(layer, PaddedShortcut):
        return Active(inputs, outputs, num_inputs, num_outputs)
    arrived = torch.full((layer.in_channels + 1,), -1)  # the last entry stands for "zero"
    kept_inputs = torch.arange(layer.in_channels)[inputs if inputs is not None else slice(None)]
    arrived[kept_inputs] = torch.arange(num_inputs)
    sources = layer.sources.cpu()[outputs if outputs is not None else slice(None)]
    return Active(inputs, outputs, num_inputs, num_outputs, arrived[sources])


def _kept(channel_map: ChannelMap | None, units: Mapping[str, int]) -> tuple[Kept, int]:
    if channel_map is None:
        return None, 0
    kept = channel_map.kept(units)
    if kept is None:
        return None, channel_map.size
    return kept, kept.stop if isinstance(kept, slice) else len(kept)


def _permute(layer: nn.Module, site: Site, orders: Mapping[str, np.ndarray]) -> None:
    inputs = None if site.reads is None else torch.from_numpy(site.reads.permutation(orders))
    outputs = None if site.writes is None else torch.from_numpy(site.writes.permutation(orders))
    if isinstance(layer, PaddedShortcut) and inputs is not None and outputs is not None:
        arrived = torch.cat([inputs.argsort(), torch.tensor([-1])])  # old input position -> new one
        layer.sources.copy_(arrived[layer.sources.cpu()[outputs]])
        return
    per_channel = outputs if outputs is not None else inputs  # norms write nothing of their own
    groups = getattr(layer, "groups", 1)
    two_sided = inputs is not None and outputs is not None and (groups == 1 or makes_thinner(layer))
    followed = getattr(layer, "followed", None)
    for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if followed is not None:
            if name in followed and inputs is not None:
                tensor.copy_(tensor.index_select(followed[name], inputs.to(tensor.device)))
        elif tensor.ndim > 0 and per_channel is not None:
            in_order = tensor.index_select(0, per_channel.to(tensor.device))
            if name == "weight" and two_sided and inputs is not None:
                in_order = in_order.index_select(1, inputs[: len(inputs) // groups].to(tensor.device))
            tensor.copy_(in_order)
