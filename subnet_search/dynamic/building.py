"""From a supernet and routes to a network with gates, each route with batch-norm statistics of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces import InvalidInput
from subnet_search.batches import moved
from subnet_search.dynamic.cutting import cut, example_of, places
from subnet_search.dynamic.gates import DoubleHeadedGate
from subnet_search.dynamic.routes import Decisions, Routes
from subnet_search.dynamic.slimming import SlimmingNet, name_of
from subnet_search.elastic import Supernet, extract, recalibrate
from subnet_search.elastic.image_size import as_taken


@dataclass(frozen=True, eq=False)
class Slimming:
    """A network with gates, and what it is made of.

    Attributes:
        net: ready to run; its gates are untrained at first.
        plain: the sub-net of every route as a network of its own, which shares its tensors with `net`.
        routes: the configs.
        largest_macs: of the whole network, to which shares refer.
    """

    net: SlimmingNet
    plain: Mapping[Decisions, nn.Module]
    routes: Routes
    largest_macs: int

    def shares(self) -> Tensor:
        """Multiply-adds along each leaf, gates included, the whole network's being 1: `[num_leaves]`."""
        return torch.tensor(self.net.macs, dtype=torch.float64) / self.largest_macs


def make_slimming(
    supernet: Supernet,
    routes: Routes,
    calibration: Sequence[Any],
    *,
    hidden: int = 32,
    attention: bool = False,
    values: bool = False,
    seed: int = 0,
) -> Slimming:
    """Cuts each route's sub-net in parts and joins those of all routes by gates.

    Args:
        supernet: trained; left as it is.
        routes: what the gates choose among.
        calibration: batches of training images without augmentation, for every route's own statistics.
        hidden: units of a gate.
        attention: whether gates weigh channels, too.
        values: whether gates say how likely each choice is to be right; for `DynamicSettings.loss` "values".
        seed: of the gates' first weights.

    Raises:
        InvalidInput: a network cannot be cut there, or routes differ before the gate.
    """
    plain = {
        leaf: extract(supernet, config, statistics=recalibrate(supernet, config, calibration)).eval()
        for leaf, config in routes.configs.items()
    }
    space = supernet.space
    rows = [routes.configs[leaf] for leaf in routes.leaves]
    macs = dict(zip(routes.leaves, supernet.costs.macs(space.encode(rows)).tolist(), strict=True))
    largest_macs = int(supernet.costs.macs(space.encode([space.largest()]))[0])
    axes = {place.path: place.axis for place in places(supernet)}
    parts = parts_of(plain, routes.paths, example_of(supernet))
    features = features_of(parts, example_of(supernet), next(iter(plain.values())))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gates = {
            prefix: DoubleHeadedGate(
                features[prefix].shape[axes[routes.paths[len(prefix)]]],
                axes[routes.paths[len(prefix)]],
                mean_costs(prefix, routes.choices(prefix), macs, largest_macs),
                hidden,
                attention,
                values,
            )
            for prefix in routes.prefixes
        }
    net = assemble(plain, parts, gates, macs)
    with torch.no_grad():
        for prefix, pooled in _pooled(net, calibration).items():
            net.gate(prefix).standardise(pooled)
    return Slimming(net, plain, routes, largest_macs)


def assemble(
    plain: Mapping[Decisions, nn.Module],
    parts: Mapping[Decisions, nn.Module],
    gates: Mapping[Decisions, DoubleHeadedGate],
    macs: Mapping[Decisions, int],
) -> SlimmingNet:
    """Parts and gates as one net.

    Args:
        plain: the sub-nets that the parts are of.
        parts: as in `parts_of`.
        gates: by the decisions before them.
        macs: of each sub-net, without gates.
    """
    with_gates = {
        leaf: int(cost) + sum(gates[leaf[:depth]].macs() for depth in range(len(leaf)))
        for leaf, cost in macs.items()
    }
    net = SlimmingNet(parts, gates, with_gates)
    net.parts.requires_grad_(False)
    first = next(iter(plain.values()))
    if (size_px := getattr(first, "input_px", None)) is not None:
        net.input_px = size_px
    return net


def mean_costs(
    prefix: Decisions, choices: int, macs: Mapping[Decisions, int], largest_macs: int
) -> list[float]:
    """What each choice of a gate costs, on the average over later choices, as a share of the largest net."""
    depth = len(prefix)
    found = []
    for choice in range(choices):
        behind = [cost for leaf, cost in macs.items() if leaf[: depth + 1] == (*prefix, choice)]
        found.append(sum(behind) / len(behind) / largest_macs)
    return found


def parts_of(
    plain: Mapping[Decisions, nn.Module], paths: Sequence[str], example: Tensor
) -> dict[Decisions, fx.GraphModule]:
    """The parts of all routes' sub-nets by the decisions before them.

    Raises:
        InvalidInput: two sub-nets compute something else before a gate decides between them.
    """
    parts: dict[Decisions, fx.GraphModule] = {}
    for leaf, net in plain.items():
        for depth, part in enumerate(cut(net, paths, as_taken(net, example))):
            known = parts.setdefault(leaf[:depth], part)
            if known is not part and not _equal(known, part):
                where = f"before {paths[depth]!r}" if depth < len(paths) else "behind the last gate"
                raise InvalidInput(
                    f"two routes compute something else {where}, where they must agree; give them the same widths and "
                    "blocks there"
                )
    return parts


def _equal(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    first, second = one.state_dict(), other.state_dict()
    same = one.code == other.code and first.keys() == second.keys()
    return same and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@torch.no_grad()
def features_of(
    parts: Mapping[Decisions, nn.Module], example: Tensor, net: nn.Module
) -> dict[Decisions, Tensor]:
    """What comes out of every part for an example."""
    found: dict[Decisions, Tensor] = {}
    for prefix in sorted(parts, key=len):
        before = found[prefix[:-1]] if prefix else as_taken(net, example)
        found[prefix] = parts[prefix](before.clone())
    return found


def _pooled(net: SlimmingNet, batches: Iterable[Any]) -> dict[Decisions, Tensor]:
    """What each gate reads of some images, `[num_images, C]`."""
    found: dict[Decisions, list[Tensor]] = {}
    device = next(net.parameters()).device
    for images, _ in batches:
        for prefix, pooled in net.unfold(moved(as_taken(net, images), device)).pooled.items():
            found.setdefault(prefix, []).append(pooled)
    return {prefix: torch.cat(parts) for prefix, parts in found.items()}


@torch.no_grad()
def recalibrate_behind_gates(net: SlimmingNet, batches: Sequence[Any]) -> None:
    """Measures the batch-norm statistics of every part behind a gate anew, once attention heads weigh what it gets."""
    device = next(net.parameters()).device
    heads = [net.parts[name_of(())](moved(as_taken(net, images), device)) for images, _ in batches]
    _recalibrate_from(net, (), heads)


def share_statistics(slimming: Slimming, example: Tensor) -> None:
    """Gives the sub-nets in `plain` the statistics of the parts that stand for them, where these were measured anew.

    Args:
        slimming: changed in place.
        example: one image.
    """
    for leaf, plain in slimming.plain.items():
        for depth, own in enumerate(cut(plain, slimming.routes.paths, as_taken(plain, example))):
            own.load_state_dict(slimming.net.parts[name_of(leaf[:depth])].state_dict())


def _recalibrate_from(net: SlimmingNet, prefix: Decisions, features: list[Tensor]) -> None:
    if name_of(prefix) not in net.gates:
        return
    gate = net.gate(prefix)
    weighed = [gate(batch)[1] for batch in features]
    for choice in range(gate.num_choices):
        part = net.parts[name_of((*prefix, choice))]
        norms = [m for m in part.modules() if getattr(m, "running_mean", None) is not None]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()  # type: ignore[operator]
            norm.momentum = None  # type: ignore[assignment]
            norm.train()
        after = [part(batch.clone()) for batch in weighed]
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
        _recalibrate_from(
            net, (*prefix, choice), [part(batch.clone()) for batch in weighed] if norms else after
        )
