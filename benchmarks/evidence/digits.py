"""Digits: the sub-net with at most 25 % of the MACs that search-validation chose, looked at on test at the very end.

Each seed is one quickstart (data split, training, search) in a run folder of its own, so a broken-off call goes on.
The net of uniform width with the nearest MACs is cut from the same supernet and fine-tuned in the same way.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence.road import costs_of, uniform_like
from search_spaces import config_to_json
from subnet_search.choosing import choose_under
from subnet_search.fronts import read_front
from subnet_search.measure import describe_device, top1_percent
from subnet_search.pipeline import advance, begin
from subnet_search.recipe import Recipe, quickstart_recipe
from subnet_search.workbench import Workbench

SEEDS = (10, 11, 12)  # not used while anything was decided
LIMIT = {"macs": "25%"}
AIM_POINTS = 1.5
COMMAND = "python -m benchmarks.evidence.digits"
RESULTS = Path(__file__).parents[2] / "reports" / "results"
FULL, SUPERNET, CHOSEN, UNIFORM = NETS = (
    "full net",
    "full net after supernet training",
    "chosen sub-net",
    "uniform width, same MACs",
)
HEAD = f"""# Digits: a quarter of the multiply-adds

scikit-learn's digits (8x8 px, 1797 images; train, search-validation and test drawn anew for each seed), with the
quickstart's recipe. Search-validation chose the sub-net with at most 25 % of the full net's MACs. The net of uniform
width comes from the same supernet, has the nearest MACs there are, and got the same fine-tuning. Test was read once,
after that. Top-1 in percent.

Made by `{COMMAND}` (resumable; `{COMMAND} SEED` for one seed).

| net | share of MACs | search-val before tuning | search-val after | test, mean (lowest to highest) | test by seed |
|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, help="default: all of " + ", ".join(map(str, SEEDS)))
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the run folders")
    arguments = parser.parse_args()
    path = RESULTS / "digits.json"
    stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"seeds": {}}
    for seed in arguments.seeds or SEEDS:
        stored["seeds"][str(seed)] = one_seed(seed, arguments.out)
        stored["seeds"] = dict(sorted(stored["seeds"].items(), key=lambda item: int(item[0])))
        stored |= {"command": COMMAND, "date": date.today().isoformat(), "machine": describe_device()}
        stored["claim"] = claim(stored["seeds"])
        path.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
        (RESULTS / "digits.md").write_text(as_page(stored), "utf-8")
        draw(stored["seeds"], RESULTS / "digits.png")
    print((RESULTS / "digits.md").read_text("utf-8"))


def recipe_of(seed: int) -> Recipe:
    """The quickstart's recipe, but for what is chosen from the front."""
    recipe = quickstart_recipe(seed, f"digits-seed{seed}")
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={"choose_under": (LIMIT,)})})


def one_seed(seed: int, out: Path) -> dict[str, Any]:
    """Walks the road, adds the uniform net to what was chosen, and collects what the run folder says."""
    recipe = recipe_of(seed)
    with begin(recipe, out) as run:
        advance(run, "finetune", say=print)
        bench = Workbench(run, recipe, print)
        chosen = choose_under(read_front(run), bench.limits(LIMIT), bench.space, bench.costs).config
        uniform = uniform_like(chosen, bench.space, bench.costs)
        run.write_json(f"subnets/{uniform.key}/config.json", config_to_json(uniform))
        advance(run, "export", say=print)
        nets = {}
        for name, config in ((CHOSEN, chosen), (UNIFORM, uniform)):
            measured = run.read_json(f"subnets/{config.key}/metrics.json")
            steps = {step: measured[step]["top1_percent"] for step in ("before", "after", "test")}
            nets[name] = {"key": config.key, **costs_of(bench, config), **steps}
        largest = costs_of(bench, bench.space.largest())
        nets[FULL] = {**largest, "test": run.read_json("metrics.json")["test"]["top1_percent"]}
        nets[SUPERNET] = {**largest, "test": top1_percent(bench.supernet, bench.splits.test)}
        images = run.read_json("splits.json")["images"]
    return {"images": images, "nets": {name: nets[name] for name in NETS}}


def claim(seeds: dict[str, Any]) -> dict[str, Any]:
    """How far the chosen sub-net's mean stays behind the full net's, in points on test."""
    behind = {
        name: [seed["nets"][name]["test"] - seed["nets"][CHOSEN]["test"] for seed in seeds.values()]
        for name in (FULL, SUPERNET, UNIFORM)
    }
    return {"points_behind": behind, "aim": AIM_POINTS, "met": float(np.mean(behind[FULL])) <= AIM_POINTS}


def as_page(stored: dict[str, Any]) -> str:
    seeds, found, machine = stored["seeds"], stored["claim"], stored["machine"]
    rows = []
    for name in NETS:
        nets = [seed["nets"][name] for seed in seeds.values()]
        shares = f"{100 * np.mean([net['macs_share'] for net in nets]):.1f} %"
        steps = [
            f"{np.mean([net[step] for net in nets]):.2f}" if step in nets[0] else ""
            for step in ("before", "after")
        ]
        tests = [net["test"] for net in nets]
        mean = f"{np.mean(tests):.2f} ({min(tests):.2f} to {max(tests):.2f})"
        each = ", ".join(f"{test:.2f}" for test in tests)
        rows.append("| " + " | ".join([name, shares, *steps, mean, each]) + " |")
    gaps = [
        f"- {name}: {np.mean(points):+.2f} ({', '.join(f'{point:+.2f}' for point in points)})"
        for name, points in found["points_behind"].items()
    ]
    verdict = "holds" if found["met"] else "does **not** hold"
    one_image = 100 / next(iter(seeds.values()))["images"]["test"]
    return HEAD + "\n".join(
        [
            *rows,
            "",
            f"The claim (chosen sub-net on average within {AIM_POINTS} points of the full net on test) {verdict}.",
            f"One test image is {one_image:.2f} points. Points that the chosen sub-net lies behind, mean (by seed):",
            "",
            *gaps,
            "",
            "![Test accuracy against the share of MACs](digits.png)",
            "",
            f"{machine['cpu']}, {machine['threads']} thread, {machine['os']}, Python {machine['python']}, torch "
            f"{machine['torch']}, {stored['date']}.",
            "",
        ]
    )


def draw(seeds: dict[str, Any], path: Path) -> None:
    """Test accuracy against the share of MACs, one mark for each net and seed, which stands beside it."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(NETS, "osD^", strict=True):
        nets = [seed["nets"][name] for seed in seeds.values()]
        shares = [100 * net["macs_share"] for net in nets]
        axes.scatter(shares, [net["test"] for net in nets], marker=marker, label=name, alpha=0.8)
        for seed, share, net in zip(seeds, shares, nets, strict=True):
            axes.annotate(seed, (share, net["test"]), (5, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="share of the full net's MACs (%); numbers are seeds",
        ylabel="top-1 on test (%)",
        xlim=(0, 105),
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
