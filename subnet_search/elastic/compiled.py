"""What both ways of conversion share: groups and blocks at each size of images, the space, costs and coverage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from search_spaces import RESOLUTION_KNOB, CostTable, SearchSpace
from subnet_search.elastic.coverage import INPUT, describe
from subnet_search.elastic.flow import Flow
from subnet_search.elastic.graph import Example
from subnet_search.elastic.groups import Grouping, compile_groups
from subnet_search.elastic.knobs import rules_of, span_space, tie_groups, why_whole, width_choices
from subnet_search.elastic.operations.graph_form import GraphForm
from subnet_search.elastic.operations.label_flow import LabelFlow
from subnet_search.elastic.residual import skippable_blocks
from subnet_search.elastic.resolutions import Look, Resolutions, find_resolutions
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings


@dataclass(frozen=True)
class Compiled:
    """What both ways of conversion share once channels have been followed."""

    whole: Look
    resolutions: Resolutions
    knob_of: Mapping[str, str]
    space: SearchSpace
    costs: CostTable
    coverage: dict[str, Any]

    def supernet(
        self, elastic: nn.Module, example: Example, forms: Mapping[int, GraphForm] | None = None
    ) -> Supernet:
        """The supernet around an elastic copy of the model; in graph form `forms` are those of smaller sizes."""
        return Supernet(
            elastic,
            space=self.space,
            costs=self.costs,
            groups=self.whole.grouping.groups,
            knob_of=self.knob_of,
            sites=self.whole.grouping.sites,
            blocks=self.whole.blocks,
            coverage=self.coverage,
            example=example,
            sizes_px=self.resolutions.sizes_px,
            lower_forms=forms or {},
        )


def grouped(
    flow: Flow | LabelFlow, settings: ElasticSettings, excluded: Mapping[str, str]
) -> tuple[Grouping, tuple[str, ...]]:
    """The width groups of the channels that were followed, and the blocks that may be skipped."""
    grouping = compile_groups(
        flow,
        lambda units, per, writers: width_choices(units, per, settings, writers),
        lambda units, per, writers: why_whole(units, per, settings, writers),
    )
    kept_whole = (*settings.exclude, *excluded)
    return grouping, skippable_blocks(flow.traced, kept_whole) if settings.depth else ()


def compiled(
    model: nn.Module,
    example: Example,
    settings: ElasticSettings,
    excluded: Mapping[str, str],
    look: Callable[[Example], Look],
) -> Compiled:
    """Looks at a network at the size of its example and at every smaller one that the settings ask for.

    Args:
        model: to be converted.
        example: at batch 1.
        settings: what to make elastic.
        excluded: what turned out to be unable to shrink, with the reason.
        look: one look, of the way of conversion.
    """
    whole = look(example)
    knob_of = tie_groups(whole.grouping.groups, settings.tie)
    resolutions = find_resolutions(model, example, settings.resolution, excluded, whole, look)
    space = span_space(whole.grouping, knob_of, whole.blocks, model, resolutions.choices)
    pricing = whole.pricing(knob_of)
    costs = resolutions.table(pricing.table(space), knob_of, space)
    coverage = describe(pricing, space, costs)
    for entry in coverage["groups"]:
        entry["rules"] = rules_of(settings, entry["writers"])
    listed = {RESOLUTION_KNOB, *(entry["path"] for entry in coverage["fixed"])}
    coverage["fixed"] += [{"path": p, "reason": r} for p, r in excluded.items() if p not in listed]
    coverage["fixed"] += [{"path": INPUT, "reason": reason} for reason in resolutions.refused]
    return Compiled(whole, resolutions, knob_of, space, costs, coverage)
