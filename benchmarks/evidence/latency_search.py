"""A search under a limit of milliseconds in a runtime: foretold, searched, chosen and measured once more.

From the trained supernets of `fashion_mnist.md`. Each finished part is one file below runs/latency/search, so a
broken-off call goes on. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.latency_page import write_page
from benchmarks.evidence.latency_searched import (
    EVALUATIONS,
    LEARNT,
    RUNTIMES,
    SEEDS,
    SHARE,
    TARGET,
    searched,
)
from predictors.latency import LatencyPredictor
from search_spaces import SubnetConfig
from subnet_search.choosing import choose_spread
from subnet_search.measure import Latency, SubnetLatency, describe_device, make_evaluator
from subnet_search.measure.latency import LatencyMeter
from subnet_search.pipeline import read_settings
from subnet_search.profiling import spread_over_cost
from subnet_search.progress import progress
from subnet_search.record import Evaluation, Objective, ParetoFront, create_run, open_run
from subnet_search.record.atomic import write_whole
from subnet_search.remeasuring import CAREFULLY, settled
from subnet_search.searchers import Budget, search
from subnet_search.settings import DeviceSettings, RuntimeName
from subnet_search.workbench import Workbench, set_up_process

COMMAND = "python -m benchmarks.evidence.latency_search"
RUNS, OUT = Path("runs"), Path("runs") / "latency" / "search"
OBJECTIVES = (Objective("top1_percent", "max"), Objective("latency_ms", "min"))


@dataclass(frozen=True)
class Amounts:
    """How much of each is done, and where it is kept."""

    folder: Path = OUT
    learnt: int = LEARNT
    evaluations: int = EVALUATIONS
    chosen: int = 5
    shown: int = 8


TRIAL = Amounts(OUT.with_name("search-trial"), learnt=6, evaluations=12, chosen=2, shown=3)


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, choices=SEEDS)
    parser.add_argument("--trial", action="store_true", help=f"a little of everything, below {TRIAL.folder}")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    amounts = TRIAL if args.trial else Amounts()
    try:
        for seed in () if args.page else args.seeds:
            with open_run(RUNS / f"fashion-seed{seed}", write=False) as run:
                recipe = read_settings(run)
                set_up_process(recipe)
                one_seed(Workbench(run, recipe, print), seed, amounts)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    finally:
        print(json.dumps(searched(amounts.folder), indent=1) if args.trial else write_page())


def profile(runtime: RuntimeName) -> DeviceSettings:
    return DeviceSettings(name="cpu", runtime=runtime, threads=1)


def one_seed(bench: Workbench, seed: int, amounts: Amounts) -> None:
    def part(name: str, make: Callable[[], Any]) -> Any:
        return kept(amounts.folder / f"{name}-seed{seed}.json", make)

    part("machine", describe_device)
    timing = part("whole", lambda: SubnetLatency(bench.supernet, profile=profile(TARGET)).timing)
    timer = SubnetLatency(bench.supernet, profile=profile(TARGET), timing=timing)
    if timer.timing != timing:
        raise SystemExit(
            f"this is another machine, or another {TARGET}, than the parts in {amounts.folder} are of: move them away"
        )
    learnt = part("learnt", lambda: learn(bench, timer, amounts.learnt))
    found = part("searched", lambda: found_by_search(bench, timer, seed, amounts))
    part("chosen", lambda: chosen(bench, timer, found, learnt, amounts.chosen))
    for runtime in RUNTIMES:
        part(f"front-{runtime}", functools.partial(in_runtime, bench, runtime, found, amounts.shown))


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds, made first if it is not there."""
    if not path.exists():
        print(path.stem, flush=True)
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(made, indent=1) + "\n").encode())
    return json.loads(path.read_text("utf-8"))


def learn(bench: Workbench, timer: SubnetLatency, count: int) -> list[dict[str, Any]]:
    """Sub-nets all over the range of cost, for the predictor, which sees no time of the search."""
    configs = spread_over_cost(bench.space, bench.costs, count, np.random.default_rng(bench.recipe.seed))
    return [row(config, timer.of(config)) for config in progress(configs, "learning", "net")]


def found_by_search(
    bench: Workbench, timer: SubnetLatency, seed: int, amounts: Amounts
) -> list[dict[str, Any]]:
    """The front of a search whose journal is kept, so that this goes on too."""
    known = Latency(**timer.timing["reference"])
    whole = bench.new_model().eval()
    meter = LatencyMeter(whole, bench.example, profile(TARGET), known=known)
    evaluator = make_evaluator(bench.supernet, bench.splits, OBJECTIVES, bench.recipe.evaluate, latency=meter)
    folder = amounts.folder / f"journal-seed{seed}"
    with open_run(folder) if folder.exists() else create_run(folder, "") as run:
        result = search(
            bench.space,
            evaluator,
            "guided",
            budget=Budget(evaluations=amounts.evaluations),
            limits={"latency_ms": SHARE * known.median_ms},
            costs=bench.costs,
            seed=seed,
            run=run,
        )
    return [
        {"config": dict(e.config), "values": list(e.values), "spread": list(e.spread or ())}
        for e in result.front
    ]


def chosen(
    bench: Workbench,
    timer: SubnetLatency,
    found: Sequence[dict[str, Any]],
    learnt: Sequence[dict[str, Any]],
    count: int,
) -> dict[str, Any]:
    """What the end of a search does, and then a look that chose nothing."""
    predictor = LatencyPredictor(bench.space, bench.costs)
    predictor.fit([SubnetConfig(r["config"]) for r in learnt], [r["latency"]["median_ms"] for r in learnt])
    bound = SHARE * timer.timing["reference"]["median_ms"]
    again, judge = (
        SubnetLatency(bench.supernet, timer._meter, seed=seed, protocol=CAREFULLY) for seed in (1, 2)
    )
    front = ParetoFront.of(
        OBJECTIVES, [Evaluation(SubnetConfig(m["config"]), tuple(m["values"])) for m in found]
    )
    before = {member.config: member.values[1] for member in front}
    looks: dict[SubnetConfig, Latency] = {}

    def look(config: SubnetConfig) -> Latency:
        looks[config] = again.of(config)
        return looks[config]

    members, failed = settled(front, lambda one: choose_spread(one, count), look, bound)
    rows = []
    for member in members:
        low, high = predictor.predict_interval([member.config])
        rows.append(
            {
                **row(member.config, judge.of(member.config)),
                "top1_percent": member.values[0],
                "searched_ms": before[member.config],
                "again_ms": looks[member.config].median_ms,
                "predicted_ms": float(predictor.predict([member.config])[0]),
                "predicted_from_to_ms": [float(low[0]), float(high[0])],
            }
        )
    return {"limit_ms": bound, "replaced": len(failed), "chosen": rows}


def in_runtime(
    bench: Workbench, runtime: RuntimeName, found: Sequence[dict[str, Any]], shown: int
) -> dict[str, Any]:
    """MACs share and time share of members all over the front, and of the smallest and the largest sub-net."""
    by_time = sorted(found, key=lambda member: member["values"][1])
    places = sorted({round(p) for p in np.linspace(0, len(by_time) - 1, shown)})
    configs = [SubnetConfig(by_time[place]["config"]) for place in places]
    configs = list(dict.fromkeys([bench.space.smallest(), *configs]))
    timer = SubnetLatency(bench.supernet, profile=profile(runtime), protocol=CAREFULLY)
    whole = float(bench.costs.macs(bench.space.encode([bench.space.largest()]))[0])
    macs = bench.costs.macs(bench.space.encode(configs)) / whole
    rows = []
    for config, share in zip(configs, macs, strict=True):
        measured = timer.measured(config)
        latency = None if measured.latency is None else asdict(measured.latency)
        rows.append(
            {"key": config.key, "macs_share": float(share), "latency": latency, "reason": measured.reason}
        )
    return {"timing": dict(timer.timing), "rows": rows}


def row(config: SubnetConfig, latency: Latency) -> dict[str, Any]:
    return {"key": config.key, "config": dict(config), "latency": asdict(latency)}


if __name__ == "__main__":
    main()
