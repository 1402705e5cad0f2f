"""The latency of a supernet's sub-nets, each extracted and timed beside the whole network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.batches import resolve_device
from subnet_search.elastic.extraction import cut_out
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.latency import LatencyMeter
from subnet_search.measure.timing import Latency, Protocol
from subnet_search.seeding import derive_seed
from subnet_search.settings import RESOLUTION, DeviceSettings

Timing = Mapping[str, Any]

BETWEEN_NEIGHBOURS = Protocol(narrow=RESOLUTION, most_rounds=300)  # of a path: they differ by little


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out about one sub-net.

    Attributes:
        config: the canonical config.
        latency: None where the runtime does not run this sub-net.
        file_bytes: of the file that the runtime read; None where it read none.
        seconds: that preparing and timing took.
        reason: why there is no latency.
    """

    config: SubnetConfig
    latency: Latency | None
    file_bytes: int | None
    seconds: float
    reason: str = ""


class SubnetLatency:
    """Times sub-nets; a callable `(config) -> milliseconds`.

    Args:
        supernet: whose sub-nets.
        meter: times them; by default beside the largest one, as `profile` says.
        profile: of the meter that is made here.
        seed: of orders and resamples.
        protocol: how much is measured; by default as much as the meter does.
        timing: what `timing` was in an earlier process: its reference is not measured anew on the same machine. Or what
            finds that by the profile.
    """

    def __init__(
        self,
        supernet: Supernet,
        meter: LatencyMeter | None = None,
        *,
        profile: DeviceSettings | None = None,
        seed: int = 0,
        protocol: Protocol | None = None,
        timing: Timing | Callable[[Timing], Timing | None] | None = None,
    ) -> None:
        self._supernet, self._seed = supernet, seed
        meter = meter or _beside_the_largest(supernet, profile or DeviceSettings(), timing)
        self._meter = meter.by(protocol) if protocol else meter

    def __call__(self, config: SubnetConfig) -> float:
        """Milliseconds of a sub-net."""
        return self.of(config).median_ms

    def of(self, config: SubnetConfig) -> Latency:
        """The latency of a sub-net; that of the largest one is the reference's, known already.

        Raises:
            SubnetSearchError: the runtime does not run it.
        """
        if config == self._supernet.space.largest():
            return self._meter.reference
        return self._meter(self._cut_out(config), self._seed_of(config))

    def measured(self, config: SubnetConfig) -> Measured:
        """The same with what else was found out; a sub-net that the runtime does not run has a reason."""
        start_s, config = time.perf_counter(), self._supernet.space.canonical(config)
        latency, file_bytes, reason = None, None, ""
        try:
            latency, file_bytes = self._meter.measured(self._cut_out(config), self._seed_of(config))
        except InvalidInput:
            raise
        except SubnetSearchError as error:
            reason = str(error)
        return Measured(config, latency, file_bytes, time.perf_counter() - start_s, reason)

    def _cut_out(self, config: SubnetConfig) -> nn.Module:
        return cut_out(self._supernet, config)  # statistics do not change its speed

    def _seed_of(self, config: SubnetConfig) -> int:
        return derive_seed(self._seed, "latency", config.key)

    @property
    def profile(self) -> dict[str, Any]:
        """What latencies depend on besides the sub-net."""
        return self._meter.profile

    @property
    def timing(self) -> dict[str, Any]:
        """The profile and the reference's latency: milliseconds are comparable where both are the same."""
        return {"profile": self.profile, "reference": asdict(self._meter.reference)}


def measure_nets(
    supernet: Supernet,
    configs: Iterable[SubnetConfig],
    profile: DeviceSettings | None = None,
    *,
    seed: int = 0,
    protocol: Protocol | None = None,
    timing: Timing | Callable[[Timing], Timing | None] | None = None,
) -> Iterator[Measured]:
    """Measures sub-nets one by one, beside the largest one.

    Args:
        supernet: whose sub-nets.
        configs: which ones.
        profile: runtime, threads, precision and so on of the target.
        seed: of orders and resamples.
        protocol: how much is measured; by default as much as is usual for the runtime.
        timing: `SubnetLatency.timing` of an earlier process, to go on in its milliseconds.

    Raises:
        InvalidInput: the profile cannot be had here, or not even the largest sub-net runs in it.
    """
    latency = SubnetLatency(supernet, profile=profile, seed=seed, protocol=protocol, timing=timing)
    for config in configs:
        yield latency.measured(config)


def _beside_the_largest(
    supernet: Supernet, profile: DeviceSettings, timing: Timing | Callable[[Timing], Timing | None] | None
) -> LatencyMeter:
    whole = cut_out(supernet, supernet.space.largest()).to(resolve_device(profile_device(profile)))
    described = LatencyMeter.profile_of(whole, profile)
    before = timing(described) if callable(timing) else timing
    known = Latency(**before["reference"]) if before and before["profile"] == described else None
    return LatencyMeter(whole, supernet.example, profile, known=known)


def profile_device(profile: DeviceSettings) -> str:
    """The name of torch's device for nets of this profile; all runtimes but torch's own run on the CPU."""
    return profile.name if profile.runtime in ("torch", "compile") else "cpu"
