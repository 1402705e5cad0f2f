from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.data import Batch, Splits, TensorBatches
from subnet_search.elastic.supernet import Supernet
from subnet_search.record import Run, create_run, open_run
from subnet_search.settings import TrainSettings
from subnet_search.training import PlainStep, SandwichStep, train
from tests.small import small_data, small_splits, small_supernet

SETTINGS = TrainSettings(epochs=2, lr=0.02, warmup_epochs=0.5, device="cpu", checkpoint_seconds=1e-9)
SANDWICH = SandwichStep()


class StopError(Exception):
    """Ends training at a chosen step, as a crash would."""


def stopping_at(step_number: int) -> Any:
    calls = 0

    def step(supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        nonlocal calls
        calls += 1
        if calls > step_number:
            raise StopError
        return SANDWICH(supernet, batch, rng)

    step.__qualname__ = repr(SANDWICH)
    return step


def weights_of(supernet: Supernet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class AugmentedDigits(Dataset[Batch]):
    """Draws from every global generator there is, as augmentations of users do."""

    def __init__(self) -> None:
        self.images, self.labels = small_data(40, seed=4)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()) + np.random.rand() + random.random()
        return self.images[index] + 0.1 * noise.float(), self.labels[index]


def loader(kind: str) -> Any:
    if kind == "own batches":
        return small_splits(40).train
    generator = torch.Generator().manual_seed(17) if kind == "own generator" else None
    workers = 1 if kind == "workers" else 0
    return DataLoader(
        AugmentedDigits(),
        16,
        shuffle=True,
        generator=generator,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )


def splits_with(train_batches: Any) -> Splits:
    return dataclasses.replace(small_splits(), train=train_batches, calibration=None)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with create_run(tmp_path / "run", "") as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own batches", "global generators", "own generator", "workers"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_training_equals_an_unbroken_one_bit_for_bit(kind: str, stop: int, run: Run) -> None:
    unbroken, broken, resumed = (small_supernet(dropout=0.2) for _ in range(3))
    wanted = train(unbroken, splits_with(loader(kind)), SANDWICH, SETTINGS)
    with pytest.raises(StopError):
        train(broken, splits_with(loader(kind)), stopping_at(stop), SETTINGS, run)
    torch.manual_seed(123)  # whatever another process begins with
    found = train(resumed, splits_with(loader(kind)), SANDWICH, SETTINGS, run)
    assert_same(weights_of(resumed), weights_of(unbroken))
    assert (found.losses, found.steps, found.epochs) == (wanted.losses, 6, 2)


def test_a_finished_training_is_not_done_again(run: Run) -> None:
    first, second = small_supernet(), small_supernet()
    wanted = train(first, small_splits(), SANDWICH, SETTINGS, run)
    assert train(second, small_splits(), stopping_at(0), SETTINGS, run) == wanted
    assert_same(weights_of(first), weights_of(second))


def test_training_depends_on_its_seed_alone_and_gives_the_generators_back() -> None:
    torch.manual_seed(3)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index, union-attr]
    first, second, third = small_supernet(), small_supernet(), small_supernet()
    train(first, splits_with(loader("global generators")), SANDWICH, SETTINGS)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index, union-attr]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(4)
    train(second, splits_with(loader("global generators")), SANDWICH, SETTINGS)
    train(third, splits_with(loader("global generators")), SANDWICH, SETTINGS.model_copy(update={"seed": 1}))
    assert_same(weights_of(first), weights_of(second))
    assert not torch.equal(first.model.stem.weight, third.model.stem.weight)


def test_every_epoch_has_an_order_of_its_own() -> None:
    seen: list[list[float]] = [[], []]

    def step(supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        epoch = int(len(seen[0]) == 48)
        seen[epoch].extend(batch[0][:, 0, 0, 0].tolist())
        return PlainStep()(supernet, batch, rng)

    train(small_supernet(), small_splits(), step, SETTINGS)
    assert seen[0] != seen[1]
    assert sorted(seen[0]) == sorted(seen[1])


def test_training_a_toy_makes_largest_and_smallest_answer_right() -> None:
    from subnet_search.elastic.statistics import recalibrate
    from subnet_search.measure import top1_percent

    supernet, splits = small_supernet(), small_splits(96)
    result = train(supernet, splits, SANDWICH, SETTINGS.model_copy(update={"epochs": 12, "lr": 0.1}))
    assert result.losses[-1] < 0.8 * result.losses[0]
    for config, least in ((supernet.space.largest(), 95), (supernet.space.smallest(), 60)):
        with supernet.subnet(config, recalibrate(supernet, config, splits.calibration)):  # type: ignore[arg-type]
            assert top1_percent(supernet, splits.search_val) > least


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value: float, run: Run) -> None:
    supernet, good = small_supernet(), small_supernet()

    def step(supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        loss = SANDWICH(supernet, batch, rng)
        number["steps"] += 1
        return loss if number["steps"] < 5 else value

    number, settings = {"steps": 0}, SETTINGS.model_copy(update={"checkpoint_seconds": 1e9})
    with pytest.raises(
        SubnetSearchError, match=r"loss is (nan|inf) at step 5, epoch 2, lr .*checkpoint.*smaller lr"
    ):
        train(supernet, small_splits(), step, settings, run)
    with pytest.raises(StopError):
        train(good, small_splits(), stopping_at(4), settings)
    changed = {n for n, p in good.named_parameters() if not torch.equal(p, supernet.get_parameter(n))}
    assert changed == set()  # step 4's weights, in memory
    assert run.read_json("checkpoint.json")["step"] == 3  # the end of epoch 1, on disk


def test_a_loss_is_not_blamed_on_the_learning_rate_when_the_inputs_are_not_finite() -> None:
    splits = small_splits()
    broken = [(torch.full_like(images, torch.nan), labels) for images, labels in splits.train]
    with pytest.raises(SubnetSearchError, match="inputs of this batch hold NaN or infinity already; mend"):
        train(small_supernet(), Splits(broken, splits.search_val, splits.test), SANDWICH, SETTINGS)


def test_a_weight_that_is_not_finite_never_reaches_a_checkpoint(run: Run) -> None:
    def step(supernet: Supernet, batch: Batch, rng: np.random.Generator) -> float:
        loss = SANDWICH(supernet, batch, rng)
        number["steps"] += 1
        if number["steps"] == 3:
            supernet.model.stem.weight.grad.fill_(float("inf"))  # type: ignore[union-attr]
        return loss

    number = {"steps": 0}
    with pytest.raises(
        SubnetSearchError, match=r"stem.weight is no longer finite after step 3.*last good checkpoint"
    ):
        train(small_supernet(), small_splits(), step, SETTINGS, run)
    assert run.read_json("checkpoint.json")["step"] == 2
    assert train(small_supernet(), small_splits(), step, SETTINGS, run).steps == 6


def test_other_settings_do_not_continue_a_checkpoint(run: Run) -> None:
    with pytest.raises(StopError):
        train(small_supernet(), small_splits(), stopping_at(4), SETTINGS, run)
    with pytest.raises(InvalidInput, match=r"other settings: lr 0.02, now 0.5. Go on with those"):
        train(small_supernet(), small_splits(), SANDWICH, SETTINGS.model_copy(update={"lr": 0.5}), run)
    with pytest.raises(InvalidInput, match=r"other settings: stage .* now 'PlainStep\(\)'"):
        train(small_supernet(), small_splits(), PlainStep(), SETTINGS, run)


def test_a_finished_stage_makes_room_for_the_next(run: Run) -> None:
    teacher, alone = small_supernet(), small_supernet()
    train(teacher, small_splits(), PlainStep(), SETTINGS, run)
    alone.load_state_dict(teacher.state_dict())
    train(teacher, small_splits(), SANDWICH, SETTINGS, run)
    train(alone, small_splits(), SANDWICH, SETTINGS)
    assert_same(weights_of(teacher), weights_of(alone))


def test_a_checkpoint_of_another_network_is_refused(run: Run) -> None:
    from subnet_search.elastic.convert import make_elastic
    from tests.small import EXAMPLE, SmallNet

    train(small_supernet(), small_splits(), SANDWICH, SETTINGS, run)
    with pytest.raises(
        InvalidInput,
        match=r"belongs to another network: the weight .* must be .*or use another run folder",
    ):
        train(make_elastic(SmallNet(16), EXAMPLE), small_splits(), SANDWICH, SETTINGS, run)


def test_a_damaged_checkpoint_is_refused(run: Run) -> None:
    train(small_supernet(), small_splits(), SANDWICH, SETTINGS, run)
    path = run.path("checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InvalidInput, match=r"corrupt: .*checkpoint.safetensors"):
        train(small_supernet(), small_splits(), SANDWICH, SETTINGS, run)


def test_batches_that_do_not_fit_are_refused_with_the_way_out() -> None:
    def start(batches: Any) -> None:
        train(small_supernet(), splits_with(batches), SANDWICH, SETTINGS)

    images, labels = small_data(8, seed=0)
    with pytest.raises(InvalidInput, match=r"\[1, 8, 8\], got \[1, 9, 9\]; resize"):
        start([(torch.zeros(8, 1, 9, 9), labels)])
    with pytest.raises(InvalidInput, match=r"one target per input, got 8 inputs, 7 targets"):
        start([(images, labels[:7])])
    with pytest.raises(InvalidInput, match=r"pair of tensors \(input, target\), got Tensor"):
        start([images])
    with pytest.raises(InvalidInput, match=r"from 0 to 3, got 0 to 9"):
        start([(images, labels * 3)])
    with pytest.raises(InvalidInput, match=r"how many batches it has.*give it data and a __len__"):
        start([])


def test_bfloat16_trains_too() -> None:
    result = train(
        small_supernet(), small_splits(), SANDWICH, SETTINGS.model_copy(update={"precision": "bf16"})
    )
    assert result.losses[-1] < result.losses[0]


def test_the_mode_of_the_run_is_readable_beside_the_weights(run: Run) -> None:
    train(small_supernet(), small_splits(), SANDWICH, SETTINGS, run)
    facts = run.read_json("checkpoint.json")
    assert (facts["step"], facts["epoch"], facts["lr"], facts["stage"]) == (6, 2, 0.02, repr(SANDWICH))
    with open_run(run.folder, write=False) as reader:
        assert reader.has("checkpoint.safetensors")


def test_batches_of_tensors_know_their_number() -> None:
    assert len(TensorBatches(*small_data(40, 1), 16)) == 3
