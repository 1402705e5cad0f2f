"""One tool on one network, in a process of its own: seconds of conversion, and of counting what sub-nets cost.

`python -m benchmarks.conversion_tools TOOL MODEL` prints a line of JSON for each thing it finds out.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from search_spaces import SubnetConfig
from subnet_search import ElasticSettings, make_elastic

SIDE_PX = 224
ROUNDS = 3
CANDIDATES = 5
BATCH = 1_000
COSTS = ("macs", "params")

Found = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A package that makes networks smaller.

    Attributes:
        title: its name.
        package: on the package index.
        measure: from a function that builds the network, and its input, to what is found, bit by bit.
    """

    title: str
    package: str
    measure: Callable[[Callable[[], nn.Module], Tensor], Iterator[Found]]


def measure_ours(build: Callable[[], nn.Module], image: Tensor) -> Iterator[Found]:
    """Conversion, and the cost table for single configs and for many."""
    tiny = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    make_elastic(tiny, torch.zeros(1, 3, 8, 8), ElasticSettings(form="graph"))  # imports torch.export
    model = build()
    converted_s, supernet = _timed(ROUNDS, partial(make_elastic, model, image))
    coverage = supernet.coverage
    share = coverage["smallest"]["macs"] / coverage["largest"]["macs"]
    yield {"converted_s": converted_s, "knobs": len(supernet.space.knobs), "smallest_macs_share": share}
    space, costs = supernet.space, supernet.costs
    configs = space.sample(np.random.default_rng(0), BATCH)

    def candidates(chosen: Sequence[SubnetConfig]) -> object:
        return costs.evaluate(space.encode(chosen), COSTS)

    single_s = [_timed(1, partial(candidates, [config]))[0][0] for config in configs[:CANDIDATES]]
    batch_s, _ = _timed(ROUNDS, partial(candidates, configs))
    yield {"single_s": single_s, "batch_s": batch_s}


def measure_torch_pruning(build: Callable[[], nn.Module], image: Tensor) -> Iterator[Found]:
    """The dependency graph; for a candidate, a copy is pruned and its operations are counted while it runs."""
    tp = import_module("torch_pruning")
    model = build()
    converted_s, graph = _timed(
        ROUNDS, lambda: tp.DependencyGraph().build_dependency(model, example_inputs=image)
    )
    yield {"converted_s": converted_s}
    yield {"knobs": sum(1 for _ in graph.get_all_groups(ignored_layers=_outputs(model)))}
    whole = tp.utils.count_ops_and_params(model, image)[0]

    def candidate(share: float) -> float:
        pruned = copy.deepcopy(model)
        tp.pruner.BasePruner(
            pruned,
            image,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=share,
            ignored_layers=_outputs(pruned),
        ).step()
        return float(tp.utils.count_ops_and_params(pruned, image)[0])

    shares = np.random.default_rng(0).uniform(0.1, 0.9, CANDIDATES)
    single_s = [_timed(1, partial(candidate, float(share)))[0][0] for share in shares]
    yield {"single_s": single_s}
    yield {"smallest_macs_share": candidate(0.9) / whole}


def measure_modelopt(build: Callable[[], nn.Module], image: Tensor) -> Iterator[Found]:
    """Conversion to an AutoNAS space; for a candidate, its sub-net is selected and counted while it runs."""
    mtn = import_module("modelopt.torch.nas")
    count_params = import_module("modelopt.torch.utils").param_num_from_forward
    models = iter([build() for _ in range(ROUNDS)])  # converted in place
    converted_s, space = _timed(ROUNDS, lambda: mtn.convert(next(models), mode="autonas"))
    yield {"converted_s": converted_s, "knobs": len(mtn.get_subnet_config(space, configurable=True))}
    configs = [dict(mtn.sample(space)) for _ in range(CANDIDATES)]

    def candidate(config: Mapping[str, Any]) -> float:
        mtn.select(space, config)
        count_params(space, args=image, unit=1.0)
        return float(mtn.inference_flops(space, image, unit=1.0))

    single_s = [_timed(1, partial(candidate, config))[0][0] for config in configs]
    yield {"single_s": single_s}
    smallest, largest = (candidate(dict(mtn.sample(space, choose))) for choose in (min, max))
    yield {"smallest_macs_share": smallest / largest}


TOOLS = {
    "ours": Tool("subnet-search", "subnet-search", measure_ours),
    "torch_pruning": Tool("Torch-Pruning", "torch-pruning", measure_torch_pruning),
    "modelopt": Tool("Model-Optimizer", "nvidia-modelopt torchprofile==0.0.4", measure_modelopt),
}


def run(tool: str, model: str) -> Iterator[Found]:
    """What a tool makes of a network of torchvision; whatever it raises is a finding, its `reason`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield {"version": version(TOOLS[tool].package.split()[0])}
    try:
        yield from TOOLS[tool].measure(partial(_build, model), torch.randn(1, 3, SIDE_PX, SIDE_PX))
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        yield {"reason": f"{type(error).__name__}: {reason}"}


def _build(model: str) -> nn.Module:
    net: nn.Module = getattr(torchvision.models, model)()
    return net.eval()


def _timed(rounds: int, call: Callable[[], Any]) -> tuple[list[float], Any]:
    """Seconds of each round, and what the last one returned."""
    seconds, found = [], None
    for _ in range(rounds):
        begin_s = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - begin_s)
    return seconds, found


def _outputs(model: nn.Module) -> list[nn.Module]:
    """The layers whose width is the number of classes."""
    return [m for m in model.modules() if getattr(m, "out_features", None) == 1000]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for part in run(*sys.argv[1:]):
        print(f"\n{json.dumps(part)}", flush=True)
