"""What a search on many workers costs beside its evaluations, and what batches bring; finished parts are kept."""

from __future__ import annotations

import argparse
import heapq
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cluster_toys import COSTS, OBJECTIVES, REFERENCE, SPACE, true_volume, worth
from benchmarks.cluster_tune import adapters
from search_spaces import SubnetConfig
from subnet_search.measure import describe_device
from subnet_search.record import Evaluation, ParetoFront, create_run
from subnet_search.searchers import Answer, Budget, EvaluatorFactory, Workers, make_searcher, search
from subnet_search.workers import RayPool

COMMAND = "python -m benchmarks.cluster"
RESULTS, RUNS = Path(__file__).parent.parent / "reports" / "results", Path("runs/cluster")
WORKERS, EVALUATIONS, ROUNDS = 8, 200, 3
RECORDS, WINDOW = (1_000, 3_000, 10_000), 200
MANY, SIMULATED, MEAN_S, SPREAD = 256, 1_024, 60.0, 0.3
BATCHES = (1, 16, 64, 256)
HEAD = f"""# Search on many workers

Made by `{COMMAND}` (resumable). {WORKERS} Ray workers on one machine of two cores that others use too; evaluations only
wait, so that what is measured is the search's own time. The start of Ray and of the workers (each imports the package)
and their end stand apart.
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"default: {', '.join(PARTS)}")
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().parts or PARTS:
        path = RUNS / f"{name}.json"
        if not path.exists():
            found = {"found": PARTS[name](), "date": date.today().isoformat(), "load": os.getloadavg()[0]}
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(found, indent=1))
            beside.replace(path)
        write_page()
    print((RESULTS / "cluster.md").read_text("utf-8"))


def waiting(wait_s: float) -> Callable[[], Any]:
    """200 evaluations that wait: seconds of the search while the workers are there, of each round."""

    def measure() -> Any:
        rounds, starts, ends = [], [], []
        for _ in range(ROUNDS):
            begun_s = time.perf_counter()
            pool = TimedPool(
                EvaluatorFactory("benchmarks.cluster_toys:make_waiting", {"wait_s": wait_s}), Workers(WORKERS)
            )
            while pool.alive < WORKERS:
                pool.look_once()
            ready_s = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder, create_run(Path(folder, "run"), "") as run:
                budget = Budget(evaluations=EVALUATIONS)
                search(SPACE, pool, "nsga2", budget=budget, costs=COSTS, run=run, progress=False)
            rounds.append(time.perf_counter() - ready_s - pool.end_s)
            starts.append(ready_s - begun_s)
            ends.append(pool.end_s)
        return {"wait_s": wait_s, "seconds": rounds, "start_s": starts, "end_s": ends}

    return measure


class TimedPool(RayPool):
    """Says how long it took to end the workers, and Ray."""

    end_s = 0.0

    def close(self) -> None:
        begun_s = time.perf_counter()
        super().close()
        self.end_s += time.perf_counter() - begun_s


class Immediate:
    """A pool that answers at once, and looks at the clock."""

    count, objectives, context = 1, OBJECTIVES, ""

    def __init__(self) -> None:
        self.config = SPACE.largest()
        self.at_s: list[tuple[float, float]] = []  # wall clock and processor time, at each answer

    def submit(self, config: SubnetConfig, seen: Iterable[Evaluation]) -> None:
        self.config = config

    def next(self) -> Answer:
        self.at_s.append((time.perf_counter(), time.process_time()))
        return Answer(self.config, worth(self.config), "", 0.0)

    def note(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing to close."""


class Drawn:
    """Proposes sub-nets drawn beforehand: asking costs nothing."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(0)
        self.configs = iter(dict.fromkeys(SPACE.canonical(c) for c in SPACE.sample(rng, 2 * count)))

    def ask(self) -> SubnetConfig:
        return next(self.configs)

    def tell(self, evaluation: Evaluation) -> None:
        """Learns nothing."""


def driver() -> Any:
    """Milliseconds of the driver for one trial, around so many records: bar and journal included, no asking."""
    pool, most = Immediate(), max(RECORDS) + WINDOW
    with tempfile.TemporaryDirectory() as folder, create_run(Path(folder, "run"), "") as run:
        search(SPACE, pool, Drawn(most), budget=Budget(evaluations=most), costs=COSTS, run=run)
    steps_ms = 1e3 * np.diff(np.array(pool.at_s), axis=0)  # [num_trials, 2]
    return {str(at): np.median(steps_ms[at - WINDOW : at], axis=0).tolist() for at in RECORDS}


def simulated(searcher: str) -> Callable[[], Any]:
    """256 workers on a virtual clock, by the size of batches."""
    return lambda: {"true": true_volume(), **{str(batch): simulate(searcher, batch) for batch in BATCHES}}


def simulate(name: str, batch: int) -> dict[str, Any]:
    """Asks for `batch` sub-nets whenever so many workers have nothing to do.

    Returns:
        the share of the workers' time in which they wait, until the last ask; and the front's hypervolume after each
        minute of the virtual clock, relative to the reference point of the space.
    """
    searcher = make_searcher(name, SPACE, OBJECTIVES, costs=COSTS, seed=0)
    now_s, busy_s, asked, free, asking_s = 0.0, 0.0, 0, MANY, 0.0
    running: list[tuple[float, int, Evaluation]] = []
    arrived: list[Evaluation] = []
    done: list[tuple[float, Evaluation]] = []
    spans: list[tuple[float, float]] = []
    while asked < SIMULATED:
        if free < min(batch, SIMULATED - asked):
            finish_s, _, evaluation = heapq.heappop(running)
            now_s, free = max(now_s, finish_s), free + 1
            arrived.append(evaluation)
            done.append((finish_s, evaluation))
            continue
        for _ in range(min(batch, SIMULATED - asked)):
            began_s = time.process_time()
            for evaluation in arrived:
                searcher.tell(evaluation)
            arrived = []
            config = searcher.ask()
            taken_s = time.process_time() - began_s
            asking_s, now_s = asking_s + taken_s, now_s + taken_s
            spans.append((now_s, now_s + duration_s(config)))
            heapq.heappush(running, (spans[-1][1], asked, worth(config)))
            asked, free = asked + 1, free - 1
    end_s = now_s
    busy_s = sum(min(stop, end_s) - start for start, stop in spans)
    done += [(finish_s, evaluation) for finish_s, _, evaluation in running]
    minutes = {
        f"{minute}": volume([e for finish_s, e in done if finish_s <= 60 * minute]) for minute in (2, 3, 4, 6)
    }
    return {
        "idle_share": 1 - busy_s / (MANY * end_s),
        "wall_s": max(finish_s for finish_s, _ in done),
        "asking_s": asking_s,
        "hypervolume": minutes,
        "hypervolume_in_the_end": volume([evaluation for _, evaluation in done]),
    }


def duration_s(config: SubnetConfig) -> float:
    """Of one evaluation: around a minute, the same for the same sub-net."""
    rng = np.random.default_rng(int(config.key, 16))
    return float(MEAN_S * np.exp(rng.normal(0, SPREAD) - SPREAD**2 / 2))


def volume(evaluations: list[Evaluation]) -> float:
    return ParetoFront.of(OBJECTIVES, evaluations).hypervolume(REFERENCE)


PARTS: dict[str, Callable[[], Any]] = {
    "wait-1s": waiting(1.0),
    "wait-0.1s": waiting(0.1),
    "driver": driver,
    "tune": adapters,
    **{f"simulated-{name}": simulated(name) for name in ("random", "nsga2", "guided")},
}


def write_page() -> None:
    """The page and its numbers, of all parts that are finished."""
    parts = {name: json.loads((RUNS / f"{name}.json").read_text()) for name in PARTS if _is_there(name)}
    missing = [name for name in PARTS if name not in parts]
    lines = [HEAD]
    if missing:
        lines.append(f"Not finished yet: {', '.join(missing)}.\n")
    lines += _waiting_lines(parts) + _driver_lines(parts) + _tune_lines(parts) + _simulated_lines(parts)
    loads = ", ".join(f"{name} {part['load']:.1f}" for name, part in parts.items())
    device = describe_device()
    lines.append(f"\nLoad of the machine (processes that wanted to run) at the end of each part: {loads}.")
    lines.append(f"\n{device}" if isinstance(device, str) else f"\nMachine: {json.dumps(device)}.")
    told = {"command": COMMAND, "machine": device, "missing": missing, "parts": parts}
    for name, text in (("cluster.md", "\n".join(lines) + "\n"), ("cluster.json", json.dumps(told, indent=1))):
        beside = RESULTS / f".{name}.part"
        beside.write_text(text, "utf-8")
        beside.replace(RESULTS / name)


def _is_there(name: str) -> bool:
    return (RUNS / f"{name}.json").exists()


def _waiting_lines(parts: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("wait-1s", "wait-0.1s"):
        if name not in parts:
            continue
        found = parts[name]["found"]
        least_s = EVALUATIONS * found["wait_s"] / WORKERS
        median_s = float(np.median(found["seconds"]))
        each_ms = 1e3 * (median_s - least_s) / EVALUATIONS
        beside_ms = 1e3 * (median_s * WORKERS / EVALUATIONS - found["wait_s"])
        lines.append(
            f"- {EVALUATIONS} evaluations that wait {found['wait_s']:g} s, {WORKERS} workers: {median_s:.2f} s, median "
            f"of {ROUNDS} (from {min(found['seconds']):.2f} to {max(found['seconds']):.2f}); at least {least_s:g} s "
            f"are needed: {median_s / least_s:.3f} x that. Beside each evaluation {each_ms:.1f} ms go by, and "
            f"{beside_ms:.1f} ms of a worker's time. The start took {np.median(found['start_s']):.1f} s besides, the "
            f"end {np.median(found['end_s']):.1f} s."
        )
    return lines


def _driver_lines(parts: dict[str, Any]) -> list[str]:
    if "driver" not in parts:
        return []
    found = parts["driver"]["found"].items()
    told = ", ".join(
        f"{wall:.2f} ms ({busy:.2f} of the processor) at {int(at):,}" for at, (wall, busy) in found
    )
    return [
        f"- the driver's time for one trial (ask and answer flushed to the journal, bar, bookkeeping; asking costs "
        f"nothing here): {told} records; medians over {WINDOW} trials."
    ]


def _tune_lines(parts: dict[str, Any]) -> list[str]:
    if "tune" not in parts:
        return []
    found = parts["tune"]["found"]
    told = [f"| {name} | {ms[0]:.2f} | {ms[1]:.2f} |" for name, ms in found.items()]
    return [
        "\nInside Ray Tune (`ray.tune`'s `Searcher`), milliseconds of `suggest` and `on_trial_complete` for one trial, "
        "means over the first 100 and over trials 300 to 400, four under way:\n",
        "| searcher | 0-100 | 300-400 |\n|---|---|---|",
        *told,
    ]


def _simulated_lines(parts: dict[str, Any]) -> list[str]:
    lines = [
        f"\nA simulation of {MANY} workers: {SIMULATED:,} evaluations of {MEAN_S:g} s on average (log-normal, spread "
        f"{SPREAD:g}) on a virtual clock, on which the searcher's asking and telling takes the processor time that it "
        "really takes. It asks whenever a batch of workers has nothing to do. Idle: share of the workers' time until "
        "the last ask. Hypervolume as a share of that of the true front; one seed.\n",
        "| searcher | batch | idle | asking, s | end, s | hypervolume after 2 min | 3 min | 4 min | 6 min | end |\n"
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, part in parts.items():
        if not name.startswith("simulated-"):
            continue
        true = part["found"]["true"]
        for batch in map(str, BATCHES):
            found = part["found"][batch]
            volumes = " | ".join(f"{value / true:.3f}" for value in found["hypervolume"].values())
            lines.append(
                f"| {name.removeprefix('simulated-')} | {batch} | {100 * found['idle_share']:.1f} % | "
                f"{found['asking_s']:.1f} | {found['wall_s']:.0f} | {volumes} | "
                f"{found['hypervolume_in_the_end'] / true:.3f} |"
            )
    return lines if len(lines) > 2 else []


if __name__ == "__main__":
    main()
