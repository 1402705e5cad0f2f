"""What is elastic in a network, what is not, and why: plain data for people and files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from search_spaces import CostTable, SearchSpace
from subnet_search.elastic.custom import rule_for
from subnet_search.elastic.freedoms import freedoms
from subnet_search.elastic.graph import Traced, enclosing
from subnet_search.elastic.operations.exported import Exported
from subnet_search.elastic.pricing import Pricing

NOT_CALLED = "not called in evaluation mode"
INPUT = "input"  # stands for a path where a size of images is not possible


def describe(pricing: Pricing, space: SearchSpace, costs: CostTable) -> dict[str, Any]:
    """The coverage table.

    Returns:
        `groups` (each with its `freedom`), `blocks`, `fixed` (path and reason), `reachable_macs_share` (of the
        multiply-adds, how many belong to operations that some width or depth changes), `smallest` and `largest` (macs,
        params), `resolution` (heights of images to choose from, in pixels), `subnets`, the exact number of sub-nets,
        `freedoms`, the kinds of groups with "depth" where blocks can be skipped and "resolution" where images can be
        smaller, `form`, what runs ("own classes" or "graph"), and `training`, what of the model's own training that
        leaves out.
    """
    heights = next((knob.choices for knob in space.knobs if knob.kind == "resolution"), ())
    knob_of = pricing.knob_of
    elastic_macs = total_macs = 0
    for terms in pricing.node_macs().values():
        macs = _at_largest(terms, space, costs)
        total_macs += macs
        elastic_macs += macs if any(terms) else 0  # a monomial names a knob
    ends = space.encode([space.smallest(), space.largest()])
    macs, params = costs.macs(ends).tolist(), costs.params(ends).tolist()
    kinds, traced = freedoms(pricing.grouping), pricing.flow.traced
    return {
        "groups": [
            {
                "knob": knob_of[group.name],
                "size": group.size,
                "units": group.units,
                "step": int(np.diff(group.choices).min()),
                "writers": list(group.writers),
                "readers": list(group.readers),
                "freedom": kinds[group.name],
            }
            for group in pricing.grouping.groups.values()
        ],
        "blocks": [{"knob": block, "path": block} for block in pricing.blocks],
        "fixed": [{"path": path, "reason": reason} for path, reason in fixed_reasons(pricing).items()],
        "reachable_macs_share": elastic_macs / total_macs if total_macs else 0.0,
        "smallest": {"macs": macs[0], "params": params[0]},
        "largest": {"macs": macs[1], "params": params[1]},
        "resolution": list(heights),
        "subnets": space.size,
        "freedoms": sorted(
            {
                *kinds.values(),
                *(["depth"] if pricing.blocks else []),
                *(["resolution"] if heights else []),
            }
        ),
        "form": "graph" if isinstance(traced, Exported) else "own classes",
        "training": _training(traced),
    }


def _training(traced: Traced) -> str:
    """What training runs, in one line.

    The graph is that of evaluation: dropout is written down in it, but what hands its input on leaves no trace.
    """
    if not isinstance(traced, Exported):
        return "training runs the model's own forward"
    seen = {path for node in traced.graph.nodes for path in node.meta["scope"]}
    lost: Counter[str] = Counter()
    for path, module in traced.model.named_modules():
        if not traced.parts.isdisjoint(enclosing(path)):
            continue  # what is called as it is trains as it is
        chances = [getattr(module, name, 0) for name in ("p", "drop_prob")]
        if isinstance(module, nn.MultiheadAttention) and module.dropout > 0:
            lost["the dropout inside of MultiheadAttention"] += 1
        elif path not in seen and any(isinstance(p, int | float) and p > 0 for p in chances):
            lost[type(module).__name__] += 1
    if not lost:
        return "training runs the graph of evaluation, dropout included"
    told = ", ".join(f"{kind} ({count}x)" for kind, count in lost.items())
    return f"training runs the graph of evaluation: dropout stays, but without {told}"


def fixed_reasons(pricing: Pricing) -> dict[str, str]:
    """Why each layer of which some output channel is in every sub-net is so."""
    flow = pricing.flow
    reasons: dict[str, str] = dict(flow.traced.opaque)
    for path, ids in flow.writes.items():
        found = (flow.channels.reason(channel) for channel in ids.tolist())
        reason = next((reason for reason in found if reason), None)
        if reason is not None:
            reasons[path] = reason
    for path in flow.traced.uncalled:
        reasons.setdefault(path, NOT_CALLED)
    for node in flow.traced.graph.nodes:
        if node.op == "call_module" and str(node.target) not in flow.writes.keys() | flow.reads.keys():
            layer = flow.module(node)
            if any(True for _ in layer.parameters()) and rule_for(layer) is None:
                reasons.setdefault(str(node.target), f"no rule for {type(layer).__name__}")
    return reasons


def _at_largest(terms: Mapping[tuple[str, ...], int], space: SearchSpace, costs: CostTable) -> int:
    largest = space.largest()
    unit = dict(zip(costs.knobs, costs.divisors, strict=True))
    return sum(
        coefficient * math.prod(largest[name] // unit[name] for name in monomial)
        for monomial, coefficient in terms.items()
    )
