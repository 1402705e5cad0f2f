"""How fast sub-nets of a run are on its target, all over the range of cost: time shares beside MACs shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from predictors.quality import kendall_tau
from search_spaces import CostTable, InvalidInput, SearchSpace, SubnetConfig
from subnet_search.aligning import align_front, keep_steps
from subnet_search.measure import Latency, Measured, SubnetLatency
from subnet_search.measure.noise import shared_ranks
from subnet_search.measure.staircase import steps_table, steps_to_json
from subnet_search.pipeline import read_settings
from subnet_search.progress import progress
from subnet_search.record import Run
from subnet_search.record.atomic import telling_what_failed
from subnet_search.record.journal import sealed, unsealed
from subnet_search.seeding import derive_seed
from subnet_search.settings import DeviceSettings
from subnet_search.workbench import Workbench

LATENCIES_LOG = "latencies.jsonl"
DRAWN = 64  # configs for each net that is chosen


class LatencyLog:
    """What was ever measured in a run by `profile`, a line each, never deleted: the whole network, then sub-nets.

    A torn or changed line is left out; what it told is measured again.
    """

    def __init__(self, run: Run) -> None:
        self._path = run.folder / LATENCIES_LOG
        found = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        self._lines = [line for text in found if text and (line := unsealed(text)) is not None]

    def timing(self, profile: Mapping[str, Any]) -> dict[str, Any] | None:
        """The profile and the whole network's latency, where it was measured in the same profile."""
        of_it = [line for line in self._lines if line["kind"] == "whole" and line["profile"] == profile]
        return {"profile": of_it[-1]["profile"], "reference": of_it[-1]["latency"]} if of_it else None

    def known(self, timing: Mapping[str, Any]) -> dict[str, Measured]:
        """By key what was measured in the milliseconds of this reference; who failed is tried again."""
        return {
            line["key"]: _measured(line)
            for line in self._lines
            if line["kind"] == "subnet" and line["timing"] == timing and line["latency"] is not None
        }

    def add(self, kind: str, **fields: Any) -> None:
        """Appends a line."""
        line = {"kind": kind, **fields}
        with telling_what_failed(self._path), self._path.open("a+b") as file:
            torn = file.tell() > 0 and (file.seek(-1, 2), file.read())[1] != b"\n"
            file.write(b"\n" * torn + sealed(line))
        self._lines.append(line)


def profile_run(
    run: Run,
    count: int,
    given: Mapping[str, Any],
    *,
    steps: bool = False,
    aligned: bool = False,
    as_json: bool = False,
    say: Callable[[str], None],
) -> str:
    """`subnet-search profile`: sub-nets of a run, or channel steps and what they bring, on its target or another one.

    Raises:
        InvalidInput: a profile that cannot be had here.
    """
    bench = Workbench(run, read_settings(run), say)
    target = on_target(bench.recipe.device, **given)
    if aligned:
        return align_front(bench, target, as_json=as_json)
    if steps:
        found_steps = keep_steps(bench, target)
        return json.dumps(steps_to_json(found_steps), indent=2) if as_json else steps_table(found_steps)
    found, timing = profile_nets(bench, target, count)
    return (
        json.dumps(to_json(found, timing), indent=2)
        if as_json
        else table(found, timing, bench.costs, bench.space)
    )


def profile_nets(
    bench: Workbench, profile: DeviceSettings, count: int, *, configs: list[SubnetConfig] | None = None
) -> tuple[list[Measured], dict[str, Any]]:
    """Measures sub-nets spread over the range of cost; what the run's log knows is not measured again.

    Args:
        bench: of the run; its log gets a line for each as soon as it is measured, so that Ctrl-C loses none.
        profile: runtime, threads, precision and so on.
        count: how many sub-nets, the smallest and the largest among them.
        configs: these instead.

    Returns:
        What was measured, by cost; and the profile with the whole network's latency.

    Raises:
        InvalidInput: fewer than two, or the profile cannot be had here.
    """
    if count < 2:
        raise InvalidInput(f"profile measures at least the smallest and the largest sub-net, got {count}")
    supernet, log = bench.new_supernet(), LatencyLog(bench.run)
    latency = SubnetLatency(supernet, profile=profile, seed=bench.recipe.search.seed, timing=log.timing)
    if log.timing(latency.profile) != latency.timing:
        log.add("whole", profile=latency.profile, latency=latency.timing["reference"])
    known, rng = log.known(latency.timing), np.random.default_rng(derive_seed(bench.recipe.seed, "profile"))
    wanted = configs or spread_over_cost(bench.space, bench.costs, count, rng)
    left = [config for config in wanted if config.key not in known]
    if len(left) < len(wanted):
        bench.say(f"  {len(wanted) - len(left)} of {len(wanted)} sub-nets were measured before")
    order = [left[i] for i in rng.permutation(len(left))]
    for config in progress(order, f"measuring in {profile.runtime}", "net", enabled=bool(order)):
        found = latency.measured(config)
        known[found.config.key] = found
        log.add("subnet", timing=latency.timing, **_line(found))
    return [known[config.key] for config in wanted], latency.timing


def spread_over_cost(
    space: SearchSpace, costs: CostTable, count: int, rng: np.random.Generator
) -> list[SubnetConfig]:
    """The smallest and the largest sub-net, and others of the costs between, evenly on a logarithmic scale.

    Sub-nets drawn at random crowd in the middle of that range. Half of the candidates are therefore bred: a random one
    with some knobs of the smallest or of the largest.
    """
    ends = [space.smallest(), space.largest()]
    drawn = space.sample(rng, DRAWN * count)
    mixed = [
        space.canonical({**config, **{name: end[name] for name in config if rng.random() < share}})
        for config, end, share in zip(drawn, ends * (len(drawn) // 2), rng.random(len(drawn)), strict=False)
    ]
    pool = list(dict.fromkeys([*drawn, *mixed]))
    macs = np.log(costs.macs(space.encode(pool)))
    low, high = np.log(costs.macs(space.encode(ends)))
    taken: dict[SubnetConfig, None] = {ends[0]: None}
    for aim in np.linspace(low, high, count)[1:-1]:
        nearest = next(
            (pool[i] for i in np.argsort(abs(macs - aim)) if pool[i] not in (*taken, ends[1])), None
        )
        taken |= {} if nearest is None else {nearest: None}
    return [*taken, ends[1]]


def table(found: list[Measured], timing: Mapping[str, Any], costs: CostTable, space: SearchSpace) -> str:
    """MACs share against time share, for people; nets that the noise does not tell apart share a rank."""
    whole = Latency(**timing["reference"])
    macs = costs.macs(space.encode([one.config for one in found])).astype(float)
    shares = 100 * macs / float(costs.macs(space.encode([space.largest()]))[0])
    timed = [i for i, one in enumerate(found) if one.latency is not None]
    latencies = [latency for one in found if (latency := one.latency) is not None]
    ranks = dict(zip(timed, shared_ranks(latencies), strict=True))
    lines = [f"{'sub-net':12}  {'MACs':>7}  {'time':>7}  {'ms':>9}  {'+-':>7}  {'file MB':>8}  rank"]
    for i, one in enumerate(found):
        start = f"{one.config.key:12}  {shares[i]:6.1f}%"
        if one.latency is None:
            lines.append(f"{start}  {one.reason}")
            continue
        time, size = one.latency, "-" if one.file_bytes is None else f"{one.file_bytes / 1e6:.3g}"
        lines.append(
            f"{start}  {100 * time.median_ms / whole.median_ms:6.1f}%  {time.median_ms:9.4g}  "
            f"{time.half_interval_ms:7.2g}  {size:>8}  {ranks[i]:>4}"
        )
    if len(timed) > 2:
        tau = kendall_tau(macs[timed], np.array([latency.median_ms for latency in latencies]))
        lines.append(
            f"Kendall's tau of MACs and time: {tau:.2f}; equal ranks are not told apart by this noise"
        )
    lines.append("in " + ", ".join(f"{k} {v}" for k, v in timing["profile"].items() if v is not None))
    return "\n".join(lines)


def to_json(found: list[Measured], timing: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain data."""
    return {**timing, "subnets": [_line(one) for one in found]}


def on_target(settings: DeviceSettings, **given: Any) -> DeviceSettings:
    """A profile with what the command line says instead; None leaves what is there.

    A command is for the runtime "command", which it implies; another runtime leaves the recipe's command out.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    if changes.get("command"):
        changes = {"runtime": "command", **changes}
    elif changes.get("runtime", settings.runtime) != "command":
        changes["command"] = None
    if "runtime" in changes and changes["runtime"] != settings.runtime:
        changes = {"precision": "fp32", **changes}
        if changes["runtime"] not in ("torch", "compile"):
            changes["name"] = "cpu"
    return DeviceSettings(**{**settings.model_dump(), **changes})


def _line(found: Measured) -> dict[str, Any]:
    latency = None if found.latency is None else asdict(found.latency)
    return {**asdict(found), "key": found.config.key, "config": dict(found.config), "latency": latency}


def _measured(line: Mapping[str, Any]) -> Measured:
    latency = None if line["latency"] is None else Latency(**line["latency"])
    rest = {name: line[name] for name in ("file_bytes", "seconds", "reason")}
    return Measured(SubnetConfig(line["config"]), latency, **rest)
