"""The proof that an extracted, stored sub-net is the one that was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from search_spaces import SubnetConfig
from subnet_search.batches import call_with, device_of, first_images, input_size, moved
from subnet_search.data import Batch
from subnet_search.elastic.extraction import TOLERANCE, cut_out, difference_on, tensors_in
from subnet_search.elastic.image_size import as_taken
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.statistics import Statistics
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import check_calibrated, top1_percent
from subnet_search.measure.counter import count_macs, count_params
from subnet_search.measure.evaluator import statistics_on
from subnet_search.models import load_weights
from subnet_search.modes import evaluation_mode

COMPARED_IMAGES = 16


@dataclass(frozen=True)
class Proof:
    """What was promised of a sub-net, and what was found when that was checked independently.

    Attributes:
        form: whether the net is made of the model's own classes or of the graph of its operations.
        max_abs_difference: between the extracted net and the supernet with that config active, on real
            inputs.
        reload_equal: the stored weights in a freshly built structure give bit for bit the net in memory.
        params, macs: counted on the reloaded net.
        params_promised, macs_promised: from the closed-form costs.
        accuracy_stored, accuracy_reloaded: percent, as recorded and as measured on the reloaded net.
        passed: all of this holds.
    """

    form: Literal["own classes", "graph"]
    max_abs_difference: float
    reload_equal: bool
    params: int
    macs: int
    params_promised: int
    macs_promised: int
    accuracy_stored: float
    accuracy_reloaded: float
    passed: bool


def prove(
    supernet: Supernet,
    config: SubnetConfig,
    statistics: Statistics | None,
    net: nn.Module,
    *,
    build: Callable[[], nn.Module],
    weights: str | Path,
    batches: Iterable[Batch],
    accuracy_stored: float | None = None,
    score: Callable[[nn.Module, Iterable[Batch]], float] = top1_percent,
) -> Proof:
    """Checks a sub-net from the supernet to the file.

    Args:
        supernet: the shared weights the sub-net was extracted from.
        config: the sub-net.
        statistics: its batch-norm statistics, from `recalibrate`.
        net: the final net in memory; after fine-tuning its weights differ from the supernet's.
        build: gives the sub-net's structure, freshly made, whatever its weights.
        weights: the safetensors file that `net` was stored in.
        batches: search-validation data, for the accuracies.
        accuracy_stored: percent recorded for `net`; measured on it if not given.
        score: measures a net on `batches`, for other tasks than classification; the accuracies of the proof are its
            values then.

    Raises:
        InvalidInput: the net is uncalibrated, or the file cannot be read into the structure.
    """
    check_calibrated(net, "proved")
    reloaded = load_weights(build(), weights).to(device_of(net))
    (inputs, _), *_ = first_images(batches, COMPARED_IMAGES, size=input_size(supernet.example))
    statistics = statistics and statistics_on(device_of(supernet), statistics)
    extracted = cut_out(supernet, config, statistics)
    inputs = moved(inputs, device_of(supernet))
    difference, scale = difference_on(supernet, config, extracted, inputs, statistics)
    row = supernet.space.encode([config])
    promised = (int(supernet.costs.params(row)[0]), int(supernet.costs.macs(row)[0]))
    found = (count_params(reloaded), count_macs(reloaded, supernet.example))
    stored = score(net, batches) if accuracy_stored is None else accuracy_stored
    measured = score(reloaded, batches)
    equal = same_net(net, reloaded, moved(inputs, device_of(net)))
    agrees = difference <= TOLERANCE * max(scale, 1.0)
    return Proof(
        form="graph" if isinstance(supernet.model, RunsGraph) else "own classes",
        max_abs_difference=difference,
        reload_equal=equal,
        params=found[0],
        macs=found[1],
        params_promised=promised[0],
        macs_promised=promised[1],
        accuracy_stored=stored,
        accuracy_reloaded=measured,
        passed=agrees and equal and found == promised and stored == measured,
    )


def same_net(first: nn.Module, second: nn.Module, inputs: Any) -> bool:
    """Whether two nets have equal state and give equal answers, bit for bit."""
    states = [net.state_dict() for net in (first, second)]
    if states[0].keys() != states[1].keys():
        return False
    if not all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()):
        return False
    inputs = as_taken(first, inputs)
    with evaluation_mode(first, second), torch.no_grad():
        pairs = zip(*(tensors_in(call_with(net, inputs)) for net in (first, second)), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)
