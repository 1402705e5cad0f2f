from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from subnet_search.measure import Latency, LatencyMeter, SubnetLatency, count_params
from subnet_search.measure.timing import Protocol
from subnet_search.settings import RESOLUTION, DeviceSettings
from tests.small import EXAMPLE, small_supernet

KNOWN = Latency(4.0, 3.5, 4.5, 30)
QUICK = Protocol(least_rounds=3, most_rounds=3, warmup=1, turn_ms=0.01)


class Meter(LatencyMeter):
    """Has no clock: a millisecond for 100 parameters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, EXAMPLE, known=KNOWN)
        self.timed: list[tuple[nn.Module, int]] = []

    def __call__(self, net: nn.Module, seed: int = 0) -> Latency:
        self.timed.append((net, seed))
        return Latency(count_params(net) / 100, 1.0, 2.0, 12)


def test_what_is_timed_is_the_extracted_net_and_the_largest_one_is_known() -> None:
    supernet = small_supernet()
    meter = Meter(supernet.model)
    latency, small = SubnetLatency(supernet, meter), supernet.space.smallest()
    assert latency(small) == supernet.costs.params(supernet.space.encode([small]))[0] / 100
    assert latency(supernet.space.largest()) == 4.0
    assert len(meter.timed) == 1
    SubnetLatency(supernet, meter, seed=1)(small)
    latency(small)
    first, other, again = (seed for _, seed in meter.timed)
    assert first == again != other


def test_it_measures_by_a_protocol_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, seen = small_supernet(), list[tuple[Protocol, float]]()

    def timed(*given: Any) -> Latency:
        seen.append((given[4], given[2]))
        return Latency(1.0, 1.0, 1.0, 1)

    monkeypatch.setattr("subnet_search.measure.latency.turns_beside", timed)
    meter = LatencyMeter(supernet.model, EXAMPLE, known=KNOWN, protocol=QUICK)
    fine = Protocol(narrow=RESOLUTION)
    for latency in (SubnetLatency(supernet, meter, protocol=fine), SubnetLatency(supernet, meter)):
        latency(supernet.space.smallest())
    assert seen == [(fine, 4.0), (QUICK, 4.0)]  # the meter itself is as it was


def test_the_reference_of_an_earlier_process_is_the_unit_on_the_same_machine() -> None:
    supernet = small_supernet()
    largest = supernet.space.largest()
    timing = {**SubnetLatency(supernet, Meter(supernet.model)).timing}
    again = SubnetLatency(supernet, profile=DeviceSettings(name="cpu"), timing=timing)
    assert again(largest) == 4.0
    assert again.timing == timing
    other = SubnetLatency(
        supernet, profile=DeviceSettings(name="cpu"), timing={**timing, "profile": {"processor": "another"}}
    )
    assert other(largest) != 4.0
    assert other.timing["profile"] == timing["profile"]
