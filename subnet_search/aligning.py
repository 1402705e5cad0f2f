"""What rounding widths to a target's channel steps costs in accuracy and wins in time, for members of a front."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import nn

from search_spaces import InvalidInput, SearchSpace, SubnetConfig, SubnetSearchError
from subnet_search.batches import resolve_device
from subnet_search.choosing import choose_spread
from subnet_search.elastic.extraction import cut_out
from subnet_search.elastic.supernet import Supernet
from subnet_search.fronts import is_searched, read_front
from subnet_search.measure import LatencyMeter, SupernetEvaluator, make_evaluator
from subnet_search.measure.noise import SURE
from subnet_search.measure.runtimes import RUNTIMES
from subnet_search.measure.staircase import Staircase, find_steps, kind_of, steps_to_json
from subnet_search.measure.subnet_latency import profile_device
from subnet_search.progress import progress
from subnet_search.remeasuring import CAREFULLY
from subnet_search.settings import DeviceSettings
from subnet_search.workbench import Workbench

STEPS, ALIGNED = "steps.json", "aligned.json"
MEMBERS = 6  # of the front
WAYS = ("up", "down")

Found = dict[str, Any]


def align_front(bench: Workbench, target: DeviceSettings, *, as_json: bool = False) -> str:
    """Members all over the front beside themselves with widths rounded to the target's steps, kept for the report.

    Accuracy is of the supernet's weights on search-validation, nothing is tuned. A member that was compared before
    is not compared again.

    Raises:
        InvalidInput: the search is not over, or the target cannot be had here.
    """
    if not is_searched(bench.run):
        raise InvalidInput(
            "alignment is looked at for the members of a front, and this run's search is not over; finish it with "
            f"subnet-search resume {bench.run.folder}"
        )
    steps = _known_steps(bench, target)
    evaluator = make_evaluator(bench.supernet, bench.splits, ("top1_percent",), bench.recipe.evaluate)
    sure = {"profile": _described(bench, target), "steps": steps, "context": evaluator.context}
    stored = bench.run.read_json(ALIGNED) if bench.run.has(ALIGNED) else {}
    found: Found = {**sure, "members": []}
    if all(stored.get(name) == value for name, value in sure.items()):
        found = stored
    known = {member["key"] for member in found["members"]}
    asked = [one.config for one in choose_spread(read_front(bench.run), MEMBERS)]
    for config in progress([c for c in asked if c.key not in known], "aligning", "net"):
        found["members"].append(_compared(bench, evaluator, target, config, steps))
        bench.run.write_json(ALIGNED, found)
    return json.dumps(found, indent=2) if as_json else table(found)


def steps_of_knobs(supernet: Supernet, steps: Mapping[str, int]) -> dict[str, int]:
    """The step of each width knob: the largest of the kinds of layers that write its channels."""
    modules = dict(supernet.model.named_modules())
    return {
        name: max(
            (
                steps.get(kind_of(layer), 1)
                for layer in map(modules.get, group.writers)
                if isinstance(layer, nn.Conv2d | nn.Linear)
            ),
            default=1,
        )
        for name, group in supernet.groups.items()
    }


def rounded(space: SearchSpace, config: SubnetConfig, steps: Mapping[str, int], way: str) -> SubnetConfig:
    """The config with each width at the next choice that is a multiple of its step, "up" or "down".

    The whole width counts as one; a width below all multiples stays when rounded down.
    """
    values = dict(config)
    for knob in space.knobs:
        step, width = steps.get(knob.name, 1), config[knob.name]
        filled = [choice for choice in knob.choices if choice % step == 0 or choice == knob.largest]
        if way == "up":
            values[knob.name] = min(choice for choice in filled if choice >= width)
        else:
            values[knob.name] = max((choice for choice in filled if choice <= width), default=width)
    return space.canonical(SubnetConfig(values))


def paired_change(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """The change of a share, in points, and its interval of 95 %, from answers to the same images.

    Args:
        before, after: which images were answered right, booleans `[num_images]`.

    Source:
        Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", 2005,
        doi:10.1002/sim.1781: half an image more of each of the four kinds.
    """
    won, lost, of = int((after & ~before).sum()), int((before & ~after).sum()), len(before)
    middle = (won - lost) / (of + 2)
    half = SURE * math.sqrt((won + lost + 1) / (of + 2) - middle**2) / math.sqrt(of + 2)
    return 100 * (won - lost) / of, 100 * (middle - half), 100 * (middle + half)


def table(found: Mapping[str, Any]) -> str:
    """What was found, for people."""
    lines = [f"{'sub-net':12}  {'rounded':7}  {'MACs':>8}  {'top-1, points':>24}  {'time':>26}"]
    for member in found["members"]:
        lines.append(f"{member['key']:12}  {'':7}  {'':>8}  {member['top1_percent']:>22.2f} %")
        for way in WAYS:
            one = member[way]
            start = f"{'':12}  {way:7}  "
            if one is None:
                lines.append(f"{start}has these widths already")
                continue
            points, time = one["top1_points"], one["time_percent"]
            told = one["reason"] if time is None else "{:+.1f} % ({:+.1f} to {:+.1f})".format(*time)
            top1 = "{:+.2f} ({:+.2f} to {:+.2f})".format(*points)
            lines.append(f"{start}{one['macs_percent']:>+6.1f} %  {top1:>24}  {told:>26}")
    steps = ", ".join(f"{step} for {kind}" for kind, step in found["steps"].items())
    lines.append(f"steps of channels: {steps}; intervals of 95 %, untuned, on search-validation")
    lines.append("in " + ", ".join(f"{k} {v}" for k, v in found["profile"].items() if v is not None))
    return "\n".join(lines)


def keep_steps(bench: Workbench, target: DeviceSettings) -> list[Staircase]:
    """Finds the channel steps of a target and keeps them in the run, with the profile that they are of."""
    found = find_steps(bench.new_supernet(), target)
    bench.run.write_json(STEPS, {"profile": _described(bench, target), **steps_to_json(found)})
    return found


def _known_steps(bench: Workbench, target: DeviceSettings) -> dict[str, int]:
    """By kind of layer, from an earlier `profile --steps` of the same target; found now where there is none."""
    stored = bench.run.read_json(STEPS) if bench.run.has(STEPS) else {}
    if stored.get("profile") != _described(bench, target):
        return {one.kind: one.step for one in keep_steps(bench, target)}
    return {one["kind"]: int(one["step"]) for one in stored["staircases"]}


def _described(bench: Workbench, target: DeviceSettings) -> dict[str, Any]:
    whole = bench.new_model().to(resolve_device(profile_device(target)))
    return LatencyMeter.profile_of(whole, target)


def _compared(
    bench: Workbench,
    evaluator: SupernetEvaluator,
    target: DeviceSettings,
    config: SubnetConfig,
    steps: Mapping[str, int],
) -> Found:
    """A member, and what each way of rounding changes; None for a way that changes no width."""
    of_knobs = steps_of_knobs(bench.supernet, steps)
    other = {way: rounded(bench.space, config, of_knobs, way) for way in WAYS}
    changed = {way: one for way, one in other.items() if one != config}
    before = _right(evaluator, config)
    found: Found = {"key": config.key, "config": dict(config), "top1_percent": 100 * float(before.mean())}
    found |= dict.fromkeys(WAYS)
    macs = [float(m) for m in bench.costs.macs(bench.space.encode([config, *changed.values()]))]
    times = _times(bench, target, config, list(changed.values()))
    for (way, one), more, (time, reason) in zip(changed.items(), macs[1:], times, strict=True):
        found[way] = {
            "key": one.key,
            "config": dict(one),
            "macs_percent": 100 * (more / macs[0] - 1),
            "top1_points": paired_change(before, _right(evaluator, one)),
            "time_percent": time,
            "reason": reason,
        }
    return found


def _right(evaluator: SupernetEvaluator, config: SubnetConfig) -> np.ndarray:
    """Which images of search-validation a sub-net answers right, booleans `[num_images]`."""
    *_, last = evaluator.stages(config)
    right = np.zeros(last.of, dtype=bool)
    right[last.images] = last.correct
    return right


def _times(
    bench: Workbench, target: DeviceSettings, config: SubnetConfig, others: Sequence[SubnetConfig]
) -> Iterator[tuple[tuple[float, float, float] | None, str]]:
    """By how many percent the others take longer than a net, timed beside it, with the interval; or why not."""
    if not others:
        return
    device = resolve_device(profile_device(target))
    protocol = RUNTIMES[target.runtime].protocol if RUNTIMES[target.runtime].own_clock else CAREFULLY

    def timed(meter: Callable[[nn.Module], Any], one: SubnetConfig) -> Any:
        return meter(cut_out(bench.supernet, one).to(device))

    try:
        meter = timed(lambda net: LatencyMeter(net, bench.example, target, protocol=protocol), config)
    except SubnetSearchError as error:
        yield from ((None, str(error)) for _ in others)
        return
    for one in others:
        try:
            latency = asdict(timed(meter, one))
        except SubnetSearchError as error:
            yield None, str(error)
            continue
        whole_ms = meter.reference.median_ms
        low, high = (100 * (latency[end] / whole_ms - 1) for end in ("low_ms", "high_ms"))
        yield (100 * (latency["median_ms"] / whole_ms - 1), low, high), ""
