"""A run folder as a finished run leaves it, made up in milliseconds: a ResNet-20 whose accuracy is a formula."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces import CostTable, Knob, SearchSpace, SubnetConfig
from search_spaces.files import config_to_json, costs_to_json, space_to_json
from subnet_search.record.run import Run, create_run, open_run
from subnet_search.searchers.path import PathElement, Score, path_to_json

SETTINGS = """\
name = "synthetic"
seed = 7

[model]
name = "subnet_search.models:resnet20"
weights = "resnet20.safetensors"

[data]
source = "digits"
seed = 7

[train]
epochs = 30
seed = 7

[rank]
ranker = "taylor"
seed = 7

[search]
searcher = "nsga2"
objectives = ["top1_percent", "macs", "params"]
evaluations = 60
seed = 7

[search.limits]
macs = "80%"

[finetune]
epochs = 10
seed = 7
"""
Goals = list[dict[str, str]]
OBJECTIVES = [
    {"name": "top1_percent", "goal": "max"},
    {"name": "macs", "goal": "min"},
    {"name": "params", "goal": "min"},
]
RANKED = {"noise": (31.0, 62.5, 88.0), "taylor": (35.5, 70.0, 88.5), "random": (12.0, 40.0, 75.0)}
MEASURED = [{"name": "latency_ms", "goal": "min"}, {"name": "recall_percent", "goal": "max"}]
DROPS = ("layer3.0.conv1", "layer1.1", "layer3.0.conv1", "layer2.1.conv1")  # of a path, one after the other
STREAMS = {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}


def resnet20() -> tuple[SearchSpace, CostTable, dict[str, Any]]:
    """Space, costs and coverage of a ResNet-20: three streams, nine inner widths, seven skippable blocks."""
    convolutions = [
        ("conv1", "", "conv1", 32, "")
    ]  # path, group read, group written, pixels, skippable block
    writers, sizes, blocks = {name: [name] for name in STREAMS}, dict(STREAMS), []
    streams = list(STREAMS)
    for stage, side in enumerate((32, 16, 8)):
        for block in range(3):
            path = f"layer{stage + 1}.{block}"
            source, target = streams[max(stage - 1, 0) if block == 0 else stage], streams[stage]
            skippable = path if stage == 0 or block else ""
            if skippable:
                blocks.append(path)
            sizes[f"{path}.conv1"] = STREAMS[target]
            writers[f"{path}.conv1"] = [f"{path}.conv1"]
            if f"{path}.conv2" not in writers[target]:
                writers[target].append(f"{path}.conv2")
            convolutions += [
                (f"{path}.conv1", source, f"{path}.conv1", side, skippable),
                (f"{path}.conv2", f"{path}.conv1", target, side, skippable),
            ]
    order = ["conv1", *(name for name in sizes if name != "conv1")]
    order.sort(key=[path for path, *_ in convolutions].index)
    knobs = [Knob(n, tuple(range(sizes[n] // 8, sizes[n] + 1, sizes[n] // 8)), "width") for n in order]
    knobs += [Knob(block, (0, 1), "depth") for block in blocks]
    inner = {f"{block}.conv1": ((block,),) for block in blocks}
    terms: tuple[Counter[tuple[str, ...]], ...] = (Counter(), Counter())
    for _, source, target, side, block in convolutions:
        monomial = tuple(sorted(filter(None, (source, target, block))))
        for counter, pixels in zip(terms, (side * side, 1), strict=True):
            counter[monomial] += 9 * pixels * (1 if source else 3)
    terms[1][("layer3.0.conv2",)] += 10
    space = SearchSpace(tuple(knobs), inner)
    weight_bytes = {monomial: 4 * count for monomial, count in terms[1].items()}
    table = CostTable(space.names, (1,) * len(knobs), terms[0], terms[1], weight_bytes, ({("conv1",): 8192},))
    ends = space.encode([space.smallest(), space.largest()])
    macs, params = table.macs(ends).tolist(), table.params(ends).tolist()
    coverage = {
        "groups": [
            {"knob": n, "size": sizes[n], "units": sizes[n], "step": sizes[n] // 8, "writers": writers[n]}
            | {"readers": [path for path, source, *_ in convolutions if source == n]}
            for n in order
        ],
        "blocks": [{"knob": block, "path": block} for block in blocks],
        "fixed": [{"path": "linear", "reason": "it writes the model's output"}],
        "reachable_macs_share": 1.0,
        "smallest": {"macs": macs[0], "params": params[0]},
        "largest": {"macs": macs[1], "params": params[1]},
    }
    return space, table, coverage


def accuracy(space: SearchSpace, config: SubnetConfig) -> float:
    """A made-up top-1 percentage: it saturates in every width, and early layers matter most."""
    kept = {knob.name: config[knob.name] / knob.largest for knob in space.knobs}
    loss = sum(
        0.9 * (1 - kept[knob.name]) ** 2.2 * (2.4 if knob.name in STREAMS else 1) for knob in space.knobs
    )
    return round(float(92.1 - 1.9 * loss - 1.1 * loss**1.25 + 0.1 * np.sin(sum(config.values()))), 2)


def write_run(
    folder: Path, evaluations: int = 60, chosen: int = 3, tuned: bool = True, objectives: Goals = OBJECTIVES
) -> Path:
    """Writes a run folder; with `evaluations=0` it stops before the search, with `chosen=0` after it.

    Objectives may be taken from those of `MEASURED` too.
    """
    space, table, coverage = resnet20()
    with create_run(folder, SETTINGS) as run:
        run.event("begin", stage="prepare")
        run.write_json("space.json", space_to_json(space))
        run.write_json("costs.json", costs_to_json(table))
        run.write_json("coverage.json", coverage)
        run.write_json("device.json", {"cpu": "A processor", "cores": 2, "versions": {"torch": "2.15.0"}})
        images = {"train": 1021, "search_val": 359, "test": 360, "gate": 57}
        run.write_json("splits.json", {"source": "digits", "seed": 7, "images": images})
        if not evaluations:
            return folder
        curve = {
            "shares": (0.25, 0.5, 0.75),
            "macs_share": (0.08, 0.27, 0.58),
            "top1_percent": RANKED,
            "images": 359,
        }
        run.write_json("ranking.json", {"ranker": "taylor", "weights": "0" * 64, "order": {}, "curve": curve})
        seen = _search(run, space, table, evaluations, {objective["name"] for objective in objectives})
        front = _write_front(run, seen, objectives)
        picks = [front[round(i)] for i in np.linspace(0.15, 0.7, chosen) * (len(front) - 1)]
        for config, values in picks:
            _write_subnet(run, config, values, tuned)
        if picks and tuned:
            top1 = {"top1_percent": 91.83}
            run.write_json("metrics.json", {"test": top1 | _beside(picks[0][1], 91.83, latency_ms=1.5)})
        run.event("end", stage="export", seconds=1.5)
    return folder


def write_path(folder: Path, evaluated: int = 3, complete: bool = True) -> list[PathElement]:
    """Gives a run a path of five sub-nets, the third one tuned, and evaluates so many after joint training."""
    space, table, _ = resnet20()
    config, path = space.largest(), []
    for place, dropped in enumerate(("", *DROPS)):
        if dropped:
            choices = next(knob.choices for knob in space.knobs if knob.name == dropped)
            config = space.canonical({**config, dropped: choices[choices.index(config[dropped]) - 1]})
        score = Score(0.5, round(0.9 * accuracy(space, config), 2))
        path.append(PathElement(config, score, dropped, 1000 * (place + 1), tuned=place == 2))
    with open_run(folder) as run:
        run.write_json(
            "path.json", {"context": "0" * 16, "complete": complete, "elements": path_to_json(path)}
        )
        if evaluated:
            run.write("joined.safetensors", b"weights")
        for element in path[:evaluated]:
            x = space.encode([element.config])
            values = {"top1_percent": accuracy(space, element.config)}
            values |= {"macs": int(table.macs(x)[0]), "params": int(table.params(x)[0])}
            record(run, run.journal.next_n, element.config, "progressive", values)
    return path


Seen = list[tuple[SubnetConfig, dict[str, float]]]


def _beside(values: dict[str, float], top1_percent: float, latency_ms: float) -> dict[str, float]:
    """What is measured beside top-1, if `values` have it."""
    found = {"latency_ms": latency_ms, "recall_percent": top1_percent - 3.0}
    return {name: value for name, value in found.items() if name in values}


def _search(run: Run, space: SearchSpace, table: CostTable, evaluations: int, names: set[str]) -> Seen:
    rng = np.random.default_rng(7)
    plan = [("uniform", space.uniform(share)) for share in (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)]
    plan += [("random", config) for config in space.sample(rng, evaluations // 5)]
    seen: Seen = []
    found: Seen = []
    for n in range(evaluations):
        if n < len(plan):
            searcher, config = plan[n]
        else:
            searcher, config = "nsga2", space.sample(rng)
            if n > len(plan) + 8:
                parents = [found[i][0] for i in rng.choice(len(found), 2)]
                config = space.mutate(space.cross(parents[0], parents[1], rng), rng)
        x = space.encode([config])
        values = {"top1_percent": accuracy(space, config)}
        values |= {"macs": int(table.macs(x)[0]), "params": int(table.params(x)[0])}
        latency_ms = round(0.3 + values["macs"] / 3e7 + 0.1 * math.sin(n), 3)
        beside = {"latency_ms": latency_ms, "recall_percent": values["top1_percent"] - 2 + math.sin(n)}
        values |= {name: value for name, value in beside.items() if name in names}
        record(run, n, config, searcher, values)
        seen.append((config, values))
        if searcher == "nsga2":
            found = _non_dominated([*found, (config, values)]) if n > len(plan) + 8 else [*found, seen[-1]]
    return seen


def record(
    run: Run,
    n: int,
    config: SubnetConfig,
    searcher: str,
    values: dict[str, float] | None,
    context: str = "c0ffee",
) -> None:
    """One evaluation's lines in the journal; without values it failed."""
    run.journal.ask(n, config, context, searcher)
    if values:
        spread = {name: 0.04 for name in ("latency_ms",) if name in values}
        run.journal.result(n, values, spread=spread, seconds=0.5)
    else:
        run.journal.failed(n, "out of memory", seconds=0.5)


def _write_front(run: Run, seen: Seen, objectives: Goals) -> Seen:
    front = sorted(_non_dominated(seen, objectives), key=lambda pair: pair[1]["macs"])
    reference = {
        o["name"]: 0.0 if o["goal"] == "max" else max(values[o["name"]] for _, values in seen)
        for o in objectives
    }
    members = [{"key": config.key, "config": dict(config), "values": values} for config, values in front]
    run.write_json(
        "front.json",
        {"objectives": objectives, "members": members, "reference": reference, "hypervolume": 1.0},
    )
    return front


def _non_dominated(seen: Seen, objectives: Goals = OBJECTIVES) -> Seen:
    signs = {"min": 1, "max": -1}
    losses = np.array([[signs[o["goal"]] * values[o["name"]] for o in objectives] for _, values in seen])
    worse = [((losses <= row).all(1) & (losses < row).any(1)).any() for row in losses]
    return [pair for pair, beaten in zip(seen, worse, strict=True) if not beaten]


def _write_subnet(run: Run, config: SubnetConfig, values: dict[str, float], tuned: bool) -> None:
    place = f"subnets/{config.key}"
    run.write_json(f"{place}/config.json", config_to_json(config))
    if not tuned:
        return
    run.write(f"{place}/net.safetensors", b"0" * 4 * int(values["params"]))
    run.write(f"{place}/net.pt2", b"0" * 5 * int(values["params"]))
    before = values["top1_percent"]
    after = round(before + 0.45 * (92.4 - before), 2)
    accuracies = {"before": before, "after": after, "test": round(after - 0.31, 2)}
    metrics: dict[str, Any] = {
        when: {"top1_percent": top1} | _beside(values, top1, values.get("latency_ms", 0.0))
        for when, top1 in accuracies.items()
    }
    run.write_json(f"{place}/metrics.json", metrics | {"split": "search_val", "seeds": [7], "seconds": 12.5})
    proof = {"form": "own classes", "max_abs_difference": 1.9e-6, "reload_equal": True, "passed": True}
    proof |= {name: values[name] for name in ("macs", "params")}
    run.write_json(f"{place}/proof.json", proof)
