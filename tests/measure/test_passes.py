from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.data import Splits, TensorBatches
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import make_evaluator
from subnet_search.measure.accuracy import answers
from subnet_search.measure.passes import SharedPasses
from subnet_search.settings import ElasticSettings, EvaluateSettings
from tests.small import EXAMPLE, small_data, small_supernet
from tests.toys import make_toy

CALIBRATION = list(TensorBatches(*small_data(32, seed=1), 16))
IMAGES = TensorBatches(*small_data(40, seed=2), 16)
PLENTY = 2**26


def passes(supernet: Supernet, memory_bytes: int = PLENTY) -> SharedPasses:
    return SharedPasses(supernet, CALIBRATION, IMAGES, device=torch.device("cpu"), memory_bytes=memory_bytes)


@pytest.mark.parametrize("memory_bytes", [0, 2000, 40_000, PLENTY])
def test_answers_and_statistics_are_those_of_each_subnet_by_itself(memory_bytes: int) -> None:
    supernet = small_supernet()
    shared = passes(supernet, memory_bytes)
    configs = supernet.space.sample(np.random.default_rng(0), 12)
    for config in [*configs, *configs[::-1]]:
        logits, targets, statistics = shared.answers(config)
        alone = recalibrate(supernet, config, CALIBRATION)
        assert statistics.config_key == alone.config_key
        assert statistics.values.keys() == alone.values.keys()
        assert all(torch.equal(tensor, statistics.values[name]) for name, tensor in alone.values.items())
        with supernet.subnet(config, alone):
            expected, labels = answers(supernet, IMAGES)
        assert torch.allclose(logits, expected, atol=1e-5)  # batch norms are folded
        assert torch.equal(targets, labels)


def test_what_was_evaluated_before_does_not_change_an_answer() -> None:
    supernet = small_supernet()
    shared, configs = passes(supernet), supernet.space.sample(np.random.default_rng(0), 8)
    for config in configs:
        assert torch.equal(shared.answers(config)[0], passes(supernet).answers(config)[0])


def test_statistics_do_not_depend_on_whether_a_subnet_was_evaluated_first() -> None:
    images, labels = torch.randn(48, 3, 8, 8), torch.arange(48) % 5
    splits = Splits(*(TensorBatches(images[i : i + 16], labels[i : i + 16], 16) for i in (0, 16, 32)))
    supernet = make_elastic(make_toy("residual"), images[:1], ElasticSettings(step=4))
    config = supernet.space.smallest()
    evaluators = [make_evaluator(supernet, splits) for _ in range(2)]
    evaluators[0](config)  # in channels-last order
    first, second = (evaluator.statistics_of(config).values for evaluator in evaluators)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_network_of_another_precision_is_evaluated_in_its_own() -> None:
    images, labels = torch.randn(48, 3, 8, 8, dtype=torch.float64), torch.arange(48) % 5
    splits = Splits(*(TensorBatches(images[i : i + 16], labels[i : i + 16], 16) for i in (0, 16, 32)))
    supernet = make_elastic(make_toy("residual").double(), images[:1], ElasticSettings(step=4))
    evaluator = make_evaluator(supernet, splits, settings=EvaluateSettings(precision="bf16"))
    assert evaluator(supernet.space.smallest()).ok


def test_in_bf16_answers_and_statistics_are_rounded() -> None:
    supernet = small_supernet()
    config = supernet.space.smallest()
    logits, _, statistics = SharedPasses(
        supernet, CALIBRATION, IMAGES, device=torch.device("cpu"), memory_bytes=PLENTY, bf16=True
    ).answers(config)
    alone = recalibrate(supernet, config, CALIBRATION)
    for name, tensor in alone.values.items():
        assert statistics.values[name].dtype == torch.float32
        assert torch.allclose(statistics.values[name], tensor, rtol=0.02, atol=0.01)
    with supernet.subnet(config, alone):
        exact = answers(supernet, IMAGES)[0]
    assert logits.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())
    assert not torch.equal(logits, exact)
    assert torch.allclose(logits, exact, atol=0.02)


def test_what_two_subnets_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = small_supernet()
    shared = passes(supernet)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    supernet.model.get_submodule("stem").register_forward_hook(count)
    space = supernet.space
    last = space.knobs[-1].name
    configs = [space.largest(), space.canonical({**space.largest(), last: space.knobs[-1].smallest})]  # type: ignore[arg-type]
    shared.answers(configs[0])
    first = calls
    shared.answers(configs[1])
    assert first == len(CALIBRATION) + len(IMAGES)
    assert calls == first


def test_memory_is_an_upper_bound() -> None:
    supernet = small_supernet()
    image_bytes = sum(inputs.nbytes for inputs, _ in IMAGES)
    shared = passes(supernet, image_bytes + 200_000)
    for config in supernet.space.sample(np.random.default_rng(1), 30):
        shared.answers(config)
    held = [t.nbytes for r in shared._reached.values() for t in (*r.calibration, *r.images)]
    assert 0 < sum(held) <= 200_000


def test_images_that_do_not_fit_are_read_each_time_from_where_they_come() -> None:
    class Counted(TensorBatches):
        reads = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            self.reads += 1
            return super().__iter__()

    supernet, images = small_supernet(), Counted(*small_data(40, seed=2), 16)
    for memory_bytes, reads in ((0, 3), (PLENTY, 1)):
        images.reads = 0
        shared = SharedPasses(
            supernet, CALIBRATION, images, device=torch.device("cpu"), memory_bytes=memory_bytes
        )
        shared.answers(supernet.space.largest())
        shared.answers(supernet.space.smallest())
        assert images.reads == reads


def test_the_supernet_comes_back_as_it_was_and_statistics_can_be_trained_with() -> None:
    supernet = small_supernet().train()
    state = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    config = supernet.space.smallest()
    _, _, statistics = passes(supernet).answers(config)
    assert supernet.training
    assert supernet.active == supernet.space.largest()
    assert all(torch.equal(tensor, state[name]) for name, tensor in supernet.state_dict().items())
    supernet.eval()
    with supernet.subnet(config, statistics):
        supernet(EXAMPLE).sum().backward()


def test_a_network_without_batch_norm_needs_no_calibration() -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    supernet = make_elastic(net, EXAMPLE, ElasticSettings(step=4))
    shared = SharedPasses(supernet, [], IMAGES, device=torch.device("cpu"), memory_bytes=PLENTY)
    logits, _, statistics = shared.answers(supernet.space.smallest())
    with supernet.subnet(supernet.space.smallest()):
        assert torch.equal(logits, answers(supernet, IMAGES)[0])
    assert statistics.values == {}


def test_no_images_and_answers_that_are_not_finite_are_refused() -> None:
    supernet = small_supernet()
    with pytest.raises(InvalidInput, match="at least one batch"):
        SharedPasses(supernet, CALIBRATION, [], device=torch.device("cpu"), memory_bytes=PLENTY)
    supernet.model.get_submodule("classifier").bias.data.fill_(float("inf"))  # type: ignore[union-attr,operator]
    with pytest.raises(SubnetSearchError, match="not finite"):
        passes(supernet).answers(supernet.space.smallest())
