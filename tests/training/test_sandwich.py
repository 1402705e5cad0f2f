from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.elastic.supernet import Supernet
from subnet_search.training import PlainStep, SandwichStep, Step
from subnet_search.training.losses import soft_cross_entropy
from tests.small import small_data, small_net, small_supernet

BATCH = small_data(16, seed=5)


def gradients(supernet: Supernet) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in supernet.model.named_parameters() if p.grad is not None}


def drawn(supernet: Supernet, seed: int, count: int) -> list[SubnetConfig]:
    return [
        supernet.space.largest(),
        supernet.space.smallest(),
        *supernet.space.sample(np.random.default_rng(seed), count),
    ]


@pytest.mark.parametrize("step", [PlainStep(), SandwichStep(), SandwichStep(distill=False)])
def test_every_parameter_gets_a_gradient(step: Step) -> None:
    supernet = small_supernet().train()
    step(supernet, BATCH, np.random.default_rng(0))
    found = gradients(supernet)
    assert found.keys() == dict(supernet.model.named_parameters()).keys()
    assert [name for name, gradient in found.items() if not gradient.any()] == []


@pytest.mark.parametrize(("distill", "emphasis"), [(True, 1.0), (False, 1.0), (True, 3.0)])
def test_gradients_and_losses_are_the_sums_over_the_four_nets(distill: bool, emphasis: float) -> None:
    supernet, other = small_supernet().train(), small_supernet().train()
    loss = SandwichStep(distill=distill, emphasis=emphasis)(supernet, BATCH, np.random.default_rng(7))
    images, labels = BATCH
    configs = drawn(other, 7, 2)
    total, soft = 0.0, None
    wanted = {name: torch.zeros_like(p) for name, p in other.model.named_parameters()}
    for i, config in enumerate(configs):
        other.zero_grad()
        with other.subnet(config):
            logits = other(images)
            soft = logits.detach().softmax(1) if i == 0 else soft
            assert soft is not None
            part = soft_cross_entropy(logits, soft) if distill and i else F.cross_entropy(logits, labels)
            part.backward()
        total += part.item()
        for name, gradient in gradients(other).items():
            wanted[name] += gradient if i else emphasis * gradient
    assert len(set(configs)) == 4
    assert loss == pytest.approx(total, rel=1e-6)
    for name, gradient in gradients(supernet).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)


def test_only_the_largest_net_updates_running_statistics() -> None:
    supernet, plain = small_supernet().train(), small_net().train()
    SandwichStep()(supernet, BATCH, np.random.default_rng(0))
    plain(BATCH[0])
    for name, buffer in supernet.model.named_buffers():
        assert torch.equal(buffer, dict(plain.named_buffers())[name]), name


def test_a_fixed_teacher_replaces_the_largest_nets_answers() -> None:
    supernet, teacher = small_supernet().train(), small_net(seed=3).eval()
    loss = SandwichStep(num_random=0, teacher=teacher)(supernet, BATCH, np.random.default_rng(0))
    other = small_supernet().train()
    images, labels = BATCH
    wanted = F.cross_entropy(other(images), labels).item()
    with other.subnet(other.space.smallest()):
        wanted += soft_cross_entropy(other(images), teacher(images).softmax(1)).item()
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


def test_the_supernet_is_left_at_its_largest_even_when_a_forward_fails() -> None:
    supernet = small_supernet().train()
    calls = iter([False, False, True])

    def fail(*_: object) -> None:
        if next(calls):
            raise RuntimeError("broken")

    supernet.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        SandwichStep()(supernet, BATCH, np.random.default_rng(0))
    assert supernet.active == supernet.space.largest()


def test_the_plain_step_is_ordinary_training() -> None:
    supernet, plain = small_supernet().train(), small_net().train()
    loss = PlainStep()(supernet, BATCH, np.random.default_rng(0))
    wanted = F.cross_entropy(plain(BATCH[0]), BATCH[1])
    wanted.backward()
    assert loss == wanted.item()
    for name, gradient in gradients(supernet).items():
        assert torch.equal(gradient, plain.get_parameter(name).grad), name  # type: ignore[arg-type]


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InvalidInput, match="num_random must be 0 or more, got -1"):
        SandwichStep(num_random=-1)
    with pytest.raises(InvalidInput, match="a teacher needs distill=True"):
        SandwichStep(distill=False, teacher=small_net())
    with pytest.raises(InvalidInput, match=r"anchor is a share from 0 to 1, got 1\.5"):
        SandwichStep(teacher=small_net(), anchor=1.5)
    with pytest.raises(InvalidInput, match=r"anchor=0\.5 needs a fixed teacher"):
        SandwichStep(anchor=0.5)
    with pytest.raises(InvalidInput, match=r"emphasis must be above 0, got 0\.0"):
        SandwichStep(emphasis=0.0)


def test_an_anchored_largest_net_learns_from_the_teacher_by_its_share() -> None:
    teacher, (images, labels) = small_net(seed=3).eval(), BATCH
    other = small_supernet().train()
    logits, soft = other(images), teacher(images).softmax(1)
    wanted = 0.75 * F.cross_entropy(logits, labels) + 0.25 * soft_cross_entropy(logits, soft)
    with other.subnet(other.space.smallest()):
        wanted = wanted + soft_cross_entropy(other(images), soft)
    step = SandwichStep(num_random=0, teacher=teacher, anchor=0.25)
    loss = step(small_supernet().train(), BATCH, np.random.default_rng(0))
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    assert loss != pytest.approx(
        SandwichStep(num_random=0, teacher=teacher)(small_supernet().train(), BATCH, np.random.default_rng(0))
    )
