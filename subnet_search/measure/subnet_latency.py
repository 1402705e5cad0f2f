"""The latency of a supernet's sub-nets, each extracted and timed beside the whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from search_spaces import SubnetConfig
from subnet_search.batches import resolve_device
from subnet_search.elastic.extraction import cut_out
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.latency import LatencyMeter
from subnet_search.measure.timing import Latency, Protocol
from subnet_search.seeding import derive_seed
from subnet_search.settings import RESOLUTION

BETWEEN_NEIGHBOURS = Protocol(narrow=RESOLUTION, most_rounds=300)  # of a path: they differ by little


class SubnetLatency:
    """Times sub-nets; a callable `(config) -> milliseconds`.

    Args:
        supernet: whose sub-nets.
        meter: times them; by default beside the largest one on `device`, one image a call.
        device: of the meter that is made here.
        seed: of orders and resamples.
        protocol: how much is measured; by default as much as the meter does.
        timing: what `timing` was in an earlier process: its reference is not measured anew on the same machine.
    """

    def __init__(
        self,
        supernet: Supernet,
        meter: LatencyMeter | None = None,
        *,
        device: str = "auto",
        seed: int = 0,
        protocol: Protocol | None = None,
        timing: Mapping[str, Any] | None = None,
    ) -> None:
        if meter is None:
            whole = cut_out(supernet, supernet.space.largest()).to(resolve_device(device))
            same = timing is not None and timing["profile"] == LatencyMeter.profile_of(whole, 1)
            known = Latency(**timing["reference"]) if timing and same else None
            meter = LatencyMeter(whole, supernet.example, known=known)
        self._supernet, self._seed = supernet, seed
        self._meter = meter.by(protocol) if protocol else meter

    def __call__(self, config: SubnetConfig) -> float:
        """Milliseconds of a sub-net."""
        return self.of(config).median_ms

    def of(self, config: SubnetConfig) -> Latency:
        """The latency of a sub-net; that of the largest one is the reference's, known already."""
        if config == self._supernet.space.largest():
            return self._meter.reference
        net = cut_out(self._supernet, config)  # statistics do not change its speed
        return self._meter(net, derive_seed(self._seed, "latency", config.key))

    @property
    def profile(self) -> dict[str, Any]:
        """What latencies depend on besides the sub-net."""
        return self._meter.profile

    @property
    def timing(self) -> dict[str, Any]:
        """The profile and the reference's latency: milliseconds are comparable where both are the same."""
        return {"profile": self.profile, "reference": asdict(self._meter.reference)}
