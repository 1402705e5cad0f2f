from __future__ import annotations

import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from search_spaces import InvalidInput, SubnetConfig
from subnet_search import extract, make_elastic, recalibrate
from subnet_search.dynamic import DynamicNet, save_dynamic
from subnet_search.dynamic.controller import BudgetWarning, Rung, SwitchingNet, rungs_of
from subnet_search.dynamic.dynamic_files import Member
from subnet_search.elastic import Statistics, Supernet
from subnet_search.settings import ElasticSettings
from tests.small import EXAMPLE, small_net, small_splits, small_supernet
from tests.toys import make_toy
from tests.vit import vit_supernet

LATENCIES = (3.0, 2.0, 1.0)


def with_statistics(supernet: Supernet) -> list[tuple[SubnetConfig, Statistics | None]]:
    space, seen = supernet.space, small_splits().calibration
    configs = (space.largest(), space.uniform(0.5), space.smallest())
    return [(config, recalibrate(supernet, config, seen)) for config in configs]


def test_each_subnet_answers_as_its_extraction_does(tmp_path: Path) -> None:
    supernet = small_supernet().eval()
    pairs, x = with_statistics(supernet), torch.randn(5, 1, 8, 8)
    save_dynamic(tmp_path / "net.safetensors", supernet, pairs, model="tests.small:small_net")
    net = DynamicNet.load(tmp_path / "net.safetensors", latencies_ms=LATENCIES)
    for budget_ms, (config, statistics) in zip(LATENCIES, pairs, strict=True):
        net.set_budget(latency_ms=budget_ms)
        assert net.state.key == config.key
        torch.testing.assert_close(net(x), extract(supernet, config, statistics=statistics)(x))
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_weights_are_there_once_and_switching_makes_nothing_new(tmp_path: Path) -> None:
    supernet = small_supernet().eval()
    pairs = with_statistics(supernet)
    sizes = []
    for count in (1, 3):
        save_dynamic(tmp_path / "net.safetensors", supernet, pairs[:count], model="tests.small:small_net")
        sizes.append((tmp_path / "net.safetensors").stat().st_size)
    net = DynamicNet.load(tmp_path / "net.safetensors", latencies_ms=LATENCIES)
    own = sum(4 * t.numel() for _, s in pairs for t in (s.values if s else {}).values())
    assert net.own_bytes < own + 200  # and counters
    assert sizes[1] - sizes[0] < own + 8000
    addresses = [{name: t.data_ptr() for name, t in one.named_parameters()} for one in net.nets]
    for name in addresses[0]:
        assert len({found[name] for found in addresses}) == 1, name
    places = []
    for _ in range(3):
        for budget_ms in LATENCIES:
            net.set_budget(latency_ms=budget_ms)
            net(EXAMPLE)
        places.append([{n: t.data_ptr() for n, t in one.named_parameters()} for one in net.nets])
    assert places == [addresses] * 3


@pytest.mark.parametrize(
    "toy",
    [
        "concatenated",
        *(pytest.param(t, marks=pytest.mark.slow) for t in ("residual", "inverted", "few groups")),
    ],
)
def test_networks_whose_weights_are_no_beginnings_are_served_too(toy: str) -> None:
    x = torch.randn(8, 3, 8, 8)
    supernet = make_elastic(make_toy(toy), x[:1], ElasticSettings(min_share=0.25, step=4))
    space = supernet.space
    configs = (space.smallest(), space.largest())
    pairs = [(config, recalibrate(supernet, config, [x])) for config in configs]
    net = DynamicNet.of(supernet, pairs, latencies_ms=(1.0, 2.0))
    for budget_ms, (config, statistics) in zip((1.0, 2.0), pairs, strict=True):
        net.set_budget(latency_ms=budget_ms)
        torch.testing.assert_close(net(x), extract(supernet, config, statistics=statistics)(x))


@pytest.mark.slow
def test_the_graph_form_needs_trust_as_it_is_code(tmp_path: Path) -> None:
    supernet, file, x = vit_supernet().eval(), tmp_path / "net.safetensors", torch.randn(2, 1, 8, 8)
    configs = (supernet.space.largest(), supernet.space.smallest())
    save_dynamic(file, supernet, [(config, None) for config in configs])
    with pytest.raises(InvalidInput, match="would be executed; pass trusted=True"):
        DynamicNet.load(file, latencies_ms=(2.0, 1.0))
    net = DynamicNet.load(file, latencies_ms=(2.0, 1.0), trusted=True)
    for budget_ms, config in zip((2.0, 1.0), configs, strict=True):
        net.set_budget(latency_ms=budget_ms)
        with supernet.subnet(config):
            torch.testing.assert_close(net(x), supernet(x))
    assert net.own_bytes < 0.5 * net.shared_bytes


def served(latencies_ms: tuple[float, ...] = (1.0, 2.0)) -> SwitchingNet:
    """Networks that answer with their own number."""
    config = SubnetConfig({"a": 1})
    rungs = [Rung(Member(config, place), ms) for place, ms in enumerate(latencies_ms)]
    nets = [lambda x, place=place: x.flatten(1)[:, :1] * 0 + place for place in range(len(rungs))]
    return SwitchingNet(rungs, nets, (1, 2, 2))


def test_a_budget_below_the_fastest_is_served_by_it_and_told_once() -> None:
    net = served()
    with pytest.warns(BudgetWarning, match=r"0\.5 ms is below the fastest sub-net, .* with 1 ms"):
        net.set_budget(latency_ms=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.set_budget(latency_ms=0.4)
    assert net(torch.ones(1, 1, 2, 2)).item() == 0


@pytest.mark.parametrize(
    ("x", "came"),
    [
        (torch.zeros(1, 1, 2, 3), r"\[1, 1, 2, 3\]"),
        (torch.zeros(1, 2, 2), r"\[1, 2, 2\]"),
        (torch.zeros(0, 1, 2, 2), r"\[0, 1, 2, 2\]"),
        (torch.zeros(()), r"\[\]"),
        ([1.0], "a list"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), r"torch\.uint8"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.float64), r"torch\.float64"),
    ],
)
def test_inputs_of_another_kind_are_refused_with_the_rule(x: object, came: str) -> None:
    with pytest.raises(InvalidInput, match=rf"the input must be .*, got {came}; "):
        served()(x)  # type: ignore[arg-type]


def test_many_threads_may_call_and_switch() -> None:
    supernet = small_supernet().eval()
    pairs, x = with_statistics(supernet), torch.randn(2, 1, 8, 8)
    net = DynamicNet.of(supernet, pairs, latencies_ms=LATENCIES)
    wanted = [extract(supernet, c, statistics=s)(x).detach() for c, s in pairs]
    wrong: list[Tensor | BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(12):
                net.set_budget(latency_ms=LATENCIES[(seed + step) % 3])
                answer = net(x)
                if not any(torch.allclose(answer, one, atol=1e-5) for one in wanted):
                    wrong.append(answer)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_subnets_that_are_slower_and_no_better_never_run() -> None:
    config = SubnetConfig({"a": 1})
    members = [Member(config, 10, 70.0), Member(config, 20, 69.0), Member(config, 30, 75.0)]
    assert rungs_of(members, [1.0, 2.0, 3.0]) == [0, 2]
    assert rungs_of([Member(config, m.macs) for m in members], [1.0, 2.0, 3.0]) == [0, 1, 2]
    assert rungs_of(members, [4.0, 2.0, 3.0]) == [1, 2]
    with pytest.raises(InvalidInput, match="each of 3 sub-nets needs its latency, got 1"):
        rungs_of(members, [1.0])


def test_what_cannot_be_saved_or_loaded_is_refused(tmp_path: Path) -> None:
    supernet, file = small_supernet(), tmp_path / "net.safetensors"
    pairs = with_statistics(supernet)
    for subnets, problem in (
        ([], "at least one sub-net"),
        ([pairs[0], pairs[0]], "twice"),
        ([(pairs[1][0], None)], "no batch-norm statistics of its own"),
    ):
        with pytest.raises(InvalidInput, match=problem):
            save_dynamic(file, supernet, subnets)
    with pytest.raises(InvalidInput, match="each of 3 sub-nets needs its accuracy, got 1"):
        save_dynamic(file, supernet, pairs, top1_percent=[50.0])
    with pytest.raises(InvalidInput, match="holds no dynamic network"):
        DynamicNet.load(file)
    save_dynamic(file, supernet, pairs)
    with pytest.raises(InvalidInput, match="pass build="):
        DynamicNet.load(file)
    DynamicNet.load(file, build=small_net, latencies_ms=LATENCIES)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InvalidInput, match="holds no dynamic network"):
        DynamicNet.load(file)


def test_a_network_of_double_precision_is_read_as_one(tmp_path: Path) -> None:
    supernet, file = small_supernet().double().eval(), tmp_path / "net.safetensors"
    supernet.example = EXAMPLE.double()
    pairs = [(config, recalibrate(supernet, config, [torch.randn(8, 1, 8, 8).double()])) for config in
             (supernet.space.largest(), supernet.space.smallest())]  # fmt: skip
    save_dynamic(file, supernet, pairs)
    x = torch.randn(3, 1, 8, 8).double()
    net = DynamicNet.load(file, build=lambda: small_net().double(), latencies_ms=(2.0, 1.0))
    torch.testing.assert_close(net(x), extract(supernet, pairs[0][0], statistics=pairs[0][1])(x).detach())
    with pytest.raises(InvalidInput, match=r"must be of torch\.float64"):
        net(x.float())


@pytest.mark.parametrize("what", ["a weight", "the format", "what is told"])
def test_files_that_are_not_what_was_written_are_refused(what: str, tmp_path: Path) -> None:
    supernet, file = small_supernet(), tmp_path / "net.safetensors"
    save_dynamic(file, supernet, with_statistics(supernet))
    content = file.read_bytes()
    if what == "a weight":
        content = content[:-2] + bytes([content[-2] ^ 0x40]) + content[-1:]
    elif what == "the format":
        content = content.replace(rb"\"format\": 2", rb"\"format\": 9")
    else:
        content = content.replace(rb"\"top1_percent\": null", rb"\"top1_percent\": 99.9")
    assert content != file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match="format 9" if what == "the format" else "not what was written"):
        DynamicNet.load(file, build=small_net, latencies_ms=LATENCIES)


def test_devices_and_accuracies_that_are_none_are_refused(tmp_path: Path) -> None:
    supernet, file = small_supernet(), tmp_path / "net.safetensors"
    with pytest.raises(InvalidInput, match='"cpu", "cuda" or "cuda:N", got \'tpu\''):
        DynamicNet.load(file, device="tpu")
    with pytest.raises(InvalidInput, match="must be finite percentages"):
        save_dynamic(file, supernet, with_statistics(supernet), top1_percent=[50.0, float("nan"), 20.0])
