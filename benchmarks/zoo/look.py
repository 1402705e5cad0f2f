"""One network of a zoo: what conversion makes of it, as plain data."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.zoo.names import SIDES_PX
from search_spaces import RESOLUTION_KNOB, InvalidInput, SubnetConfig
from subnet_search import ElasticSettings, extract, load_model, make_elastic
from subnet_search.elastic.coverage import INPUT
from subnet_search.elastic.image_size import as_taken
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.counter import count_params, macs_by_operator

ATTENTION = ("bmm", "baddbmm")  # products of two activations; fused attention is counted as two of them
TOLERANCE = 1e-3  # of how far the answers to two inputs lie apart
AS_IT_SHOULD = ("the network's output", "no smaller width")


def look(name: str, seed: int = 0) -> dict[str, Any]:
    """Converts a network of random weights, cuts two sub-nets out and has their costs counted.

    Args:
        name: "torchvision:NAME" or "timm:NAME".
        seed: of weights, input and the random sub-net.

    Returns:
        `status` "converted", "refused" (by a message meant for the user) or "failed"; `resolution` a smaller size that
        was tried, `pixels` high, and why it is not possible, if so; `wrong` lists every check that does not hold.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = load_model(name).eval()
    no_branch_silent(model)
    example = torch.randn(1, *input_shape(name, model))
    macs = macs_by_operator(model, example)
    found: dict[str, Any] = {
        "input": list(example.shape[1:]),
        "kind": kind_of(model, macs),
        "macs": sum(macs.values()),
        "params": count_params(model),
    }
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    try:
        supernet = make_elastic(model, example).eval()
    except InvalidInput as error:
        return {**found, "status": "refused", "reason": str(error), "wrong": []}
    found |= {"cpu_s": time.process_time() - begin_cpu_s, "wall_s": time.perf_counter() - begin_s}
    found |= {"status": "converted", **_described(supernet), "wrong": _wrong(supernet, found, seed)}
    return found | _smaller(model, example, supernet.coverage, found["wrong"], seed)


def lower_px(height: int) -> int:
    """A smaller height to try: about six sevenths, a multiple of 32 pixels."""
    return min(32 * round(6 / 7 * height / 32), height - 1)


def _smaller(
    model: nn.Module, example: Tensor, coverage: Mapping[str, Any], wrong: Sequence[str], seed: int
) -> dict[str, Any]:
    """Converts once more with a smaller size of images to choose, and checks sub-nets that take it."""
    settings = ElasticSettings(form=coverage["form"], resolution=(lower_px(example.shape[-2]),))
    begin_cpu_s = time.process_time()
    supernet = make_elastic(model, example, settings).eval()
    told = {"pixels": settings.resolution[0], "cpu_s": time.process_time() - begin_cpu_s}
    if not supernet.coverage["resolution"]:
        refused = [entry["reason"] for entry in supernet.coverage["fixed"] if entry["path"] == INPUT]
        return {"resolution": {**told, "refused": "; ".join(refused)}}
    space = supernet.space
    drawn = {"smallest": space.smallest(), "random": space.sample(np.random.default_rng(seed))}
    configs = {
        f"{which} sub-net of {settings.resolution[0]} pixels": space.canonical(
            {**config, RESOLUTION_KNOB: settings.resolution[0]}
        )
        for which, config in drawn.items()
    }
    wrong = [*wrong, *_wrong_subnets(supernet, configs)]
    freedoms = sorted({*coverage["freedoms"], "resolution"})
    return {"resolution": told, "freedoms": freedoms, "wrong": wrong}


def input_shape(name: str, model: nn.Module) -> tuple[int, ...]:
    """The input a network is made for: that of its published weights, the smallest where these differ."""
    source, _, entry = name.partition(":")
    if source == "timm":
        shape = tuple(model.pretrained_cfg["input_size"])  # type: ignore[index]
        side_px = SIDES_PX.get(entry, shape[-1])
        return (shape[0], side_px, side_px)
    sizes = [w.transforms().crop_size[0] for w in torchvision.models.get_model_weights(entry)]
    return (3, min(sizes), min(sizes))


@torch.no_grad()
def no_branch_silent(model: nn.Module) -> None:
    """Gives what starts at one value (scales at zero or nearly so, shifts, statistics) values of its own.

    A branch that a fresh network multiplies by zero could be cut wrongly without anybody seeing it.
    """
    for tensor in model.parameters():
        if tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
            if tensor.flatten()[0] == 0:
                tensor.normal_(0.0, 0.2 if tensor.ndim <= 1 else 0.02)
            else:
                tensor.uniform_(0.5, 1.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-0.2, 0.2)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)


def kind_of(model: nn.Module, macs: Mapping[str, int]) -> str:
    """ "CNN", "transformer", "hybrid" or "MLP", by operators.

    Attention: a product of two activations. Convolution: over more than one position, beyond the patch embedding (the
    layer that reads the image).
    """
    attends = any(macs.get(operator, 0) for operator in ATTENTION)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    convolves = any(math.prod(m.kernel_size) > 1 and m.in_channels > 3 for m in convolutions)
    kinds = {(0, 1): "CNN", (1, 0): "transformer", (1, 1): "hybrid", (0, 0): "MLP"}
    return kinds[int(attends), int(convolves)]


def _described(supernet: Supernet) -> dict[str, Any]:
    """What the coverage table says, without its long lists."""
    coverage = supernet.coverage
    smallest, largest = coverage["smallest"], coverage["largest"]
    kinds = [knob.kind for knob in supernet.space.knobs]
    return {
        "form": coverage["form"],
        "freedoms": coverage["freedoms"],
        "reachable_macs_share": coverage["reachable_macs_share"],
        "smallest_macs_share": smallest["macs"] / largest["macs"],
        "smallest_params_share": smallest["params"] / largest["params"],
        "subnets": str(supernet.space.size),
        "subnets_log10": math.log10(supernet.space.size),
        "knobs": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "fixed": [entry for entry in coverage["fixed"] if not entry["reason"].startswith(AS_IT_SHOULD)],
    }


def _wrong(supernet: Supernet, found: Mapping[str, Any], seed: int) -> list[str]:
    """The checks that do not hold: of the whole network, of its smallest sub-net, of a random one."""
    wrong: list[str] = []
    promised = supernet.coverage["largest"]
    for cost in ("macs", "params"):
        if promised[cost] != found[cost]:
            wrong.append(f"the whole network has {found[cost]:,} {cost}, promised are {promised[cost]:,}")
    space = supernet.space
    drawn = space.sample(np.random.default_rng(seed))
    return wrong + _wrong_subnets(supernet, {"smallest sub-net": space.smallest(), "random sub-net": drawn})


def _wrong_subnets(supernet: Supernet, configs: Mapping[str, SubnetConfig]) -> list[str]:
    wrong: list[str] = []
    for which, config in configs.items():
        try:
            wrong += [f"{which}: {message}" for message in _wrong_subnet(supernet, config)]
        except Exception as error:  # whatever a network's code raises is a finding
            wrong.append(f"{which}: {type(error).__name__}: {_first_line(error)}")
    return wrong


@torch.no_grad()
def _wrong_subnet(supernet: Supernet, config: SubnetConfig) -> list[str]:
    net = extract(supernet, config).eval()
    assert isinstance(supernet.example, Tensor)
    row = supernet.space.encode([config])
    promised = {"macs": int(supernet.costs.macs(row)[0]), "params": int(supernet.costs.params(row)[0])}
    counted = {"macs": sum(macs_by_operator(net, supernet.example).values()), "params": count_params(net)}
    wrong = [
        f"has {counted[cost]:,} {cost}, promised are {promised[cost]:,}"
        for cost in promised
        if promised[cost] != counted[cost]
    ]
    difference, apart = _difference(supernet, config, net)
    if (
        not difference <= TOLERANCE * apart
    ):  # float32 may be too coarse where answers hardly depend on the input
        try:
            difference, apart = _difference(supernet.double(), config, net.double())
        finally:
            supernet.float()
    if not difference <= TOLERANCE * apart:
        wrong.append(
            f"extracted and active answer {difference:.3g} apart, answers to two inputs {apart:.3g} apart"
        )
    return wrong


def _difference(supernet: Supernet, config: SubnetConfig, net: nn.Module) -> tuple[float, float]:
    """How far apart the answers of the active and the extracted sub-net are, and those to two inputs."""
    assert isinstance(supernet.example, Tensor)
    dtype = next(net.parameters()).dtype
    two = torch.randn(2, *supernet.example.shape[1:], generator=torch.Generator().manual_seed(1)).to(dtype)
    with supernet.subnet(config):
        wanted = _joined(supernet(two))  # [2, values]
    return float((_joined(net(as_taken(net, two))) - wanted).abs().max()), float(
        (wanted[0] - wanted[1]).abs().max()
    )


def _joined(answer: Any) -> Tensor:
    """All tensors of an answer in one, `[B, values]`."""
    return torch.cat([t.flatten(1) for t in tree_leaves(answer) if isinstance(t, Tensor)], dim=1).double()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
