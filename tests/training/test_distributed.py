"""What ranks exchange, with threads for ranks; processes of their own are in test_distributed_processes.py."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.data import Batch, TensorBatches
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.supernet import Supernet
from subnet_search.settings import ElasticSettings
from subnet_search.training import SandwichStep
from subnet_search.training.distributed import (
    Disagreement,
    Exchange,
    StoppedElsewhere,
    World,
    agree,
    check_rows,
    device_of_rank,
    look_at_first_batch,
    spread,
    told_by_first,
)
from subnet_search.training.optimizer import make_optimizer
from tests.small import EXAMPLE, small_data, small_net
from tests.training.threads import as_ranks

SIZE = 2
STEP = SandwichStep()


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    settings = ElasticSettings(min_share=0.25, step=2)
    return make_elastic(small_net().double(), EXAMPLE.double(), settings).double()


@pytest.fixture(scope="module")
def batch() -> Batch:
    images, labels = small_data(16, seed=5)
    return images.double(), labels


def gradients(net: Supernet, batch: Batch) -> dict[str, Tensor]:
    net.zero_grad()
    STEP(net, batch, np.random.default_rng(7))
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def exchanged(nets: list[Supernet], batch: Batch, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each rank's mean loss after one step, its net left with what the exchange makes of gradients."""

    def work(world: World) -> float:
        exchange = Exchange(world, nets[world.rank], rows=len(batch[1]))
        rows, share = exchange.share(batch)
        nets[world.rank].zero_grad()
        loss = STEP(nets[world.rank], rows, np.random.default_rng(7))
        return exchange.add_up(loss, share, stop=False)

    return as_ranks(len(nets), work, monkeypatch)


def freeze(net: Supernet) -> Supernet:
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return net


@pytest.mark.parametrize("rows", [16, 13])
def test_with_frozen_batch_norm_gradients_are_those_of_the_whole_batch(
    rows: int, supernet: Supernet, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch[0][:rows], batch[1][:rows]
    nets = [freeze(copy.deepcopy(supernet)) for _ in range(SIZE)]
    losses = exchanged(nets, batch, monkeypatch)
    whole = freeze(copy.deepcopy(supernet))
    wanted = gradients(whole, batch)
    for net in nets:
        found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert losses[0] == losses[1] == pytest.approx(STEP(whole, batch, np.random.default_rng(7)), rel=1e-12)


def test_with_learning_batch_norm_everything_is_the_mean_over_shards_run_singly(
    supernet: Supernet, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = [copy.deepcopy(supernet).train() for _ in range(SIZE)]
    exchanged(nets, batch, monkeypatch)
    singles = [copy.deepcopy(supernet).train() for _ in range(SIZE)]
    parts = [
        gradients(net, (batch[0][8 * i : 8 * i + 8], batch[1][8 * i : 8 * i + 8]))
        for i, net in enumerate(singles)
    ]
    for net in nets:
        found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        wanted = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        state, first, second = net.state_dict(), singles[0].state_dict(), singles[1].state_dict()
        running = [name for name in state if name.endswith(("running_mean", "running_var"))]
        assert len(running) == 10
        for name in running:
            assert not torch.equal(first[name], second[name])
            torch.testing.assert_close(state[name], (first[name] + second[name]) / 2, rtol=1e-12, atol=1e-12)


def test_a_gradient_that_one_rank_has_not_counts_as_zero_and_one_that_none_has_stays_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nets = [nn.Linear(2, 1, dtype=torch.float64) for _ in range(SIZE)]
    nets[0].weight.grad = torch.tensor([[2.0, 4.0]], dtype=torch.float64)
    as_ranks(SIZE, lambda world: Exchange(world, nets[world.rank], 2).add_up(0, 0.5, stop=False), monkeypatch)
    for net in nets:
        assert net.weight.grad is not None
        assert net.weight.grad.tolist() == [[1.0, 2.0]]
        assert net.bias.grad is None


def test_all_ranks_stop_when_one_was_interrupted_or_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [nn.Linear(2, 1) for _ in range(3)]

    def interrupted(world: World) -> bool:
        exchange = Exchange(world, nets[world.rank], 3)
        exchange.add_up(1.0, 1 / 3, stop=world.rank == 1)
        return exchange.stop

    assert as_ranks(3, interrupted, monkeypatch) == [True] * 3

    def failing(world: World) -> float:
        return Exchange(world, nets[world.rank], 3).add_up(1.0, 1 / 3, stop=False, failed=world.rank == 2)

    found = as_ranks(3, failing, monkeypatch)
    assert [type(told) for told in found] == [StoppedElsewhere, StoppedElsewhere, float]


@pytest.mark.parametrize(
    ("size", "rows", "full"), [(2, 16, 16), (3, 16, 48), (4, 5, 16), (4, 1, 16), (8, 8, 8)]
)
def test_every_row_belongs_to_one_rank_and_no_rank_of_a_short_batch_has_just_one(
    size: int, rows: int, full: int
) -> None:
    batch = torch.arange(rows), torch.arange(rows)
    shares = [Exchange(World(rank, size), nn.Linear(1, 1), full).share(batch) for rank in range(size)]
    assert torch.cat([images for (images, _), _ in shares]).tolist() == list(range(rows))
    assert sum(share for _, share in shares) == pytest.approx(1)
    sizes = [len(images) for (images, _), _ in shares]
    assert rows in (1, full) or 1 not in sizes
    assert rows != full or len(set(sizes)) == 1


def test_ranks_with_another_package_or_other_settings_are_refused_on_all_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work(world: World) -> None:
        agree(world, {"the settings": {"lr": 0.1 * (1 + world.rank)}})

    for told in as_ranks(SIZE, work, monkeypatch):
        assert isinstance(told, Disagreement)
        assert "the settings is {'lr': 0.1} on rank 0 and {'lr': 0.2} on rank 1" in str(told)
    versions = iter(("1.0", "1.1"))
    monkeypatch.setattr("subnet_search.training.distributed.version", lambda name: next(versions))
    for told in as_ranks(SIZE, lambda world: agree(world, {}), monkeypatch):
        assert "subnet-search is '1." in str(told)


def test_a_batch_that_does_not_divide_among_ranks_is_refused_with_a_size_that_does() -> None:
    with pytest.raises(
        InvalidInput, match=r"divide among 3 ranks, got 16 rows; set batch_size to .* such as 15"
    ):
        check_rows(World(0, 3), 16)
    check_rows(World(0, 4), 16)


def test_ranks_that_are_given_their_own_rows_already_are_seen() -> None:
    images, labels = small_data(48, seed=1)
    halves = [TensorBatches(images[i::2], labels[i::2], 8) for i in range(2)]
    facts = [look_at_first_batch(half, 0) for half in halves]
    assert facts[0][0] == facts[1][0] == 8
    assert facts[0] != facts[1]
    assert facts[0] == look_at_first_batch(halves[0], 0)


def test_all_ranks_go_on_from_the_weights_and_the_momentum_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    from subnet_search.settings import TrainSettings

    nets = [nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(SIZE)]
    optimizers = [make_optimizer(net, TrainSettings()) for net in nets]
    optimizers[0].state[nets[0][0].weight]["momentum_buffer"] = torch.rand(2, 3)
    wanted = copy.deepcopy(nets[0].state_dict())
    as_ranks(SIZE, lambda world: spread(world, nets[world.rank], optimizers[world.rank]), monkeypatch)
    for net, optimizer in zip(nets, optimizers, strict=True):
        torch.testing.assert_close(net.state_dict(), wanted, rtol=0, atol=0)
        momentum = optimizer.state[net[0].weight]["momentum_buffer"]
        torch.testing.assert_close(momentum, optimizers[0].state[nets[0][0].weight]["momentum_buffer"])
        assert "momentum_buffer" not in optimizer.state[net[0].bias]


def test_what_rank_0_refuses_is_refused_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise InvalidInput("damaged")

    found = as_ranks(SIZE, lambda world: told_by_first(world, refuse), monkeypatch)
    assert [str(told) for told in found] == ["damaged"] * SIZE
    assert as_ranks(SIZE, lambda world: told_by_first(world, lambda: 10 + world.rank), monkeypatch) == [
        10,
        10,
    ]


def test_ranks_need_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InvalidInput, match=r'"cuda:0" would be shared by 2 ranks; give "cuda"'):
        device_of_rank("cuda:0", World(1, 2))
    with pytest.raises(InvalidInput, match=r"which has 1 GPUs; .*--nproc-per-node 1"):
        device_of_rank("cuda", World(1, 2))
    assert device_of_rank("cpu", World(1, 2)) == torch.device("cpu")
