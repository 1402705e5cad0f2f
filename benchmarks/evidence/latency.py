"""Latency on this CPU: 60 measured sub-nets foretell 100 others, in several runtimes.

Each measured sub-net is one line below runs/latency/<model>/<runtime>, so a broken-off call goes on. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from benchmarks.evidence.latency_judged import AGAIN, JUDGE, LEARN, lines_of
from benchmarks.evidence.latency_page import write_page
from search_spaces import SearchSpace, SubnetConfig
from search_spaces.files import costs_to_json, space_to_json
from subnet_search.elastic import make_elastic
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import describe_device
from subnet_search.measure.runtimes import RUNTIMES
from subnet_search.measure.subnet_latency import SubnetLatency
from subnet_search.memory import keep_freed_memory
from subnet_search.progress import progress
from subnet_search.settings import DeviceSettings

COMMAND = "python -m benchmarks.evidence.latency"
RUNS = Path("runs") / "latency"
MODELS = {
    "resnet50": torchvision.models.resnet50,
    "mobilenet_v3_large": torchvision.models.mobilenet_v3_large,
}
DEFAULT_RUNTIMES = ("torch", "onnxruntime", "openvino")
PX, SEED, SPREAD = 224, 0, 0.25


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--runtimes", nargs="+", default=DEFAULT_RUNTIMES, choices=list(RUNTIMES))
    parser.add_argument("--most", type=int, help="stop after so many nets of each kind: a trial")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    for model in () if args.page else args.models:
        keep_freed_memory()
        torch.set_num_threads(1)
        torch.manual_seed(SEED)
        supernet = make_elastic(MODELS[model](), torch.zeros(1, 3, PX, PX)).eval()
        (RUNS / model).mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("space", space_to_json(supernet.space)),
            ("costs", costs_to_json(supernet.costs)),
        ):
            (RUNS / model / f"{name}.json").write_text(json.dumps(content) + "\n", "utf-8")
        for runtime in args.runtimes:
            measure(supernet, RUNS / model / runtime, runtime, args.most)
            write_page()
    print(write_page())


def measure(supernet: Supernet, folder: Path, runtime: str, most: int | None) -> None:
    """Times what is not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = asked_for(supernet.space)
    done = {(line["role"], line["key"]) for line in lines_of(folder / "nets.jsonl")}
    todo = [one for one in asked if (one[0], one[1].key) not in done][:most]
    if not todo:
        return
    place = folder / "timing.json"
    stored = json.loads(place.read_text("utf-8")) if place.exists() else None
    profile = DeviceSettings(name="cpu", runtime=runtime, threads=1)
    latency = SubnetLatency(supernet, profile=profile, seed=SEED, timing=stored)
    if stored is not None and latency.timing != stored:
        raise SystemExit(f"{folder} was measured on another machine or with other versions; move it away")
    place.write_text(json.dumps(latency.timing) + "\n", "utf-8")
    (folder / "machine.json").write_text(json.dumps(describe_device()) + "\n", "utf-8")
    for role, config in progress(todo, f"{folder.parent.name} {runtime}", "net"):
        found = latency.measured(config)
        line: dict[str, Any] = {
            "role": role,
            "key": config.key,
            "config": dict(config),
            "reason": found.reason,
        }
        row = supernet.space.encode([config])
        line |= {
            name: int(value[0]) for name, value in supernet.costs.evaluate(row, ("macs", "params")).items()
        }
        if found.latency is not None:
            line |= {"ms": found.latency.median_ms, "half_interval_ms": found.latency.half_interval_ms}
        line |= {"seconds": found.seconds}
        with (folder / "nets.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


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
