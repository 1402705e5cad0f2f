from __future__ import annotations

import time
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.measure import LatencyMeter, measure_latency
from subnet_search.measure.timing import Latency, Protocol
from subnet_search.settings import DeviceSettings
from tests.measure.machine import Machine
from tests.small import EXAMPLE, small_net

FIVE = DeviceSettings(batch_size=5)
QUICK = Protocol(least_rounds=3, most_rounds=3, warmup=1, turn_ms=0.01)


class Waits(nn.Module):
    """Takes its time on a machine's clock, a millisecond for each image, and notes how it was called."""

    def __init__(self, machine: Machine, factor: float = 1.0) -> None:
        super().__init__()
        self.machine, self.factor = machine, factor
        self.seen: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), self.training, torch.is_grad_enabled()))
        self.machine.now_s += 1e-3 * self.factor * len(x)
        return x


def test_a_net_is_timed_beside_its_reference_with_the_batch_asked_for() -> None:
    machine = Machine()
    net, whole = Waits(machine, 2.0), Waits(machine, 8.0)
    found = measure_latency(net, torch.zeros(3, 1), FIVE, reference=whole, clock_s=machine.clock_s)
    assert found.median_ms == pytest.approx(10.0)  # 5 images of 2 ms
    assert set(net.seen) == set(whole.seen) == {(5, False, False)}
    assert net.training


def test_without_a_reference_the_time_is_the_machines_own() -> None:
    machine = Machine()
    found = measure_latency(Waits(machine, 3.0), torch.zeros(1, 1), clock_s=machine.clock_s)
    assert found.median_ms == pytest.approx(3.0)


def test_a_known_time_of_the_reference_is_the_unit() -> None:
    machine = Machine()
    nets = Waits(machine, 1.0), Waits(machine, 4.0)
    found = measure_latency(
        nets[0], torch.zeros(1, 1), reference=nets[1], reference_ms=100.0, clock_s=machine.clock_s
    )
    assert found.median_ms == pytest.approx(25.0)


def test_examples_may_be_positional_or_named_arguments() -> None:
    class Adds(nn.Module):
        def forward(self, a: Tensor, b: Tensor, scale: float) -> Tensor:
            assert len(a) == len(b) == 4
            return a + scale * b

    a, b = torch.zeros(1, 3), torch.zeros(1, 3)
    examples: list[Any] = [(a, b, 2.0), {"a": a, "b": b, "scale": 2.0}]
    for example in examples:
        assert measure_latency(Adds(), example, DeviceSettings(batch_size=4), protocol=QUICK).median_ms > 0


def test_twice_the_work_takes_longer_on_the_real_clock() -> None:
    small, large = nn.Linear(64, 64), nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    example = {"input": torch.zeros(64, 512)}
    many = DeviceSettings(batch_size=64)
    found = measure_latency(small, torch.zeros(1, 64), many)
    assert found.high_ms < measure_latency(large, example, many).low_ms


def test_a_meter_measures_its_reference_once_and_moves_no_net() -> None:
    net = small_net().train()
    known = Latency(7.0, 6.5, 7.5, 50)
    meter = LatencyMeter(small_net(), EXAMPLE, known=known, protocol=QUICK)
    found = meter(net)
    assert meter.reference is known
    assert found.low_ms <= found.median_ms <= found.high_ms
    assert found.median_ms == pytest.approx(7.0, rel=0.9)  # the same net: in the unit of the reference
    assert net.training


def test_the_profile_names_what_a_latency_depends_on() -> None:
    known = Latency(7.0, 6.5, 7.5, 50)
    one, eight = (
        LatencyMeter(small_net(), EXAMPLE, DeviceSettings(batch_size=n), known=known).profile for n in (1, 8)
    )
    assert one["threads"] == torch.get_num_threads()
    assert {key for key in one if one[key] != eight[key]} == {"batch_size"}
    assert all(one[key] for key in ("runtime", "device", "processor", "cores"))


def test_with_one_thread_on_a_cpu_the_time_of_other_programs_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Sleeps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.002)
            return x

    def found() -> tuple[float, str]:
        meter = LatencyMeter(Sleeps(), torch.zeros(1, 1), known=Latency(1.0, 1.0, 1.0, 1))
        return measure_latency(Sleeps(), torch.zeros(1, 1), protocol=QUICK).median_ms, meter.profile["clock"]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    milliseconds, clock = found()
    assert milliseconds < 1.0
    assert clock == "thread"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    milliseconds, clock = found()
    assert milliseconds >= 2.0
    assert clock == "wall"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(time, "get_clock_info", lambda name: types.SimpleNamespace(resolution=0.0156))
    assert found()[1] == "wall"


def test_net_and_reference_on_two_devices_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"on one device, got \['cpu', 'meta'\]"):
        measure_latency(small_net(), EXAMPLE, reference=small_net().to("meta"))


@pytest.mark.slow
def test_equal_nets_have_equal_latencies_within_their_intervals_on_this_machine() -> None:
    net, same = small_net().eval(), small_net(seed=1).eval()
    start_s = time.perf_counter()
    meter = LatencyMeter(net, EXAMPLE)
    found = [meter(same, seed) for seed in range(12)]
    ratios = [latency.median_ms / meter.reference.median_ms for latency in found]
    assert np.median(ratios) == pytest.approx(1.0, abs=0.03)
    assert time.perf_counter() - start_s < 4 + 12 * 1.5
