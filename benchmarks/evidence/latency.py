"""Latency on this CPU: 60 measured sub-nets foretell 100 others, in several runtimes.

Each measured sub-net is one line below runs/latency/<model>/<runtime>, so a broken-off call goes on. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from benchmarks.evidence.latency_judged import AGAIN, JUDGE, LEARN, lines_of
from benchmarks.evidence.latency_page import write_page
from benchmarks.evidence.latency_targets import Files, Target
from search_spaces import SearchSpace, SubnetConfig
from search_spaces.files import costs_to_json, space_to_json
from subnet_search.elastic import make_elastic
from subnet_search.elastic.extraction import cut_out
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import describe_device
from subnet_search.measure.runtimes import RUNTIMES
from subnet_search.measure.runtimes.base import raise_stop, reason_of
from subnet_search.memory import keep_freed_memory
from subnet_search.progress import progress
from subnet_search.seeding import derive_seed
from subnet_search.settings import RuntimeName

COMMAND = "python -m benchmarks.evidence.latency"
RUNS = Path("runs") / "latency"
MODELS = {
    "resnet50": torchvision.models.resnet50,
    "mobilenet_v3_large": torchvision.models.mobilenet_v3_large,
}
DEFAULT_RUNTIMES: tuple[RuntimeName, ...] = ("torch", "onnxruntime", "openvino")
COSTS = ("macs", "params")
PX, SEED, SPREAD = 224, 0, 0.25


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--runtimes", nargs="+", default=DEFAULT_RUNTIMES, choices=list(RUNTIMES))
    parser.add_argument("--most", type=int, help="measure at most so many nets of each network: a trial")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    try:
        for model in () if args.page else args.models:
            measure(model, args.runtimes, args.most)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    finally:
        print(write_page())


def measure(model: str, runtimes: Sequence[RuntimeName], most: int | None) -> None:
    """Times what is not in the model's folder yet, one net after the other in all runtimes."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    supernet = make_elastic(MODELS[model](), torch.zeros(1, 3, PX, PX)).eval()
    folders = {runtime: RUNS / model / runtime for runtime in runtimes}
    done = {runtime: _done(folder) for runtime, folder in folders.items()}
    todo = [
        one for one in asked_for(supernet.space) if any((one[0], one[1].key) not in d for d in done.values())
    ]
    if not todo[:most]:
        return
    _describe(supernet, RUNS / model)
    whole = Files(cut_out(supernet, supernet.space.largest()), supernet.example)
    targets = {runtime: _target(runtime, whole, folder) for runtime, folder in folders.items()}
    for role, config in progress(todo[:most], model, "net"):
        net = Files(cut_out(supernet, config), supernet.example)
        for runtime, folder in folders.items():
            if (role, config.key) not in done[runtime]:
                _append(
                    folder / "nets.jsonl", {"role": role, **_line(supernet, config, targets[runtime], net)}
                )


def _done(folder: Path) -> set[tuple[str, str]]:
    return {(line["role"], line["key"]) for line in lines_of(folder / "nets.jsonl")}


def _describe(supernet: Supernet, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("space", space_to_json(supernet.space)), ("costs", costs_to_json(supernet.costs))):
        (folder / f"{name}.json").write_text(json.dumps(content) + "\n", "utf-8")


def _target(runtime: RuntimeName, whole: Files, folder: Path) -> Target:
    """A runtime that goes on in the milliseconds of an earlier call."""
    place = folder / "timing.json"
    target = Target(runtime, whole, json.loads(place.read_text("utf-8")) if place.exists() else None)
    folder.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(target.timing) + "\n", "utf-8")
    (folder / "machine.json").write_text(json.dumps(describe_device()) + "\n", "utf-8")
    return target


def _line(supernet: Supernet, config: SubnetConfig, target: Target, net: Files) -> dict[str, Any]:
    """One measurement, or why there is none; `seconds` are those of writing the shared file too, for who did."""
    start_s, costs = time.perf_counter(), supernet.costs.evaluate(supernet.space.encode([config]), COSTS)
    found: dict[str, Any] = {"key": config.key, "config": dict(config), "reason": ""}
    found |= {name: int(value[0]) for name, value in costs.items()}
    try:
        latency = target.of(net, derive_seed(SEED, "latency", config.key))
        found |= {
            "ms": latency.median_ms,
            "half_interval_ms": latency.half_interval_ms,
            "rounds": latency.rounds,
        }
    except Exception as error:  # converters raise nearly anything
        raise_stop(error)
        found["reason"] = reason_of(error)
    return found | {"seconds": time.perf_counter() - start_s}


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(line))  # what a crash tore stays a line of its own


def asked_for(space: SearchSpace) -> list[tuple[str, SubnetConfig]]:
    """Nets to learn from and others to judge by, alike and in mixed order; some of the latter once more in the end."""
    rng = np.random.default_rng(SEED)
    configs: dict[str, SubnetConfig] = {}
    while len(configs) < LEARN + JUDGE:
        config = of_any_size(space, rng)
        configs[config.key] = config
    nets = list(configs.values())
    roles = [("learn", config) for config in nets[:LEARN]] + [("judge", config) for config in nets[LEARN:]]
    mixed = [roles[i] for i in rng.permutation(len(roles))]
    return mixed + [("again", config) for config in nets[LEARN : LEARN + AGAIN]]


def of_any_size(space: SearchSpace, rng: np.random.Generator) -> SubnetConfig:
    """A random sub-net; a size is drawn first and its knobs around that, as uniform knobs all give middling sizes."""
    size = rng.uniform()
    values = {}
    for knob in space.knobs:
        place = round((len(knob.choices) - 1) * float(np.clip(size + SPREAD * rng.standard_normal(), 0, 1)))
        values[knob.name] = knob.choices[place]
    return space.canonical(values)


if __name__ == "__main__":
    main()
