"""Racing beside full evaluation: images spent, and the front found, on sub-nets of trained supernets.

Which images each sub-net answers right is found out once and kept in runs/racing; both ways are replayed from that.
Then a search with racing is run for real. A broken-off call goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.road import RESULTS
from search_spaces import SubnetConfig
from subnet_search.measure import describe_device
from subnet_search.measure.evaluator import SupernetEvaluator
from subnet_search.progress import progress
from subnet_search.recipe import parse_recipe
from subnet_search.record import Evaluation, Objective, ParetoFront, Partial, Run, create_run, open_run
from subnet_search.searchers import Budget, Racing, look_sizes, search
from subnet_search.searchers.racing import evidence, race
from subnet_search.workbench import Workbench, set_up_process

COMMAND = "python -m benchmarks.evidence.racing"
RUNS = Path("runs")
FOLDERS = tuple(f"fashion-seed{seed}" for seed in (20, 21, 22)) + tuple(
    f"digits-seed{s}" for s in (10, 11, 12)
)
LIVE = FOLDERS[:1]
SEARCHED, CHANCE = "searched", "chance"
NUM_CHANCE, KEEP_EVERY, ORDERS, TIMED = 100, 20, 5, 12
GAPS, APART, TRIALS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1), (0.05, 0.1, 0.2), 400
OBJECTIVES = (Objective("top1_percent", "max"), Objective("macs", "min"), Objective("params", "min"))
HEAD = f"""# Racing

Evaluation stops once a paired comparison on the images seen so far shows, with 95 % confidence and however often one
looks, that another sub-net is better and costs no more (`subnet_search/searchers/racing.py`). What it saves depends on
who is asked about: a random sub-net is often clearly beaten, what a good searcher proposes is on the front or just
below it, and that can only be told from nearly all images. That, and the member of the front that is lost now and then
(of sub-nets that nothing beats at most 5 % are stopped), is why racing is off by default.

Made by `{COMMAND}` (resumable), from the supernets of `fashion_mnist.md` (6,000
search-validation images and 1,024 that set batch norms, ResNet-20) and `digits.md` (359 and 512).
"""


@dataclass(frozen=True)
class Table:
    """Sub-nets in the order in which they were asked for, and which images each answers right."""

    configs: list[SubnetConfig]
    costs: np.ndarray  # [num_configs, 2]: MACs, parameters
    right: np.ndarray  # booleans [num_configs, num_images]
    calibration: int


class Replay:
    """Answers from a table."""

    objectives = OBJECTIVES

    def __init__(self, table: Table, seed: int) -> None:
        self.table, self.seed = table, seed
        self.places = {config: place for place, config in enumerate(table.configs)}

    def __call__(self, config: SubnetConfig) -> Evaluation:
        *_, last = self.stages(config)
        return Evaluation(config, last.values)

    def stages(self, config: SubnetConfig) -> Generator[Partial]:
        place, of = self.places[config], self.table.right.shape[1]
        order = np.random.default_rng([self.seed, place]).permutation(of)
        for size in look_sizes(of):
            images = order[:size]
            correct = self.table.right[place, images]
            values = (100 * float(correct.mean()), *self.table.costs[place].tolist())
            yield Partial(correct, images, of, self.table.calibration, values)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("folders", nargs="*", help=f"of runs; default: {', '.join(FOLDERS)}")
    (RUNS / "racing").mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().folders or FOLDERS:
        with open_run(RUNS / name, write=False) as run:
            bench = Workbench(run, parse_recipe(run.read("settings.toml").decode(), name), print)
            set_up_process(bench.recipe)
            found: dict[str, Any] = {}
            for which, configs in asked_for(run).items():
                table = answers_of(bench, configs, RUNS / "racing" / f"{name}-{which}.npz")
                found[which] = compared(table, bench)
            if name in LIVE:
                found["live"] = searched_live(bench, name)
            write(name, found)
    print((RESULTS / "racing.md").read_text("utf-8"))


def asked_for(run: Run) -> dict[str, list[SubnetConfig]]:
    """What the run's own search asked for, and some random sub-nets where the run keeps them."""
    searched = [line["config"] for line in run.journal.lines() if line["kind"] == "result"]
    chance = run.read_json("chance.json")["evaluations"] if run.has("chance.json") else []
    lists = {SEARCHED: searched, CHANCE: [row["config"] for row in chance[:NUM_CHANCE]]}
    return {which: list(map(SubnetConfig, configs)) for which, configs in lists.items() if configs}


def answers_of(bench: Workbench, configs: Sequence[SubnetConfig], path: Path) -> Table:
    """The table of these sub-nets, from the file as far as it goes."""
    bits = list(np.load(path)["right"]) if path.exists() else []
    x = bench.space.encode(configs)
    costs = np.column_stack([bench.costs.macs(x), bench.costs.params(x)])
    if len(bits) < len(configs):
        calibration = 0
        for config in progress(configs[len(bits) :], path.stem, "subnet"):
            images = race(bench.evaluator, config, (), Racing()).images  # nobody to lose against
            assert images is not None
            calibration = images.calibration
            bits.append(np.frombuffer(images.right, np.uint8))
            if len(bits) % KEEP_EVERY == 0 or len(bits) == len(configs):
                beside = path.with_suffix(".part.npz")
                np.savez(beside, right=np.array(bits), num=images.of, calibration=calibration)
                beside.replace(path)
    with np.load(path) as stored:
        bits = stored["right"][: len(configs)]
        right = np.unpackbits(bits, axis=1, count=int(stored["num"])).astype(bool)
        return Table(list(configs), costs, right, int(stored["calibration"]))


def compared(table: Table, bench: Workbench) -> dict[str, Any]:
    """Full evaluation, and racing in some orders of the images."""
    whole = bench.costs.evaluate(bench.space.encode([bench.space.largest()]), ("macs", "params"))
    reference = {"top1_percent": 0.0, **{name: float(cost[0]) for name, cost in whole.items()}}
    box = 100 * reference["macs"] * reference["params"]
    plain = [Evaluation(c, values_of(table, i)) for i, c in enumerate(table.configs)]
    front = ParetoFront.of(OBJECTIVES, plain)
    members = {member.config for member in front}
    beaten = [is_beaten(plain[:i], e) for i, e in enumerate(plain)]
    orders = []
    for seed in range(ORDERS):
        replay, seen = Replay(table, seed), list[Evaluation]()
        for config in table.configs:
            seen.append(race(replay, config, seen, Racing()))
        stopped = [i for i, e in enumerate(seen) if not e.in_full]
        raced = ParetoFront.of(OBJECTIVES, seen)
        orders.append(
            {
                "images": sum(e.images.spent for e in seen if e.images),
                "stopped": len(stopped),
                "stopped_wrongly": sum(not beaten[i] for i in stopped),
                "members_lost": len(members - {m.config for m in raced}),
                "hypervolume": 100 * raced.hypervolume(reference) / box,
            }
        )
    return {
        "subnets": len(plain),
        "beaten": sum(beaten),
        "front": len(front),
        "images": len(plain) * (table.right.shape[1] + table.calibration),
        "hypervolume": 100 * front.hypervolume(reference) / box,
        "raced": orders,
    }


def values_of(table: Table, place: int) -> tuple[float, ...]:
    return (100 * float(table.right[place].mean()), *table.costs[place].tolist())


def is_beaten(before: Sequence[Evaluation], evaluation: Evaluation) -> bool:
    """Whether one that was known before costs no more and is truly more accurate on all images."""
    top1, macs, params = evaluation.values
    return any(e.values[0] > top1 and e.values[1] <= macs and e.values[2] <= params for e in before)


def searched_live(bench: Workbench, name: str) -> dict[str, Any]:
    """The run's search once more, with racing, beside the one it had; and what showing images in stages costs."""
    evaluator, settings = bench.evaluator, bench.recipe.search
    folder = RUNS / "racing" / f"{name}-live"
    with open_run(folder) if folder.exists() else create_run(folder, "") as run:
        result = search(
            bench.space,
            evaluator,
            settings.searcher,
            budget=Budget(evaluations=settings.evaluations),
            costs=bench.costs,
            seed=settings.seed,
            run=run,
            racing=Racing(),
        )
        seconds = [float(line["seconds"]) for line in run.journal.lines() if line["kind"] == "result"]
        if not run.has("stages.json"):
            run.write_json("stages.json", overhead(evaluator, [e.config for e in result.evaluations[:TIMED]]))
        stages = run.read_json("stages.json")
    whole = bench.costs.evaluate(bench.space.encode([bench.space.largest()]), ("macs", "params"))
    reference = {"top1_percent": 0.0, **{n: float(cost[0]) for n, cost in whole.items()}}
    box = 100 * reference["macs"] * reference["params"]
    counted = [e.images for e in result.evaluations if e.images]
    return {
        "subnets": len(result.evaluations),
        "stopped": sum(not images.in_full for images in counted),
        "images": sum(images.spent for images in counted),
        "images_in_full": sum(images.in_full_spent for images in counted),
        "front": len(result.front),
        "hypervolume": 100 * result.front.hypervolume(reference) / box,
        "seconds": sum(seconds),
        **stages,
    }


def overhead(evaluator: SupernetEvaluator, configs: Sequence[SubnetConfig]) -> dict[str, float]:
    """Seconds of full evaluations in one go and in stages, in turns, after one of each that is not counted."""
    ways: dict[str, Callable[[SubnetConfig], object]] = {
        "one_go_seconds": evaluator,
        "in_stages_seconds": lambda config: list(evaluator.stages(config)),
    }
    taken = dict.fromkeys(ways, 0.0)
    for place, config in enumerate([configs[0], *configs]):
        for way, call in ways.items():
            start_s = time.perf_counter()
            call(config)
            taken[way] += (time.perf_counter() - start_s) * (place > 0)
    return taken


def write(name: str, found: dict[str, Any]) -> None:
    """Adds one run to the published numbers, and makes the page anew."""
    path = RESULTS / "racing.json"
    stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"runs": {}}
    stored["simulated"] = stored.get("simulated") or simulated()
    stored["runs"][name] = found
    stored["runs"] = {folder: stored["runs"][folder] for folder in FOLDERS if folder in stored["runs"]}
    stored |= {"command": COMMAND, "date": date.today().isoformat(), "machine": describe_device()}
    path.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(as_page(stored), "utf-8")


def as_page(stored: dict[str, Any]) -> str:
    runs, machine = stored["runs"], stored["machine"]
    missing = [folder for folder in FOLDERS if folder not in runs]
    parts = [HEAD, *([f"**Not finished**: still to come: {', '.join(missing)}.\n"] if missing else [])]
    parts += [
        _simulated(stored["simulated"]),
        _replayed(runs),
        _live({name: run["live"] for name, run in runs.items() if "live" in run}, runs),
    ]
    parts.append(
        f"{machine['cpu']}, one thread, {machine['os']}, Python {machine['python']}, torch {machine['torch']}, "
        f"{stored['date']}.\n"
    )
    return "\n".join(parts)


def simulated(of: int = 6000, seed: int = 0) -> list[dict[str, float]]:
    """Races of made-up sub-nets against one rival: how many are stopped, after how many images."""
    rng, rows = np.random.default_rng(seed), []
    for gap, apart in itertools.product(GAPS, APART):
        wins, losses = round(of * (apart + gap) / 2), round(of * (apart - gap) / 2)
        lost = np.repeat([1, -1, 0], [wins, max(losses, 0), of - wins - max(losses, 0)])
        seen = []
        for _ in range(TRIALS if losses >= 0 else 0):
            order = rng.permutation(lost)
            over = (n for n in look_sizes(of)[:-1] if evidence(order[:n], of) >= 1 / Racing().error)
            seen.append(next(over, of))
        if seen:
            stopped = float(np.mean(np.array(seen) < of))
            rows.append({"gap": gap, "apart": apart, "stopped": stopped, "images": float(np.mean(seen))})
    return rows


def _simulated(rows: Sequence[dict[str, float]]) -> str:
    parts = [
        "## Made-up sub-nets\n",
        f"One rival, 6,000 images, {TRIALS} random orders each, eight looks before the last image. Apart: the share of "
        "images that only one of the two answers right. Equally good sub-nets may be stopped in 5 % at most.\n",
        "| worse by, points | apart, % | stopped, % | images seen, % |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = (100 * row["gap"], 100 * row["apart"], 100 * row["stopped"], 100 * row["images"] / 6000)
        parts.append(f"| {cells[0]:g} | {cells[1]:g} | {cells[2]:.1f} | {cells[3]:.1f} |")
    return "\n".join([*parts, ""])


def _replayed(runs: dict[str, Any]) -> str:
    rows = [
        "## The same sub-nets in the same order\n",
        f"Means over {ORDERS} random orders of the images, with the lowest and highest in brackets. Beaten: an earlier "
        "sub-net costs no more (MACs, parameters) and is more accurate on all images; only those can be stopped "
        "rightly. Hypervolume in percent of the box of top-1 from 0 and both costs of the full net.\n",
        "| run | sub-nets | beaten | stopped | stopped wrongly | images spent, % of full | front | of it lost | "
        "hypervolume, full | raced |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for which, words in ((SEARCHED, "as its NSGA-II search asked"), (CHANCE, "random")):
        for name, run in runs.items():
            if which not in run:
                continue
            one, raced = run[which], run[which]["raced"]
            cells = [
                f"{name}, {words}",
                one["subnets"],
                one["beaten"],
                _spread([r["stopped"] for r in raced], 0),
                sum(r["stopped_wrongly"] for r in raced) / len(raced),
                _spread([100 * r["images"] / one["images"] for r in raced], 1),
                one["front"],
                _spread([r["members_lost"] for r in raced], 1),
                f"{one['hypervolume']:.3f}",
                _spread([r["hypervolume"] for r in raced], 3),
            ]
            rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*rows, ""])


def _live(live: dict[str, Any], runs: dict[str, Any]) -> str:
    if not live:
        return ""
    rows = [
        "## A search with racing\n",
        "NSGA-II with the same seed and number of sub-nets, beside the first row of its run above. It is told the "
        "estimates of those that were stopped, and the search above was made by an earlier version, so both take other "
        "ways: that one is better here or there is chance. The seconds compare full evaluations of the same sub-nets, "
        "in one go and in nine stages.\n",
        "| run | stopped | images spent, % of full | front | hypervolume | without racing: front | hypervolume | full "
        "evaluation, s | in stages, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in live.items():
        plain = runs[name][SEARCHED]
        cells = [
            name,
            f"{one['stopped']} of {one['subnets']}",
            f"{100 * one['images'] / one['images_in_full']:.1f}",
            one["front"],
            f"{one['hypervolume']:.3f}",
            plain["front"],
            f"{plain['hypervolume']:.3f}",
            f"{one['one_go_seconds'] / TIMED:.2f}",
            f"{one['in_stages_seconds'] / TIMED:.2f}",
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*rows, ""])


def _spread(values: Sequence[float], digits: int) -> str:
    mean, low, high = (f"{f(values):.{digits}f}" for f in (np.mean, min, max))
    return mean if low == high else f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
