"""Dynamic nets of small supernets with random weights, shared by the tests."""

from __future__ import annotations

import torch
from torch import nn

from subnet_search.data import Splits, TensorBatches
from subnet_search.dynamic.building import Slimming, make_slimming
from subnet_search.dynamic.cutting import place_at
from subnet_search.dynamic.routes import uniform_routes
from subnet_search.elastic.supernet import Supernet
from tests.small import small_data

IMAGES, LABELS = small_data(48, seed=11)


def gate_splits(num_gate: int = 64) -> Splits:
    train = small_data(64, seed=1)
    return Splits(
        train=TensorBatches(*train, 16, shuffle=True),
        search_val=TensorBatches(*small_data(40, seed=2), 16),
        test=TensorBatches(*small_data(40, seed=3), 16),
        gate=TensorBatches(*small_data(num_gate, seed=4), 16),
        calibration=TensorBatches(*train, 16),
    )


def slimming_of(
    supernet: Supernet,
    paths: tuple[str, ...] = (),
    count: int = 3,
    attention: bool = False,
    values: bool = False,
) -> Slimming:
    """Gates that spread images over all routes."""
    places = [place_at(supernet, path) for path in paths] or [place_at(supernet)]
    routes = uniform_routes(supernet.eval(), places, count=count)
    slimming = make_slimming(supernet, routes, [(IMAGES, LABELS)], attention=attention, values=values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for gate in slimming.net.gates.values():
            for layer in gate.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight)
    return slimming
