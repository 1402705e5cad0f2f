"""Spaces of few knobs over a converted network: halves of stages that are skipped as one, and branches of channels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, Knob, SearchSpace
from search_spaces.presets import BRANCH_KNOB, SkipPaths, tied_costs
from subnet_search.elastic.branches import TriangularNet, make_triangular
from subnet_search.elastic.graph import Example
from subnet_search.elastic.knobs import EmptySpaceError
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.sub_paths import find_skip_paths
from subnet_search.elastic.supernet import Branches, Supernet
from subnet_search.elastic.switchable import add_switchable_norms
from subnet_search.elastic.triangular import TriangularConv2d, TriangularLinear
from subnet_search.settings import ElasticSettings

Convert = Callable[[nn.Module, Example, ElasticSettings], Supernet]
SAME = 1e-4  # relative to the largest answer: what a sub-net may differ from the branches of the one pass


def _one_by_one(settings: ElasticSettings) -> ElasticSettings:
    """The settings of the ordinary conversion on which the few knobs are put."""
    branches = settings.branches
    return settings.model_copy(
        update={
            "form": "own classes",
            "adaptive_depth": False,
            "branches": None,
            "width": branches is not None,
            "groups_per_layer": branches,
            "min_share": settings.min_share if branches is None else 1 / branches,
        }
    )


def restructured(model: nn.Module, example: Example, settings: ElasticSettings, convert: Convert) -> Supernet:
    """A supernet with the knobs of `settings.adaptive_depth` and `settings.branches` in place of its own.

    Args:
        model: the network; it stays as it is.
        example: an input of it at batch 1.
        settings: what is asked for.
        convert: the ordinary conversion, to the model's own classes.

    Raises:
        InvalidInput: the network has no such stages, or its layers no such branches.
    """
    triangular = None if settings.branches is None else _branches_of(model, example, settings.branches)
    try:
        supernet = convert(model, example, _one_by_one(settings))
    except EmptySpaceError as error:
        if settings.branches is not None:
            raise
        raise EmptySpaceError(
            f"adaptive depth needs residual blocks that may be skipped, and {type(model).__name__} has none; leave "
            "adaptive_depth out"
        ) from error
    paths = find_skip_paths(supernet) if settings.adaptive_depth else None
    depth_of = {block: block for block in supernet.blocks}
    if paths is not None:
        depth_of = {block: stage.skippable[0] for stage in paths.stages for block in stage.skippable}
    _respace(supernet, settings.branches, depth_of)
    if paths is not None:
        supernet.sub_paths = SkipPaths(supernet.space, paths.stages)
        add_switchable_norms(supernet, {stage.skippable[:1]: stage.mandatory for stage in paths.stages})
        supernet.coverage["sub_paths"] = [
            {"knob": s.skippable[0], "mandatory": list(s.mandatory), "skippable": list(s.skippable)}
            for s in paths.stages
        ]
    if triangular is not None:
        _keep_below_the_diagonal(supernet, triangular)
        _check_same(supernet, triangular)
    return supernet


def _respace(supernet: Supernet, branches: int | None, depth_of: Mapping[str, str]) -> None:
    old = supernet.space
    knobs = [] if branches is None else [Knob(BRANCH_KNOB, tuple(range(1, branches + 1)), "branch")]
    knobs += [Knob(name, (0, 1), "depth") for name in dict.fromkeys(depth_of.values())]
    kept = {knob.name for knob in knobs}
    inactive = {
        name: tuple(place for place in places if set(place) <= kept)
        for name, places in old.inactive_when.items()
        if name in kept and name != BRANCH_KNOB
    }
    space = SearchSpace(tuple(knobs), {name: places for name, places in inactive.items() if places})
    meaning: dict[str, tuple[str | None, int]] = {}
    for knob, divisor in zip(old.knobs, supernet.costs.divisors, strict=True):
        if knob.kind == "depth":
            meaning[knob.name] = (depth_of[knob.name], 1) if knob.name in depth_of else (None, 1)
        else:
            meaning[knob.name] = _share_of_units(knob.name, knob.largest // divisor, branches)
    costs = tied_costs(supernet.costs, space, meaning)
    knob_of = dict.fromkeys(supernet.knob_of, BRANCH_KNOB)
    supernet.respace(space, costs, knob_of=knob_of, depth_of=depth_of)
    _tell(supernet)


def _share_of_units(name: str, units: int, branches: int | None) -> tuple[str | None, int]:
    if branches is None:
        return None, units
    if units % branches:
        raise InvalidInput(
            f"the {units} units of {name} do not fall into {branches} equal groups; take a number of branches that "
            "divides all widths"
        )
    return BRANCH_KNOB, units // branches


def _tell(supernet: Supernet) -> None:
    """Corrects what coverage says of knobs."""
    space, coverage = supernet.space, supernet.coverage
    ends = space.encode([space.smallest(), space.largest()])
    macs, params = supernet.costs.macs(ends).tolist(), supernet.costs.params(ends).tolist()
    for group in coverage["groups"]:
        group["knob"] = BRANCH_KNOB
    coverage["blocks"] = [{"knob": knob, "path": path} for path, knob in supernet.depth_of.items()]
    coverage["smallest"] = {"macs": macs[0], "params": params[0]}
    coverage["largest"] = {"macs": macs[1], "params": params[1]}
    coverage["subnets"] = space.size
    if BRANCH_KNOB not in space.names:  # what blocks without a knob do is not to be had for less any more
        coverage["reachable_macs_share"] = 1 - macs[0] / macs[1]


def _branches_of(model: nn.Module, example: Example, branches: int) -> TriangularNet:
    if not isinstance(example, Tensor):
        raise InvalidInput(
            f"a network in branches takes one tensor, got an example of type {type(example).__name__}"
        )
    return make_triangular(copy.deepcopy(model).eval(), example, branches)


def _keep_below_the_diagonal(supernet: Supernet, net: TriangularNet) -> None:
    """Sets the weights above the diagonal to zero, where all their gradients are dropped from now on."""
    allowed = {
        path: layer.allowed
        for path, layer in net.body.named_modules()
        if isinstance(layer, TriangularConv2d | TriangularLinear) and layer.allowed is not None
    }
    for path, pattern in allowed.items():
        weight: Any = supernet.model.get_submodule(path).weight
        with torch.no_grad():
            weight.mul_(pattern.to(weight))
        if weight.requires_grad:
            weight.register_hook(lambda grad, pattern=pattern: grad * pattern.to(grad))
    for path, layer in net.body.named_modules():
        if isinstance(layer, PaddedShortcut):  # zeros stand beside each group now
            shortcut: Any = supernet.model.get_submodule(path)
            shortcut.sources.copy_(layer.sources)
    supernet.activate(supernet.active)
    supernet.branches = Branches(net.branches, net.head_path, allowed, net.row_macs)
    supernet.coverage["branches"] = {
        "count": net.branches,
        "row_macs": list(net.row_macs),
        "input": list(net.example.shape[1:]),
    }


@torch.no_grad()
def _check_same(supernet: Supernet, net: TriangularNet) -> None:
    """Holds every sub-net of all blocks against the branches that one pass gives, on random statistics."""
    trial, generator = copy.deepcopy(supernet).eval(), torch.Generator().manual_seed(0)
    norms: dict[str, Any] = dict(trial.batch_norms)
    for norm in norms.values():
        norm.running_mean.uniform_(-0.5, 0.5, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)
    x = torch.randn((2, *net.example.shape[1:]), generator=generator).to(net.example)
    answers = all_branches(trial, x)
    whole = trial.space.largest()
    for k, answer in enumerate(answers, start=1):
        with trial.subnet(trial.space.canonical({**whole, BRANCH_KNOB: k})):
            own = trial(x)
        if not (own - answer).abs().max() <= SAME * max(1.0, float(own.abs().max())):
            raise InvalidInput(
                f"the first {k} of {len(answers)} branches compute something else by themselves than in the one pass "
                "of all: something in the network's forward mixes the channels of all groups"
            )


def all_branches(supernet: Supernet, x: Tensor) -> list[Tensor]:
    """Logits `[B, num_classes]` of the first 1 to K branches from one pass, at the blocks that are active.

    Raises:
        InvalidInput: the supernet is not in branches, or not all of them are active.
    """
    branches = supernet.branches
    if branches is None or supernet.active[BRANCH_KNOB] != branches.count:
        raise InvalidInput(
            "the answers of all branches come from one pass through all of them; convert with "
            "ElasticSettings(branches=K) and activate a config with all branches"
        )
    head: Any = supernet.model.get_submodule(branches.head)
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        whole: Tensor = supernet(x)
    finally:
        handle.remove()
    features, part = seen[-1], head.in_features // branches.count
    thin = [
        nn.functional.linear(features[:, : k * part], head.weight[:, : k * part], head.bias)
        for k in range(1, branches.count)
    ]
    return [*thin, whole]
