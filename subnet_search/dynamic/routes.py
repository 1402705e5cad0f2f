"""The sub-nets among which gates choose: they agree on all that is computed before a choice is made."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.dynamic.cutting import Place
from subnet_search.elastic.supernet import Supernet

Decisions = tuple[int, ...]  # one number for each gate passed so far
MOST_ROUTES = 32


@dataclass(frozen=True)
class Routes:
    """Sub-nets by the decisions that lead to them.

    Attributes:
        paths: of the modules after which the gates stand, in forward order.
        configs: one for each full row of decisions; with every gate, 0 is the cheapest choice.
    """

    paths: tuple[str, ...]
    configs: Mapping[Decisions, SubnetConfig]

    def __post_init__(self) -> None:
        if len(set(self.configs.values())) < 2:
            raise InvalidInput(
                f"a gate needs at least two different sub-nets to choose from, got {len(set(self.configs.values()))}; "
                "let widths go lower (least_share, [elastic] min_share), or set the gate earlier"
            )
        if len(self.configs) > MOST_ROUTES:
            raise InvalidInput(
                f"gates may lead to up to {MOST_ROUTES} sub-nets, as each is a network of its own, got "
                f"{len(self.configs)}; use fewer choices or fewer gates"
            )

    @property
    def leaves(self) -> tuple[Decisions, ...]:
        """All full rows of decisions, in order."""
        return tuple(sorted(self.configs))

    @property
    def prefixes(self) -> tuple[Decisions, ...]:
        """Where a gate decides: the decisions before it."""
        return tuple(sorted({leaf[:depth] for leaf in self.configs for depth in range(len(self.paths))}))

    def choices(self, prefix: Decisions) -> int:
        """How many choices the gate after `prefix` has."""
        depth = len(prefix)
        return len({leaf[depth] for leaf in self.configs if leaf[:depth] == prefix})


def uniform_routes(
    supernet: Supernet,
    places: Sequence[Place],
    count: int = 4,
    least_share: float = 0.25,
    head_share: float = 1.0,
) -> Routes:
    """Uniform widths behind each gate, `count` of them; widths before the first gate are those of `head_share`.

    With one gate it decides on all that follows; with several, each on what lies before the next one.

    Raises:
        InvalidInput: a share that is none, or fewer than two different sub-nets.
    """
    if count < 2:
        raise InvalidInput(f"a gate needs at least two sub-nets to choose from, got count={count}")
    space = supernet.space
    shares = np.linspace(least_share, 1.0, count)
    levels = [space.uniform(float(share)) for share in shares]
    if sorted({place.macs_share for place in places}) != [place.macs_share for place in places]:
        raise InvalidInput(
            f"gates must stand one behind the other, got {', '.join(place.path for place in places)}; give each place "
            "once, in forward order"
        )
    head = space.uniform(head_share)
    settled = [place.knobs for place in places]
    configs: dict[Decisions, SubnetConfig] = {}
    for leaf in itertools.product(range(count), repeat=len(places)):
        values = {}
        for knob in space.knobs:
            open_at = [
                i for i, knobs in enumerate(settled) if knob.name not in knobs
            ]  # the last gate decides
            values[knob.name] = (levels[leaf[open_at[-1]]] if open_at else head)[knob.name]
        configs[leaf] = space.canonical(SubnetConfig(values))
    return Routes(tuple(place.path for place in places), configs)


def routes_among(supernet: Supernet, place: Place, configs: Sequence[SubnetConfig]) -> Routes:
    """Given sub-nets, cheapest first, behind one gate.

    Raises:
        InvalidInput: they differ before the gate, or fewer than two are different.
    """
    space = supernet.space
    canonical = list(dict.fromkeys(space.canonical(config) for config in configs))
    differing = sorted(name for name in place.knobs if len({config.get(name) for config in canonical}) > 1)
    if differing:
        raise InvalidInput(
            f"sub-nets that part after {place.path!r} must agree on what comes before, but they differ in "
            f"{', '.join(differing[:5])}; set the gate earlier, or choose others"
        )
    if canonical:
        macs = supernet.costs.macs(space.encode(canonical))
        canonical = [canonical[i] for i in np.argsort(macs, kind="stable")]
    return Routes((place.path,), {(k,): config for k, config in enumerate(canonical)})


def agreeing(place: Place, configs: Sequence[SubnetConfig]) -> list[SubnetConfig]:
    """The largest set of sub-nets, of a front say, that agree on all before a place."""
    sets: dict[tuple[int, ...], list[SubnetConfig]] = {}
    for config in configs:
        sets.setdefault(tuple(config[name] for name in sorted(place.knobs)), []).append(config)
    return max(sets.values(), key=len, default=[])
