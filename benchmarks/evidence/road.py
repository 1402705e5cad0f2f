"""The whole road on one data set, seed by seed, beside uniform, random and individually trained nets.

Each seed is one run folder, so a broken-off call goes on. What is compared was chosen on search-validation; test is
read by the road's own test stage, and once for each individually trained net.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import kendalltau
from torch import nn

from benchmarks.folders import data_folder as data_folder
from search_spaces import CostTable, SearchSpace, SubnetConfig, config_to_json
from subnet_search import extract, finetune
from subnet_search.elastic import Supernet
from subnet_search.fronts import read_front
from subnet_search.measure import describe_device, top1_percent
from subnet_search.models import load_model
from subnet_search.pipeline import advance, begin
from subnet_search.progress import progress
from subnet_search.recipe import Recipe
from subnet_search.record import Evaluation, Objective, ParetoFront, Run
from subnet_search.seeding import seed_everything
from subnet_search.settings import FinetuneSettings
from subnet_search.stages import choose_members
from subnet_search.workbench import Workbench, save_weights

RESULTS = Path(__file__).parents[2] / "reports" / "results"
CHOSEN, UNIFORM, RANDOM = "chosen by the search", "uniform width", "best random"
LONGER, ALONE = "chosen, tuned as long as trained alone", "trained alone"
PLANE = (Objective("top1_percent", "max"), Objective("macs", "min"))
QUARTERS = (0.25, 0.5, 0.75, 1.0)  # of the evaluations, at which hypervolumes are compared


@dataclass(frozen=True)
class Evidence:
    """What one file in reports/results/ is made of.

    Attributes:
        name: of the files, and of the module below benchmarks.evidence.
        head: the page's first lines.
        recipe_of: the recipe of a seed.
        seeds: that nothing was decided on.
        shares: of the full net's MACs; the chosen sub-nets nearest to them are compared with other nets.
        alone_epochs: how long a net of the same config is trained by itself, and the chosen one tuned, to see
            what is missing; 0: neither is.
    """

    name: str
    head: str
    recipe_of: Callable[[int], Recipe]
    seeds: Sequence[int]
    shares: Sequence[float]
    alone_epochs: int

    @property
    def command(self) -> str:
        return f"python -m benchmarks.evidence.{self.name}"


def main(evidence: Evidence) -> None:
    parser = argparse.ArgumentParser(prog=evidence.command)
    seeds = ", ".join(map(str, evidence.seeds))
    parser.add_argument("seeds", nargs="*", type=int, help=f"default: all of {seeds}")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder of the run folders")
    arguments = parser.parse_args()
    for seed in arguments.seeds or evidence.seeds:
        found = one_seed(evidence, seed, arguments.out)
        write(evidence, seed, found)
    print((RESULTS / f"{evidence.name}.md").read_text("utf-8"))


def write(evidence: Evidence, seed: int, found: dict[str, Any]) -> None:
    """Adds one seed to the published numbers, and makes page and figure anew."""
    path = RESULTS / f"{evidence.name}.json"
    stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"seeds": {}}
    stored["seeds"][str(seed)] = found
    stored["seeds"] = dict(sorted(stored["seeds"].items(), key=lambda item: int(item[0])))
    stored |= {"command": evidence.command, "date": date.today().isoformat(), "machine": describe_device()}
    path.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    path.with_suffix(".md").write_text(as_page(evidence, stored), "utf-8")
    draw(stored["seeds"], path.with_suffix(".png"))


def one_seed(evidence: Evidence, seed: int, out: Path) -> dict[str, Any]:
    recipe = evidence.recipe_of(seed)
    with begin(recipe, out) as run:
        advance(run, "finetune", say=print)
        bench = Workbench(run, recipe, print)
        chance = random_search(bench)
        pairs = compared(bench, evidence.shares, chance)
        for config in {config for nets in pairs for config in nets.values()}:
            run.write_json(f"subnets/{config.key}/config.json", config_to_json(config))
        advance(run, "export", say=print)
        return collect(evidence, bench, pairs, chance)


def random_search(bench: Workbench) -> list[Evaluation]:
    """As many random sub-nets as the search looked at, no uniform one among them, kept in the run folder."""
    if not bench.run.has("chance.json"):
        rng = np.random.default_rng(bench.recipe.search.seed + 1000)
        drawn: dict[SubnetConfig, None] = {}
        while len(drawn) < bench.recipe.search.evaluations:
            drawn[bench.space.sample(rng)] = None
        found = [bench.evaluator(config) for config in progress(list(drawn), "random sub-nets", "subnet")]
        rows = [{"config": dict(e.config), "values": e.values} for e in found]
        bench.run.write_json("chance.json", {"evaluations": rows})
    rows = bench.run.read_json("chance.json")["evaluations"]
    return [Evaluation(SubnetConfig(row["config"]), tuple(row["values"])) for row in rows]


def compared(
    bench: Workbench, shares: Sequence[float], chance: list[Evaluation]
) -> list[dict[str, SubnetConfig]]:
    """For each share the chosen sub-net nearest to it, the uniform one of its MACs, and the best random one.

    Kept in the run folder: the others are tuned like chosen ones, and from then on look like such.
    """
    if not bench.run.has("compared.json"):
        top1 = [o.name for o in bench.evaluator.objectives].index("top1_percent")
        found = []
        for share in shares:
            nearest = min(
                chosen_by_search(bench),
                key=lambda config: abs(np.log(costs_of(bench, config)["macs_share"] / share)),
            )
            macs = costs_of(bench, nearest)["macs"]
            affordable = [e for e in chance if costs_of(bench, e.config)["macs"] <= macs]
            best = max(affordable, key=lambda e: e.values[top1])
            uniform = uniform_like(nearest, bench.space, bench.costs)
            found.append({CHOSEN: dict(nearest), UNIFORM: dict(uniform), RANDOM: dict(best.config)})
        bench.run.write_json("compared.json", found)
    stored = bench.run.read_json("compared.json")
    return [{name: SubnetConfig(config) for name, config in nets.items()} for nets in stored]


def chosen_by_search(bench: Workbench) -> list[SubnetConfig]:
    """What the road chose from its front, without the nets that are compared with them."""
    return [member.config for member in choose_members(bench, read_front(bench.run))]


def uniform_like(config: SubnetConfig, space: SearchSpace, costs: CostTable) -> SubnetConfig:
    """The config of uniform width whose MACs are nearest to those of `config`, by ratio."""
    candidates = list(dict.fromkeys(space.uniform(percent / 100) for percent in range(1, 101)))
    macs = costs.macs(space.encode([config, *candidates]))
    return candidates[int(np.abs(np.log(macs[1:] / macs[0])).argmin())]


def costs_of(bench: Workbench, config: SubnetConfig) -> dict[str, Any]:
    found = bench.costs.evaluate(bench.space.encode([config, bench.space.largest()]), ("macs", "params"))
    (macs, all_macs), (params, _) = found["macs"].tolist(), found["params"].tolist()
    return {"macs": macs, "params": params, "macs_share": macs / all_macs}


def trained_for(bench: Workbench, config: SubnetConfig, epochs: int, *, inherited: bool) -> float:
    """Test accuracy after so many epochs at the supernet's learning rate.

    From the supernet's weights and with its soft answers, or from random weights and on labels alone.
    """
    run, place = bench.run, f"{'longer' if inherited else 'alone'}/{config.key}"
    if not run.has(f"{place}.json"):
        net = bench.extracted(config) if inherited else fresh(bench.supernet, config, bench.recipe.seed)
        common = {"momentum", "weight_decay", "warmup_epochs", "precision", "device", "seed"}
        settings = FinetuneSettings(
            epochs=epochs, lr=bench.recipe.train.lr, **bench.recipe.train.model_dump(include=common)
        )
        teacher = bench.supernet if inherited else None
        checkpoint = f"{place}-checkpoint"
        tuned = finetune(net, bench.splits, settings, teacher=teacher, run=run, checkpoint=checkpoint)
        save_weights(run, f"{place}.safetensors", tuned.net)
        run.write_json(
            f"{place}.json", {"epochs": epochs, "test": top1_percent(tuned.net, bench.splits.test)}
        )
    return float(run.read_json(f"{place}.json")["test"])


def fresh(supernet: Supernet, config: SubnetConfig, seed: int) -> nn.Module:
    """The plain net of a config with random weights."""
    net = extract(supernet, config, supernet.example)
    seed_everything(seed, "alone", 0)
    for module in net.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    net.calibrated = True  # type: ignore[assignment]  # statistics are learnt from the start
    return net


def collect(
    evidence: Evidence, bench: Workbench, pairs: list[dict[str, SubnetConfig]], chance: list[Evaluation]
) -> dict[str, Any]:
    """Everything the page shows of one seed, as plain data."""
    run, largest = bench.run, bench.space.largest()
    nets = [measured(run, bench, config) for config in chosen_by_search(bench)]
    compared_nets: list[dict[str, Any]] = []
    for pair in pairs:
        row = {name: measured(run, bench, config) for name, config in pair.items()}
        if evidence.alone_epochs:
            first = bench.recipe.seed == evidence.seeds[0] and not compared_nets
            for name in (LONGER, ALONE) if first else (ALONE,):
                test = trained_for(bench, pair[CHOSEN], evidence.alone_epochs, inherited=name == LONGER)
                row[name] = {**costs_of(bench, pair[CHOSEN]), "test": test}
        compared_nets.append(row)
    everything = [measured(run, bench, config) for config in bench.chosen()]
    tau = kendalltau([n["before"] for n in everything], [n["after"] for n in everything])
    return {
        "images": run.read_json("splits.json")["images"],
        "as_it_came_test": as_it_came(bench),
        "full_test": run.read_json("metrics.json")["test"]["top1_percent"],
        "supernet_test": top1_percent(bench.supernet, bench.splits.test),
        "full": costs_of(bench, largest),
        "chosen": sorted(nets, key=lambda net: net["macs"]),
        "compared": compared_nets,
        "inherited_and_tuned": {"tau": float(tau.statistic), "p": float(tau.pvalue), "nets": len(everything)},
        "front": [
            [m["values"]["macs"], m["values"]["top1_percent"]] for m in run.read_json("front.json")["members"]
        ],
        "evaluations": bench.recipe.search.evaluations,
        "hypervolume": hypervolumes(bench, chance),
        "seconds": stage_seconds(run),
    }


def as_it_came(bench: Workbench) -> float | None:
    """Test accuracy of the network with the recipe's weights, before any training here."""
    model = bench.recipe.model
    if model.weights is None:
        return None
    return top1_percent(load_model(model.name, model.weights, model.options), bench.splits.test)


def measured(run: Run, bench: Workbench, config: SubnetConfig) -> dict[str, Any]:
    metrics = run.read_json(f"subnets/{config.key}/metrics.json")
    steps = {step: metrics[step]["top1_percent"] for step in ("before", "after", "test")}
    return {"key": config.key, **costs_of(bench, config), **steps}


def hypervolumes(bench: Workbench, chance: list[Evaluation]) -> dict[str, list[float]]:
    """Share of the plane of top-1 and MACs, in percent, that the first evaluations of each search dominate."""
    lines = [line for line in bench.run.journal.lines() if line["kind"] == "result"]
    mine = [Evaluation(SubnetConfig(line["config"]), (line["values"]["top1_percent"],)) for line in lines]
    top1 = [o.name for o in bench.evaluator.objectives].index("top1_percent")
    random = [Evaluation(e.config, (e.values[top1],)) for e in chance]
    full = costs_of(bench, bench.space.largest())["macs"]
    reference = {"top1_percent": 0.0, "macs": full}

    def grown(seen: list[Evaluation]) -> list[float]:
        macs = bench.costs.macs(bench.space.encode([e.config for e in seen])).tolist()
        points = [Evaluation(e.config, (e.values[0], m)) for e, m in zip(seen, macs, strict=True)]
        counts = [round(part * bench.recipe.search.evaluations) for part in QUARTERS]
        return [ParetoFront.of(PLANE, points[:count]).hypervolume(reference) / full for count in counts]

    return {"search": grown(mine), "random": grown(random)}


def stage_seconds(run: Run) -> dict[str, float]:
    """Seconds of each stage, broken-off attempts left out."""
    return {event["stage"]: event["seconds"] for event in run.events() if event["kind"] == "end"}


def as_page(evidence: Evidence, stored: dict[str, Any]) -> str:
    seeds, machine = stored["seeds"], stored["machine"]
    missing = [seed for seed in evidence.seeds if str(seed) not in seeds]
    parts = [evidence.head.format(command=evidence.command)]
    if missing:
        parts.append(f"**Not finished**: still to come of the seeds: {', '.join(map(str, missing))}.\n")
    parts += [_whole(seeds), _compared(evidence, seeds), _chosen(seeds), _hypervolume(seeds)]
    parts.append(f"![Test accuracy against multiply-adds]({evidence.name}.png)\n")
    parts.append(
        f"{machine['cpu']}, one thread, {machine['os']}, Python {machine['python']}, torch {machine['torch']}, "
        f"{stored['date']}.\n"
    )
    return "\n".join(parts)


def _whole(seeds: dict[str, Any]) -> str:
    full, supernet = ([seed[name] for seed in seeds.values()] for name in ("full_test", "supernet_test"))
    return f"The full net: {_spread(full)} % on test; the supernet's largest after training: {_spread(supernet)} %.\n"


def _compared(evidence: Evidence, seeds: dict[str, Any]) -> str:
    epochs = evidence.alone_epochs
    alone = (
        f" A net trained alone has the chosen config, random weights, and {epochs} epochs, as many as the sub-net's "
        f"weights have seen. To see what is missing, the first chosen sub-net of the first seed was tuned for "
        f"{epochs} epochs as well, at the same learning rate."
    )
    rows = [
        "## Chosen sub-nets beside other nets of their MACs\n",
        "Uniform width and the best of as many random sub-nets as the search looked at, with no more MACs, come from "
        "the same supernet and were fine-tuned alike. The search may choose one of its uniform controls: then two rows "
        f"show the same net.{alone if evidence.alone_epochs else ''}\n",
        "| about | net | share of MACs | search-val before tuning | after | test, mean (lowest to highest) | by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for i, share in enumerate(evidence.shares):
        for name in next(iter(seeds.values()))["compared"][i]:
            nets = [seed["compared"][i][name] for seed in seeds.values() if name in seed["compared"][i]]
            steps = [
                f"{np.mean([net[step] for net in nets]):.2f}" if step in nets[0] else ""
                for step in ("before", "after")
            ]
            tests = [net["test"] for net in nets]
            part = f"{100 * np.mean([net['macs_share'] for net in nets]):.1f} %"
            each = ", ".join(f"{test:.2f}" for test in tests)
            cells = [f"{100 * share:.0f} %", name, part, *steps, _spread(tests), each]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, ""])


def _chosen(seeds: dict[str, Any]) -> str:
    rows = [
        "## All chosen sub-nets\n",
        "| seed | share of MACs | parameters | search-val before tuning | after | test | full net's test |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, seed in seeds.items():
        for net in seed["chosen"]:
            steps = " | ".join(f"{net[step]:.2f}" for step in ("before", "after", "test"))
            share = f"{100 * net['macs_share']:.1f} %"
            rows.append(f"| {name} | {share} | {net['params']:,} | {steps} | {seed['full_test']:.2f} |")
    taus = [seed["inherited_and_tuned"] for seed in seeds.values()]
    told = ", ".join(f"{t['tau']:.2f} ({t['nets']} nets, p = {t['p']:.3f})" for t in taus)
    rows += ["", f"Kendall's tau between inherited and tuned accuracy, all tuned nets of a seed: {told}.", ""]
    return "\n".join(rows)


def _hypervolume(seeds: dict[str, Any]) -> str:
    evaluations = next(iter(seeds.values()))["evaluations"]
    rows = [
        "## Hypervolume\n",
        "Share of the box of MACs (up to the full net's) and top-1 (from 0) that the first evaluations dominate, in "
        "percent; mean (lowest to highest). The search's own evaluations begin with its controls, uniform widths among "
        "them; those of the random row are random throughout.\n",
        f"| share of the {evaluations} evaluations | {' | '.join(f'{part:.0%}' for part in QUARTERS)} |",
        f"|---|{'---|' * len(QUARTERS)}",
    ]
    for name in ("search", "random"):
        columns = zip(*(seed["hypervolume"][name] for seed in seeds.values()), strict=True)
        rows.append(f"| {name} | {' | '.join(_spread(list(column)) for column in columns)} |")
    return "\n".join([*rows, ""])


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def draw(seeds: dict[str, Any], path: Path) -> None:
    """Test accuracy against the share of MACs, the seeds one above the other in one plane."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    marks = {
        CHOSEN: ("o", "C0"),
        UNIFORM: ("^", "C1"),
        RANDOM: ("s", "C2"),
        LONGER: ("+", "C4"),
        ALONE: ("x", "C3"),
    }
    for seed in seeds.values():
        chosen = seed["chosen"]
        shares = [100 * net["macs_share"] for net in chosen]
        axes.plot(shares, [net["test"] for net in chosen], "o-", color="C0", alpha=0.6, linewidth=1)
        for pair in seed["compared"]:
            for name, net in pair.items():
                if name != CHOSEN:
                    marker, color = marks[name]
                    axes.plot(100 * net["macs_share"], net["test"], marker, color=color)
        axes.plot(100, seed["full_test"], "*", color="black", markersize=10)
    for name, (marker, color) in marks.items():
        axes.plot([], [], marker, color=color, label=name)
    axes.plot([], [], "*", color="black", markersize=10, label="full net")
    axes.set(xlabel="multiply-adds, % of the full net's", ylabel="top-1 on test, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
