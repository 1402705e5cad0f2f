"""From a plain network to a supernet."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from search_spaces import InvalidInput, Knob, SearchSpace, SubnetConfig, nearest_names
from subnet_search.elastic.coverage import describe
from subnet_search.elastic.extraction import tensors_in
from subnet_search.elastic.flow import Flow, matches
from subnet_search.elastic.graph import Example, Traced, at_batch_one, call_arguments, copied, trace
from subnet_search.elastic.groups import Group, Grouping, compile_groups
from subnet_search.elastic.layers import ElasticBatchNorm, make_layer_elastic, make_skippable
from subnet_search.elastic.pricing import Pricing
from subnet_search.elastic.residual import skippable_blocks
from subnet_search.elastic.rules import follow
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings


class EmptySpaceError(InvalidInput):
    """Nothing in the model can be made elastic."""


def make_elastic(model: nn.Module, example: Example, settings: ElasticSettings | None = None) -> Supernet:
    """Finds out which channels of a network are coupled and which blocks may be skipped, and makes a supernet.

    The model given is left untouched. The largest sub-net computes bit for bit what the model computes.

    Args:
        model: any network whose forward can be traced.
        example: one input (a tensor, a tuple, or a dict of keyword arguments) of the size to be used; costs
            are stated for its first row.
        settings: which widths to offer, and what to leave alone.

    Raises:
        UntraceableModelError: the outermost forward cannot be followed.
        EmptySpaceError: nothing is elastic; the message lists the reasons.
        InvalidInput: the model does not run on the example, or the settings do not fit the model.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, got {type(model).__name__}")
    settings = settings or ElasticSettings()
    _check_patterns(model, settings)
    example = at_batch_one(example)
    excluded: dict[str, str] = {}
    while True:
        supernet, traced = _convert(model, example, settings, excluded)
        broken = _check(supernet, model, also_training=bool(traced.uncalled))
        if not broken:
            return supernet
        excluded.update(broken)


def _convert(
    model: nn.Module, example: Example, settings: ElasticSettings, excluded: Mapping[str, str]
) -> tuple[Supernet, Traced]:
    traced = trace(model, example)
    flow = follow(traced, settings.include, settings.exclude)
    for path, reason in excluded.items():
        if path in flow.writes:
            flow.channels.freeze(flow.writes[path], reason)
    grouping = compile_groups(flow, lambda units, per_unit: width_choices(units, per_unit, settings))
    kept_whole = (*settings.exclude, *excluded)
    blocks = skippable_blocks(traced, kept_whole) if settings.depth else ()
    knob_of = _tie(grouping.groups, settings.tie)
    space = _space(grouping, knob_of, blocks, model)
    pricing = Pricing(grouping, knob_of, blocks)
    costs = pricing.table(space)
    elastic = copy.deepcopy(model)
    for path, module in elastic.named_modules():
        if path in grouping.sites or isinstance(module, nn.modules.batchnorm._BatchNorm):
            make_layer_elastic(module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, ElasticBatchNorm):
            raise InvalidInput(
                f"{path} is a {type(module).__name__}, whose statistics cannot be set for each sub-net; "
                f"use torch's BatchNorm1d, 2d or 3d there, or a sub-class that inherits their forward"
            )
    for block in blocks:
        make_skippable(elastic.get_submodule(block))
    coverage = describe(pricing, space, costs)
    listed = {entry["path"] for entry in coverage["fixed"]}
    coverage["fixed"] += [{"path": p, "reason": r} for p, r in excluded.items() if p not in listed]
    supernet = Supernet(
        elastic,
        space=space,
        costs=costs,
        groups=grouping.groups,
        knob_of=knob_of,
        sites=grouping.sites,
        blocks=blocks,
        coverage=coverage,
        example=example,
    )
    return supernet, traced


def _check_patterns(model: nn.Module, settings: ElasticSettings) -> None:
    """Refuses patterns that name nothing: a misspelt one would be ignored silently."""
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    for name in ("include", "exclude"):
        for pattern in getattr(settings, name):
            if not any(matches(path, (pattern,)) for path in paths):
                raise InvalidInput(
                    f"{name}={pattern!r} matches no module of {type(model).__name__}"
                    f"{nearest_names(pattern, paths)}; patterns are dotted paths such as {paths[:1]}"
                )


def width_choices(units: int, unit_channels: int, settings: ElasticSettings) -> tuple[int, ...]:
    """The widths a group offers, in channels of its first writer, ascending; the last is the full width.

    Multiples of `step` channels (of whole units) from `min_share` upwards; with `groups_per_layer` G, the G
    multiples of a G-th instead.
    """
    if not settings.width:
        return (units * unit_channels,)
    if settings.groups_per_layer:
        parts = settings.groups_per_layer
        chosen = {max(1, round(units * part / parts)) for part in range(1, parts + 1)}
        smallest = settings.min_share * units
        chosen = {c for c in chosen if c >= smallest} | {units}
    else:
        step = max(1, round(settings.step / unit_channels))
        first = max(step, -(-int(np.ceil(settings.min_share * units)) // step) * step)
        chosen = {*range(first, units, step), units}
    return tuple(c * unit_channels for c in sorted(chosen))


def _tie(groups: Mapping[str, Group], ties: Sequence[Sequence[str]]) -> dict[str, str]:
    """The knob of every group: its own name, or that of the first group it is tied to."""
    knob_of = {name: name for name in groups}
    for patterns in ties:
        tied = [name for name in groups if matches(name, patterns)]
        if len(tied) < 2:
            raise InvalidInput(
                f"tie={tuple(patterns)} must name at least two width groups, found {tied}; "
                f"groups are {', '.join(groups)}"
            )
        first, merged = groups[tied[0]], {knob_of[name] for name in tied}
        for name in tied[1:]:
            if (groups[name].choices, groups[name].units) != (first.choices, first.units):
                raise InvalidInput(
                    f"tied groups must offer the same widths: {first.name} has {first.choices}, "
                    f"{name} has {groups[name].choices}; tie groups of one size"
                )
        knob = next(name for name in groups if name in merged)
        knob_of = {name: knob if own in merged else own for name, own in knob_of.items()}
    return knob_of


def _space(
    grouping: Grouping, knob_of: Mapping[str, str], blocks: tuple[str, ...], model: nn.Module
) -> SearchSpace:
    knobs = [
        Knob(name, group.choices, "width") for name, group in grouping.groups.items() if knob_of[name] == name
    ]
    knobs += [Knob(block, (0, 1), "depth") for block in blocks]
    names = [knob.name for knob in knobs]
    if not knobs:
        reasons = sorted(set(_reasons(grouping.flow).values()))
        raise EmptySpaceError(
            f"nothing in {type(model).__name__} can be made elastic, so there is no sub-net to search: "
            + ("; ".join(reasons[:8]) or "it has no convolution and no linear layer")
        )
    clash = {name for name in names if names.count(name) > 1}
    if clash:
        raise InvalidInput(f"a width group and a block share the name {sorted(clash)}; rename the module")
    inactive: dict[str, set[tuple[str, ...]] | None] = defaultdict(set)
    for group, knob in knob_of.items():
        for path in (*grouping.groups[group].writers, *grouping.groups[group].readers):
            for node in grouping.flow.nodes.get(path, ()):
                around = tuple(p for p in node.meta["scope"] if p in blocks)
                conditions = inactive[knob]
                if not around:
                    inactive[knob] = None
                elif conditions is not None:
                    conditions.add(around)
    for block in blocks:
        around = tuple(p for p in blocks if block.startswith(f"{p}."))
        if around:
            inactive[block] = {around}
    return SearchSpace(tuple(knobs), {k: tuple(sorted(c)) for k, c in inactive.items() if c})


def _reasons(flow: Flow) -> dict[str, str]:
    found = {path: flow.channels.reason(int(ids[0])) for path, ids in flow.writes.items()}
    return {path: reason for path, reason in found.items() if reason}


@torch.no_grad()
def _check(supernet: Supernet, model: nn.Module, also_training: bool) -> dict[str, str]:
    """Runs the largest and the smallest sub-net.

    Args:
        supernet: fresh from conversion.
        model: what it was made from.
        also_training: also runs the smallest sub-net in training mode, in which more layers may be called.

    Returns:
        Paths of writers and blocks that the model's forward does not let shrink, with the reason; empty if all
        is well.
    """
    training = [(m, m.training) for root in (supernet, model) for m in root.modules()]
    try:
        args, kwargs = call_arguments(supernet.example)
        wanted = model.eval()(*args, **kwargs)
        args, kwargs = call_arguments(supernet.example)
        got = supernet.eval()(*args, **kwargs)
        pairs = zip(tensors_in(wanted), tensors_in(got), strict=True)
        if not all(torch.equal(answer, again) for answer, again in pairs):
            raise InvalidInput(
                f"{type(model).__name__} answers the same input differently in two calls, or depends on the type of "
                "its layers; in evaluation mode a model must be deterministic"
            )
        if _failure(supernet, supernet.space.smallest()) is not None:
            return _broken_parts(supernet)
        if not also_training or not _runs_in_training(model, supernet.example):
            return {}
        with torch.random.fork_rng(devices=[]):
            supernet.train()
            return _broken_parts(supernet) if _failure(supernet, supernet.space.smallest()) else {}
    finally:
        for module, mode in training:
            module.training = mode


def _failure(supernet: Supernet, config: SubnetConfig) -> str | None:
    args, kwargs = call_arguments(_twice(supernet.example) if supernet.training else supernet.example)
    try:
        with supernet.subnet(config):
            supernet(*args, **kwargs)
    except Exception as error:  # user code runs here: anything can come
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def _runs_in_training(model: nn.Module, example: Example) -> bool:
    """Whether the whole model itself takes such an example in training mode."""
    args, kwargs = call_arguments(_twice(example))
    try:
        with torch.random.fork_rng(devices=[]):
            copied(model).train()(*args, **kwargs)
    except Exception:  # user code runs here: anything can come
        return False
    return True


def _twice(example: Example) -> Example:
    """A batch of two, for batch norms in training mode."""
    repeated: Example = tree_map(
        lambda v: torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim > 0 else v, example
    )
    return repeated


def _broken_parts(supernet: Supernet) -> dict[str, str]:
    """Tries every knob by itself."""
    largest, broken = supernet.space.largest(), {}
    for knob in supernet.space.knobs:
        failure = _failure(supernet, SubnetConfig({**largest, knob.name: knob.smallest}))
        if failure is not None:
            tied = [g for g in supernet.groups.values() if supernet.knob_of[g.name] == knob.name]
            for path in [path for group in tied for path in group.writers] or [knob.name]:
                broken[path] = f"the model's forward fails when it shrinks: {failure}"
    if not broken:
        raise InvalidInput(
            "the smallest sub-net does not run though every knob can be lowered alone: "
            f"{_failure(supernet, supernet.space.smallest())}; raise min_share or exclude layers"
        )
    return broken
