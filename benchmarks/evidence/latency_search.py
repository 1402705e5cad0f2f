"""A search under a limit of milliseconds in a runtime: foretold, searched, chosen and measured once more.

From the trained supernets of `fashion_mnist.md`. Each finished part is one file below runs/latency/search, so a
broken-off call goes on. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.road import RESULTS
from predictors.latency import LatencyPredictor
from predictors.quality import kendall_tau
from search_spaces import SubnetConfig
from subnet_search.choosing import choose_spread
from subnet_search.measure import Latency, SubnetLatency, describe_device, make_evaluator
from subnet_search.measure.latency import LatencyMeter
from subnet_search.pipeline import read_settings
from subnet_search.profiling import spread_over_cost
from subnet_search.progress import progress
from subnet_search.record import Evaluation, Objective, ParetoFront, create_run, open_run
from subnet_search.remeasuring import CAREFULLY, settled
from subnet_search.searchers import Budget, search
from subnet_search.settings import DeviceSettings
from subnet_search.workbench import Workbench, set_up_process

COMMAND = "python -m benchmarks.evidence.latency_search"
RUNS, OUT = Path("runs"), Path("runs") / "latency" / "search"
SEEDS, TARGET, SHARE = (20, 21, 22), "openvino", 0.5
LEARNT, EVALUATIONS, CHOSEN, SHOWN = 40, 150, 5, 8
RUNTIMES = ("torch", "onnxruntime", "openvino", "executorch")
OBJECTIVES = (Objective("top1_percent", "max"), Objective("latency_ms", "min"))
HEAD = f"""# A search under a limit of milliseconds

Guided searches of {EVALUATIONS} evaluations for top-1 and `latency_ms` in {TARGET}, one thread, one image, under a
limit of {100 * SHARE:.0f} % of the whole network's time; ResNet-20 on Fashion-MNIST (28 pixels), three supernets.

Made by `{COMMAND}` (resumable; about 20 minutes a seed on a quiet core).
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    for seed in () if args.page else args.seeds:
        with open_run(RUNS / f"fashion-seed{seed}", write=False) as run:
            recipe = read_settings(run)
            set_up_process(recipe)
            one_seed(Workbench(run, recipe, print), seed)
    write_page()


def profile(runtime: str) -> DeviceSettings:
    return DeviceSettings(name="cpu", runtime=runtime, threads=1)


def one_seed(bench: Workbench, seed: int) -> None:
    supernet = bench.supernet
    timing = part(f"whole-{TARGET}-seed{seed}", lambda: timing_of(bench, TARGET))
    timer = SubnetLatency(supernet, profile=profile(TARGET), timing=timing)
    if timer.timing != timing:
        raise SystemExit(
            f"this is another machine, or another {TARGET}, than the parts in {OUT} are of: move them away"
        )
    learnt = part(f"learnt-seed{seed}", lambda: learn(bench, timer))
    found = part(f"searched-seed{seed}", lambda: searched(bench, timer, seed))
    part(f"chosen-seed{seed}", lambda: chosen(bench, timer, found, learnt))
    for runtime in RUNTIMES:
        part(f"front-{runtime}-seed{seed}", functools.partial(in_runtime, bench, runtime, found))


def part(name: str, make: Callable[[], Any]) -> Any:
    """What a file holds, made first if it is not there."""
    path = OUT / f"{name}.json"
    if not path.exists():
        print(name, flush=True)
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
        scratch.replace(path)
    return json.loads(path.read_text("utf-8"))


def timing_of(bench: Workbench, runtime: str) -> Any:
    return dict(SubnetLatency(bench.supernet, profile=profile(runtime)).timing)


def learn(bench: Workbench, timer: SubnetLatency) -> list[dict[str, Any]]:
    """Sub-nets all over the range of cost, for the predictor; none of them is of the search."""
    configs = spread_over_cost(bench.space, bench.costs, LEARNT, np.random.default_rng(bench.recipe.seed))
    return [row(config, timer.of(config)) for config in progress(configs, "learning", "net")]


def searched(bench: Workbench, timer: SubnetLatency, seed: int) -> list[dict[str, Any]]:
    """The front of a search whose journal is kept, so that this goes on too."""
    known = Latency(**timer.timing["reference"])
    whole = bench.new_model().eval()
    meter = LatencyMeter(whole, bench.example, profile(TARGET), known=known)
    evaluator = make_evaluator(bench.supernet, bench.splits, OBJECTIVES, bench.recipe.evaluate, latency=meter)
    folder = OUT / f"journal-seed{seed}"
    with open_run(folder) if folder.exists() else create_run(folder, "") as run:
        result = search(
            bench.space,
            evaluator,
            "guided",
            budget=Budget(evaluations=EVALUATIONS),
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
    bench: Workbench, timer: SubnetLatency, found: Sequence[dict[str, Any]], learnt: Sequence[dict[str, Any]]
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

    members, failed = settled(front, lambda one: choose_spread(one, CHOSEN), look, bound)
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


def in_runtime(bench: Workbench, runtime: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """MACs share and time share of members all over the front, and of the smallest and the largest sub-net."""
    by_time = sorted(found, key=lambda member: member["values"][1])
    places = sorted({round(p) for p in np.linspace(0, len(by_time) - 1, SHOWN)})
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


def write_page() -> None:
    """Page and numbers from the parts that are there."""
    parts = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(OUT.glob("*.json"))}
    names = ("chosen-seed{}", *(f"front-{runtime}-seed{{}}" for runtime in RUNTIMES))
    missing = [name.format(seed) for seed in SEEDS for name in names if name.format(seed) not in parts]
    machine = describe_device()
    lines = [HEAD, *([f"**Not finished**: still to come: {', '.join(missing)}.\n"] if missing else [])]
    lines += [_chosen_table(parts), _front_table(parts)]
    lines.append(
        f"{machine['cpu']}, one thread, {machine['os']}, Python {machine['python']}, torch {machine['torch']}, "
        f"{date.today().isoformat()}.\n"
    )
    stored = {"command": COMMAND, "date": date.today().isoformat(), "machine": machine, "parts": parts}
    for ending, text in ((".json", json.dumps(stored, indent=1) + "\n"), (".md", "\n".join(lines))):
        path = RESULTS / f"latency_search{ending}"
        scratch = path.with_suffix(".part")
        scratch.write_text(text, "utf-8")
        scratch.replace(path)
    print(RESULTS / "latency_search.md")


def _chosen_table(parts: dict[str, Any]) -> str:
    rows = [
        "## Foretold, searched, chosen, measured\n",
        f"Milliseconds. Foretold: by a predictor fitted to {LEARNT} other sub-nets, its interval of 90 % in brackets. "
        "Searched: the value in the search, which picks lucky ones. Again: what the choice was made on; who was above "
        "the limit then was replaced. Measured: a third time, which chose nothing, with half its interval of 95 %.\n",
        "| seed | sub-net | top-1, % | foretold | searched | again | measured | limit | over by more than noise |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in SEEDS:
        found = parts.get(f"chosen-seed{seed}", {"chosen": [], "replaced": 0, "limit_ms": 0})
        for one in found["chosen"]:
            last, (low, high) = Latency(**one["latency"]), one["predicted_from_to_ms"]
            over = last.low_ms > found["limit_ms"]
            cells = [
                seed,
                one["key"],
                f"{one['top1_percent']:.2f}",
                f"{one['predicted_ms']:.4g} ({low:.4g}–{high:.4g})",
                f"{one['searched_ms']:.4g}",
                f"{one['again_ms']:.4g}",
                f"{last.median_ms:.4g} ± {last.half_interval_ms:.2g}",
                f"{found['limit_ms']:.4g}",
                "yes" if over else "no",
            ]
            rows.append(f"| {' | '.join(map(str, cells))} |")
        if found["chosen"]:
            rows.append(f"| {seed} | replaced: {found['replaced']} | | | | | | | |")
    return "\n".join([*rows, ""])


def _front_table(parts: dict[str, Any]) -> str:
    rows = [
        "## Is it really faster\n",
        f"Members all over the front of the search in {TARGET} and, first, the smallest sub-net: time as a share of "
        "the whole network's in the same runtime. Tau: Kendall's, of MACs and times.\n",
        "| seed | MACs, % | " + " | ".join(f"{runtime}, %" for runtime in RUNTIMES) + " |",
        "|---|---|" + "---|" * len(RUNTIMES),
    ]
    for seed in SEEDS:
        by_runtime = {r: parts.get(f"front-{r}-seed{seed}") for r in RUNTIMES}
        known = [found for found in by_runtime.values() if found]
        for place in range(len(known[0]["rows"]) if known else 0):
            cells = [f"{100 * known[0]['rows'][place]['macs_share']:.1f}"]
            cells += [_share(found, place) for found in by_runtime.values()]
            rows.append(f"| {seed} | {' | '.join(cells)} |")
        if known:
            rows.append(f"| {seed}, tau | | {' | '.join(map(_tau, by_runtime.values()))} |")
    return "\n".join([*rows, ""])


def _share(found: dict[str, Any] | None, place: int) -> str:
    if found is None:
        return "to come"
    latency = found["rows"][place]["latency"]
    whole = found["timing"]["reference"]["median_ms"]
    return "rejected" if latency is None else f"{100 * latency['median_ms'] / whole:.1f}"


def _tau(found: dict[str, Any] | None) -> str:
    timed = [r for r in found["rows"] if r["latency"]] if found else []
    if len(timed) < 3:
        return "–"
    pairs = np.array([(r["macs_share"], r["latency"]["median_ms"]) for r in timed])
    return f"{kendall_tau(pairs[:, 0], pairs[:, 1]):.2f}"


if __name__ == "__main__":
    main()
