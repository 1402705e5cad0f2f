from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from search_spaces import InvalidInput
from subnet_search.elastic.extraction import apply_plan, extract, layer_plan
from subnet_search.elastic.statistics import recalibrate
from subnet_search.measure import prove, top1_percent
from subnet_search.measure.prove import Proof
from tests.small import EXAMPLE, SmallNet, small_splits, small_supernet

SPLITS = small_splits()


class Case:
    """A sub-net that is right in all respects, for tests to break."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.supernet = small_supernet()
        self.config = self.supernet.space.sample(np.random.default_rng(seed))
        assert SPLITS.calibration is not None
        self.statistics = recalibrate(self.supernet, self.config, SPLITS.calibration)
        self.net: nn.Module = extract(self.supernet, self.config, EXAMPLE, self.statistics)
        self.weights = folder / "net.safetensors"
        save_file(self.net.state_dict(), self.weights)
        plan = layer_plan(self.supernet, self.config)
        self.build: Callable[[], nn.Module] = lambda: apply_plan(SmallNet(), plan)

    def prove(self, **changes: Any) -> Proof:
        return prove(
            self.supernet,
            self.config,
            self.statistics,
            self.net,
            **{"build": self.build, "weights": self.weights, "batches": SPLITS.search_val, **changes},
        )


@pytest.mark.parametrize("seed", range(3))
def test_a_right_subnet_is_proved(seed: int, tmp_path: Path) -> None:
    case = Case(tmp_path, seed)
    proof = case.prove()
    row = case.supernet.space.encode([case.config])
    assert proof.passed
    assert proof.form == "own classes"
    assert proof.max_abs_difference < 1e-5
    assert proof.params == proof.params_promised == case.supernet.costs.params(row)[0]
    assert proof.macs == proof.macs_promised == case.supernet.costs.macs(row)[0]
    assert proof.accuracy_stored == proof.accuracy_reloaded == top1_percent(case.net, SPLITS.search_val)


def test_a_tuned_net_is_proved_though_its_weights_left_the_supernets(tmp_path: Path) -> None:
    case = Case(tmp_path)
    with torch.no_grad():
        for parameter in case.net.parameters():
            parameter.add_(0.01)
    save_file(case.net.state_dict(), case.weights)
    assert case.prove(accuracy_stored=top1_percent(case.net, SPLITS.search_val)).passed


def test_one_changed_weight_in_the_file_fails_the_proof(tmp_path: Path) -> None:
    case = Case(tmp_path)
    state = {name: tensor.clone() for name, tensor in case.net.state_dict().items()}
    state["classifier.bias"][0] += 1e-6
    save_file(state, case.weights)
    proof = case.prove()
    assert (proof.reload_equal, proof.passed) == (False, False)


def test_broken_promises_about_costs_fail_the_proof(tmp_path: Path) -> None:
    case = Case(tmp_path)
    costs = case.supernet.costs
    wrong = {"macs": lambda _, x: costs.macs(x) + 1, "params": lambda _, x: costs.params(x)}
    case.supernet.costs = type("Costs", (), wrong)()
    proof = case.prove()
    assert (proof.macs_promised - proof.macs, proof.passed) == (1, False)


def test_an_accuracy_that_was_recorded_wrongly_fails_the_proof(tmp_path: Path) -> None:
    assert not Case(tmp_path).prove(accuracy_stored=99.9).passed


def test_an_uncalibrated_net_cannot_be_proved(tmp_path: Path) -> None:
    case = Case(tmp_path)
    case.net = extract(case.supernet, case.supernet.space.smallest(), EXAMPLE)
    with pytest.raises(InvalidInput, match="cannot be proved; pass statistics="):
        case.prove()


def test_a_file_of_another_net_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path)
    with pytest.raises(InvalidInput, match=r"the weights do not fit SmallNet: missing"):
        case.prove(build=SmallNet)
    case.weights.write_bytes(case.weights.read_bytes()[:100])
    with pytest.raises(InvalidInput, match=r"cannot be read: .*save it again"):
        case.prove()
    with pytest.raises(InvalidInput, match=r"missing.safetensors"):
        case.prove(weights=tmp_path / "missing.safetensors")
