"""From a plain network to a supernet."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from search_spaces import InvalidInput, nearest_names
from subnet_search.elastic.coverage import describe
from subnet_search.elastic.flow import matches
from subnet_search.elastic.graph import Example, Traced, at_batch_one, trace
from subnet_search.elastic.groups import compile_groups
from subnet_search.elastic.knobs import span_space, tie_groups, width_choices
from subnet_search.elastic.layers import ElasticBatchNorm, make_layer_elastic, make_skippable
from subnet_search.elastic.pricing import Pricing
from subnet_search.elastic.residual import skippable_blocks
from subnet_search.elastic.rules import follow
from subnet_search.elastic.states import check_sized
from subnet_search.elastic.supernet import Supernet
from subnet_search.elastic.trial import unshrinkable
from subnet_search.settings import ElasticSettings


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
    check_sized(model)
    settings = settings or ElasticSettings()
    _check_patterns(model, settings)
    example = at_batch_one(example)
    excluded: dict[str, str] = {}
    while True:
        supernet, traced = _convert(model, example, settings, excluded)
        broken = unshrinkable(supernet, model, also_training=bool(traced.uncalled))
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
    knob_of = tie_groups(grouping.groups, settings.tie)
    space = span_space(grouping, knob_of, blocks, model)
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
