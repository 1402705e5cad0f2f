"""Which of two nets is faster on a target, or that nobody can tell."""

from __future__ import annotations

import json
import multiprocessing
import re
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import nn

from search_spaces import InvalidInput
from subnet_search.batches import device_of
from subnet_search.elastic.graph import first_line
from subnet_search.measure.footprint import (
    NO_MEMORY,
    energy_counters,
    energy_mj,
    peak_bytes_during,
    resident_bytes,
)
from subnet_search.measure.latency import CLOCKS, LatencyMeter, as_profiled, clock_name
from subnet_search.measure.noise import median_interval, smallest_difference
from subnet_search.measure.runtimes import RUNTIMES, Prepared
from subnet_search.measure.timing import Protocol, Rounds, rounds_beside
from subnet_search.pipeline import read_settings
from subnet_search.profiling import on_target
from subnet_search.rebuilding import WEIGHTS
from subnet_search.record import open_run
from subnet_search.settings import RESOLUTION, DeviceSettings
from subnet_search.subjects import Subject, load_subject, naming

PLACES = (
    6  # each net is made ready so often: where its tensors lie in memory changes its time by a percent or so
)
THOROUGH = Protocol(narrow=2 * RESOLUTION, least_rounds=12, most_rounds=200, most_seconds=4.0)
WATCH_TIMEOUT_S = 300.0

Verdict = Literal["faster", "slower", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: times in milliseconds, sizes in bytes; what is None could not be had, and `lacks` says why."""

    name: str
    median_ms: float
    file_bytes: int | None
    peak_bytes: int | None
    energy_mj: float | None
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out: A's time as a share of B's.

    Attributes:
        verdict: A against B, only where the whole interval says so and the difference is no smaller than 0.5 %.
        ratio, low, high: the median over rounds, and its 95 % interval.
        rounds: how many there were, both nets taking a turn in each.
        smallest_difference: the share that this measurement would have found four times in five.
        drift: how much slower the machine was at the end than at the beginning, as a share; it is no part of the ratio.
        profile: runtime, machine, threads and so on.
    """

    verdict: Verdict
    ratio: float
    low: float
    high: float
    rounds: int
    smallest_difference: float
    drift: float
    first: Side
    second: Side
    profile: dict[str, Any]


def compare(
    first: str | Path,
    second: str | Path,
    profile: DeviceSettings | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    protocol: Protocol = THOROUGH,
    seed: int = 0,
) -> Comparison:
    """Times two nets in turns, in random order, until the interval of their ratio is narrow or time is up.

    Args:
        first, second: folders of sub-nets (RUN/subnets/KEY), run folders (their whole network), or model files that the
            runtime reads, such as .onnx.
        profile: runtime, threads, precision and so on.
        input_shape: of one example, channels x height x width; by default an image of the run that the folder is in.
        protocol: how much is measured, for each of six times that both are made ready.
        seed: of orders and resamples.

    Raises:
        InvalidInput: something that is neither of these, a profile that cannot be had here, or a net that the runtime
            rejects.
    """
    profile = profile or DeviceSettings()
    subjects = [load_subject(path, profile, input_shape) for path in (first, second)]
    rng, parts = np.random.default_rng(seed), list[Rounds]()
    nets = [subject.net for subject in subjects if subject.net is not None]
    device = device_of(nets[0]) if nets else torch.device("cpu")
    clock_s = CLOCKS[clock_name(profile, device)]
    own = RUNTIMES[profile.runtime]
    if own.own_clock:
        protocol = own.protocol
    names = " beside ".join(subject.name for subject in subjects)
    with as_profiled(profile, *nets), ExitStack() as stack, naming(names):
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in subjects]
        ready = [s.prepare(profile, folder) for s, folder in zip(subjects, folders, strict=True)]
        kept = [ready]  # what is kept keeps its places
        for _ in range(1 if own.own_clock else PLACES):
            with torch.inference_mode():
                ours, theirs = (one.turn(protocol, clock_s) for one in kept[-1])
                parts.append(rounds_beside(ours, theirs, rng, protocol, clock_s))
            if len(parts) < PLACES and not own.own_clock:
                again = zip(subjects, ready, folders, strict=True)
                kept.append([s.prepare_again(one, profile, folder) for s, one, folder in again])
        sides = [_side(*pair, profile, parts, i) for i, pair in enumerate(zip(subjects, ready, strict=True))]
    run_profile = LatencyMeter.profile_of(nets[0] if nets else nn.Identity(), profile)
    return judge(parts, sides[0], sides[1], run_profile, rng)


def judge(
    parts: list[Rounds], first: Side, second: Side, profile: dict[str, Any], rng: np.random.Generator
) -> Comparison:
    """What rounds say.

    The interval is the wider of two: the bootstrap's over all rounds, which does not know that nets lie at lucky or
    unlucky places in memory, and Student's over the times that both were made ready.
    """
    ratio, low, high = median_interval(np.concatenate([part.ratio for part in parts]), rng)
    places = np.log([float(np.median(part.ratio)) for part in parts])
    if len(places) > 1:
        reach = stats.t.ppf(0.975, len(places) - 1) * places.std(ddof=1) / np.sqrt(len(places))
        low = min(low, float(np.exp(places.mean() - reach)))
        high = max(high, float(np.exp(places.mean() + reach)))
    verdict: Verdict = "cannot tell"
    if high < 1 - RESOLUTION:
        verdict = "faster"
    elif low > 1 + RESOLUTION:
        verdict = "slower"
    count = sum(len(part.own_ms) for part in parts)
    other = Rounds(
        np.concatenate([part.own_ms for part in parts]), np.concatenate([part.other_ms for part in parts])
    )
    least = RESOLUTION + smallest_difference((high - low) / 2)
    return Comparison(verdict, ratio, low, high, count, least, other.drift, first, second, profile)


def _side(
    subject: Subject, ready: Prepared, profile: DeviceSettings, parts: list[Rounds], place: int
) -> Side:
    times = np.concatenate([(part.own_ms, part.other_ms)[place] for part in parts])
    lacks, energy, peak = [], None, None
    counters, reason = energy_counters()
    if RUNTIMES[profile.runtime].own_clock:
        reason = "a command runs where this machine's counters do not look"
    if reason:
        lacks.append(f"energy: {reason}")
    else:
        with torch.inference_mode():
            call = ready.turn(Protocol(), CLOCKS["wall"])
            energy = (
                energy_mj(lambda: call(1), counters) / 2
            )  # a turn is a call that is not timed and one that is
    if RUNTIMES[profile.runtime].own_clock or profile.runtime == "compile":
        lacks.append(f'peak memory: the runtime "{profile.runtime}" is not watched')
    else:
        peak, reason = _peak_bytes(subject, ready, profile)
        lacks += [f"peak memory: {reason}"] if reason else []
    size = ready.file_bytes
    if size is None and (subject.path / WEIGHTS).is_file():
        size = (subject.path / WEIGHTS).stat().st_size
    return Side(subject.name, float(np.median(times)), size, peak, energy, tuple(lacks))


def _peak_bytes(subject: Subject, ready: Prepared, profile: DeviceSettings) -> tuple[int | None, str]:
    """What a fresh process needs more to load the net and to call it; or why nobody knows."""
    shape = None if subject.example is None else tuple(subject.example.shape[1:])
    what = (str(ready.file or subject.path), profile.model_dump(), shape)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            found = pool.apply_async(watched, what).get(WATCH_TIMEOUT_S)
        except multiprocessing.TimeoutError:
            return None, f"the process that was watched took more than {WATCH_TIMEOUT_S:g} s"
        except Exception as error:  # whatever a runtime raises there
            return None, f"the process that was watched failed: {first_line(error)}"
    return found, "" if found else NO_MEMORY


def watched(path: str, profile: dict[str, Any], shape: tuple[int, ...] | None) -> int | None:
    """Runs in a process of its own: bytes that loading a net and calling it take at most."""
    settings = DeviceSettings(**profile)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    if not Path(path).is_file():
        before = resident_bytes()
        subject = load_subject(path, settings, shape)
    else:
        subject = Subject("", Path(path))
        RUNTIMES[settings.runtime].version()
        before = resident_bytes()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        turn = subject.prepare(settings, Path(folder)).turn(Protocol(warmup=1), CLOCKS["wall"])
        peak = peak_bytes_during(lambda: turn(1))
    return None if peak is None or before is None else max(peak - before, 0)


def compare_nets(
    first: Path, second: Path, given: Mapping[str, Any], input_shape: str | None, *, as_json: bool
) -> str:
    """`subnet-search compare`: on the target of the first net's run, or what is given instead."""
    if input_shape is not None and not re.fullmatch(r"\d+(x\d+)*", input_shape):
        raise InvalidInput(f"--input must look like 3x224x224, got {input_shape!r}")
    shape = None if input_shape is None else tuple(int(side) for side in input_shape.split("x"))
    found = compare(first, second, on_target(_target_of(first), **given), input_shape=shape)
    return json.dumps(to_json(found), indent=2) if as_json else in_words(found)


def _target_of(path: Path) -> DeviceSettings:
    """The profile of the run that a net is in; eager torch where it is in none."""
    for folder in (path, *path.resolve().parents[:2]):
        if (folder / "settings.toml").is_file():
            with open_run(folder, write=False) as opened:
                return read_settings(opened).device
    return DeviceSettings()


def to_json(found: Comparison) -> dict[str, Any]:
    """A comparison as plain data."""
    return asdict(found)


def in_words(found: Comparison) -> str:
    """A comparison for people: the verdict, then a table of both, then what is missing."""
    a, b = found.first, found.second
    said = {
        "faster": f"A is faster than B: it takes {100 * found.ratio:.1f} % of B's time",
        "slower": f"A is slower than B: it takes {100 * found.ratio:.1f} % of B's time",
        "cannot tell": f"cannot tell: A takes {100 * found.ratio:.1f} % of B's time",
    }[found.verdict]
    lines = [
        f"{said} (95 % interval {100 * found.low:.1f} to {100 * found.high:.1f} %, {found.rounds} rounds)",
        f"a difference of {100 * found.smallest_difference:.1f} % would have been found four times in five",
        f"{'':14}  {'A':>14}  {'B':>14}",
        f"{'net':14}  {a.name[:14]:>14}  {b.name[:14]:>14}",
        f"{'median ms':14}  {a.median_ms:>14.4g}  {b.median_ms:>14.4g}",
        *(
            f"{name:14}  {_amount(one, unit):>14}  {_amount(other, unit):>14}"
            for name, one, other, unit in (
                ("file MB", a.file_bytes, b.file_bytes, 1e6),
                ("peak memory MB", a.peak_bytes, b.peak_bytes, 1e6),
                ("energy mJ", a.energy_mj, b.energy_mj, 1.0),
            )
        ),
        "in " + ", ".join(f"{key} {value}" for key, value in found.profile.items() if value is not None),
    ]
    if abs(found.drift) > 0.05:
        lines.append(
            f"the machine became {100 * found.drift:+.0f} % slower meanwhile, which the ratio leaves out"
        )
    return "\n".join([*lines, *dict.fromkeys((*a.lacks, *b.lacks))])


def _amount(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3g}"
