from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from search_spaces import InvalidInput
from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.record import create_run, open_run
from subnet_search.settings import TrainSettings
from subnet_search.training import Among, BootstrapStep, train
from subnet_search.training.bootstrap import Average, average_of, averaged_answers
from subnet_search.training.losses import soft_cross_entropy
from tests.small import small_data, small_net, small_splits, small_supernet
from tests.vit import vit_supernet

BATCH = small_data(16, seed=5)
SETTINGS = TrainSettings(epochs=2, lr=0.02, warmup_epochs=0.5, device="cpu", checkpoint_seconds=1e-9)
STEPS = [BootstrapStep(ensemble=True), BootstrapStep(views="crop+flip")]


@pytest.mark.parametrize(
    ("step", "make"),
    [
        (BootstrapStep(), small_supernet),
        (STEPS[0], small_supernet),
        pytest.param(STEPS[1], vit_supernet, marks=pytest.mark.slow),
    ],
)
def test_every_parameter_gets_a_gradient_and_the_average_none(step: BootstrapStep, make: object) -> None:
    supernet = make().train()  # type: ignore[operator]
    step(supernet, BATCH, np.random.default_rng(0))
    found = {name: p.grad is not None and bool(p.grad.any()) for name, p in supernet.model.named_parameters()}
    assert all(found.values()), found
    assert not any(tensor.requires_grad for tensor in average_of(supernet).state().values())


def test_the_average_is_the_recursion_of_its_definition() -> None:
    model, decay = small_net(), 0.15
    average, wanted = Average(model), model.head.weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            model.head.weight.add_(1.0 + step)
        average.update(model, decay)
        share = 1 - min(decay, (1 + step) / (10 + step))
        wanted += share * (model.head.weight.detach() - wanted)
    torch.testing.assert_close(average.state()["head.weight"], wanted)


def test_smaller_nets_follow_the_averaged_network_and_the_smallest_the_mean_of_all_larger() -> None:
    supernet = small_supernet().train()
    images, labels = BATCH
    average_of(supernet)
    with torch.no_grad():
        for parameter in supernet.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other = copy.deepcopy(supernet)
    loss = BootstrapStep(ensemble=True)(supernet, BATCH, np.random.default_rng(7))
    average_of(other).update(other.model, 0.997)
    space, drawn = other.space, other.space.sample(np.random.default_rng(7), 2)
    total, softs = float(F.cross_entropy(other(images), labels).detach()), [averaged_answers(other, images)]
    assert not torch.allclose(softs[0], other(images).softmax(1), atol=1e-3)
    for config in drawn:
        with other.subnet(config):
            total += float(soft_cross_entropy(other(images), softs[0]).detach())
            softs.append(averaged_answers(other, images))
    with other.subnet(space.smallest()):
        total += float(soft_cross_entropy(other(images), torch.stack(softs).mean(0)).detach())
    assert loss == pytest.approx(total, rel=1e-5)


def test_with_a_list_of_subnets_its_first_is_the_teacher() -> None:
    supernet = small_supernet().train()
    inside = tuple(supernet.space.uniform(share) for share in (0.75, 0.5, 0.25))
    step = BootstrapStep(sampling=Among(inside))
    step(supernet, BATCH, np.random.default_rng(0))
    widest = inside[0]["stem"]
    gradient = supernet.model.get_submodule("stem").weight.grad
    assert gradient[:widest].any()
    assert not gradient[widest:].any()


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_resumed_training_equals_an_unbroken_one_bit_for_bit(step: BootstrapStep, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    class Stopping(BootstrapStep):
        def __call__(self, supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
            if int(average_of(supernet).updates) == 4:
                raise StopError
            return super().__call__(supernet, batch, rng)

        def __repr__(self) -> str:
            return repr(step)

    unbroken, broken, resumed = (small_supernet(dropout=0.2) for _ in range(3))
    train(unbroken, small_splits(), step, SETTINGS)
    with create_run(tmp_path / "run", "") as run, pytest.raises(StopError):
        train(broken, small_splits(), Stopping(**vars(step)), SETTINGS, run)
    with open_run(tmp_path / "run") as run:
        train(resumed, small_splits(), step, SETTINGS, run)
    wanted, found = unbroken.state_dict(), resumed.state_dict()
    assert not any(name.startswith("average") for name in found)
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InvalidInput, match="decay must be"):
        BootstrapStep(decay=1.0)
    with pytest.raises(InvalidInput, match="views must be one of"):
        BootstrapStep(views="spin")  # type: ignore[arg-type]
