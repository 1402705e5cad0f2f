"""Sub-nets chosen for their latency are timed again before anything is spent on them; who fails a limit is replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from search_spaces import SubnetConfig, SubnetSearchError
from subnet_search.measure import Latency, SubnetLatency
from subnet_search.measure.noise import shared_ranks
from subnet_search.measure.runtimes import RUNTIMES
from subnet_search.measure.timing import Protocol
from subnet_search.measuring import measured_or_why
from subnet_search.record import Evaluation, ParetoFront
from subnet_search.settings import LATENCY
from subnet_search.workbench import Workbench

AGAIN = "latency_again.json"
CAREFULLY = Protocol(narrow=0.01, least_rounds=24, most_rounds=400, most_seconds=4.0)

Choose = Callable[[ParetoFront], list[Evaluation]]


def choose_measured(bench: Workbench, front: ParetoFront, choose: Choose) -> list[Evaluation]:
    """The members that `choose` takes, by latencies that were measured again with more rounds.

    A search picks fast measurements, which were partly luck. So what is chosen is timed once more, its value in the
    front replaced, members that then fail the search's limit left out, and chosen anew, until all that is chosen was
    timed again. A member that cannot be timed, tried twice, is left out likewise. What was measured, and what failed
    with its reason, is kept in the run.

    Raises:
        SubnetSearchError: no member meets the limits any more.
    """
    if not bench.times_nets:
        return choose(front)
    again, failures = _stored(bench)
    protocol = RUNTIMES[bench.recipe.device.runtime].protocol
    protocol = protocol if bench.meter.profile["clock"] == "command" else CAREFULLY
    seed = bench.recipe.search.seed + 1  # another order of turns than in the search
    timer = SubnetLatency(bench.supernet, bench.meter, seed=seed, protocol=protocol)

    def look(config: SubnetConfig) -> Latency | None:
        if config.key not in again and config.key not in failures:
            found, reason = measured_or_why(lambda: timer.of(config), config.key, bench.say)
            if found is None:
                failures[config.key] = reason
            else:
                again[config.key] = found
            _store(bench, again, failures)
        return again.get(config.key)

    bound = bench.limits(bench.recipe.search.limits).get(LATENCY, float("inf"))
    members, failed = settled(front, choose, look, bound)
    for member, found in failed:
        if found is None:
            continue  # told when it failed
        bench.say(
            f"  {member.config.key} is replaced: {found.median_ms:.4g} ms when measured again, over the limit of "
            f"{bound:.4g}"
        )
    ties = tied([(member.config.key, again[member.config.key]) for member in members])
    _store(bench, again, failures, ties)
    if ties:
        bench.say(f"  not told apart in time: {'; '.join(' and '.join(keys) for keys in ties)}")
    return members


def settled(
    front: ParetoFront, choose: Choose, look: Callable[[SubnetConfig], Latency | None], bound_ms: float
) -> tuple[list[Evaluation], list[tuple[Evaluation, Latency | None]]]:
    """Chooses until all that is chosen was looked at again.

    Args:
        front: with the objective "latency_ms".
        choose: takes members of a front.
        look: times a sub-net again; None where that is not possible.
        bound_ms: that no member's latency may be above.

    Returns:
        The members chosen, with their new latencies, and those that turned out to be above the bound or without one.

    Raises:
        SubnetSearchError: none is left.
    """
    place = [objective.name for objective in front.objectives].index(LATENCY)
    left, seen = list(front), set[SubnetConfig]()
    failed: list[tuple[Evaluation, Latency | None]] = []
    while True:
        if not left:
            timed = [found.median_ms for _, found in failed if found is not None]
            if not timed:
                raise SubnetSearchError(
                    "none of the front's sub-nets could be timed again; see to the device, then go on"
                )
            fastest = min(timed)
            raise SubnetSearchError(
                f"no sub-net of the front has {LATENCY} <= {bound_ms:.4g} when it is measured again; the fastest takes "
                f"{fastest:.4g} ms. Search longer in a new run, or loosen the limit"
            )
        members = choose(ParetoFront.of(front.objectives, left))
        fresh = [member for member in members if member.config not in seen]
        if not fresh:
            return members, failed
        for member in fresh:
            found = look(member.config)
            seen.add(member.config)
            i = next(i for i, one in enumerate(left) if one.config == member.config)
            if found is None or found.median_ms > bound_ms:
                failed.append((left.pop(i), found))
                continue
            values = list(left[i].values)
            values[place] = found.median_ms
            left[i] = Evaluation(member.config, tuple(values))


def tied(latencies: Sequence[tuple[str, Latency]]) -> list[list[str]]:
    """The keys that share a rank, in groups of two and more."""
    ranks = shared_ranks([latency for _, latency in latencies])
    groups: dict[int, list[str]] = {}
    for (key, _), rank in zip(latencies, ranks, strict=True):
        groups.setdefault(rank, []).append(key)
    return [keys for _, keys in sorted(groups.items()) if len(keys) > 1]


def _stored(bench: Workbench) -> tuple[dict[str, Latency], dict[str, str]]:
    """What was measured again before, beside the same reference, and why others were not.

    Where nothing could be measured, all is tried again.
    """
    stored: Mapping[str, Any] = bench.run.read_json(AGAIN) if bench.run.has(AGAIN) else {}
    if stored.get("reference") != asdict(bench.meter.reference):
        return {}, {}
    known = {key: Latency(**values) for key, values in stored["subnets"].items()}
    return known, dict(stored.get("failed", {})) if known else {}


def _store(
    bench: Workbench,
    again: Mapping[str, Latency],
    failures: Mapping[str, str],
    ties: Sequence[Sequence[str]] = (),
) -> None:
    subnets = {key: asdict(latency) for key, latency in again.items()}
    stored = {"reference": asdict(bench.meter.reference), "subnets": subnets, "ties": ties}
    stored |= {"failed": dict(failures)} if failures else {}
    bench.run.write_json(AGAIN, stored)
