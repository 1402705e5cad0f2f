"""Measured latency: one call of an extracted net in the target's runtime, beside the whole net."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.batches import device_of, on_device
from subnet_search.elastic.graph import Example
from subnet_search.measure.device import processor
from subnet_search.measure.runtimes import RUNTIMES, Prepared, prepare
from subnet_search.measure.timing import Clock, Latency, Protocol, turns_alone, turns_beside
from subnet_search.modes import evaluation_mode
from subnet_search.settings import DeviceSettings

FINE_S = 1e-6
CLOCKS: dict[str, Clock] = {
    "thread": time.thread_time,
    "wall": time.perf_counter,
    "command": time.perf_counter,
}
REFERENCE_PROTOCOL = Protocol(narrow=0.01, least_rounds=30, most_rounds=500, most_seconds=3.0)


def measure_latency(
    net: nn.Module,
    example: Example,
    profile: DeviceSettings | None = None,
    *,
    reference: nn.Module | None = None,
    reference_ms: float | None = None,
    protocol: Protocol | None = None,
    seed: int = 0,
    clock_s: Clock | None = None,
) -> Latency:
    """The time of one call of `net`, in evaluation mode without gradients, in the profile's runtime.

    Torch runs it on the device where it lives, in its own memory format; other runtimes run on the CPU. Inputs are
    there already. On a CPU with one thread the time that this thread computes is counted, which is the time of a
    machine to itself: when other programs take the core, their turns do not count. With more threads or an accelerator
    it is the time that passes; a command tells its times itself. With a reference, drift of the machine is taken out
    as `time_beside` says.

    Args:
        net: any network; it comes back in the mode in which it came.
        example: its input, a tensor `[B, ...]`, positional arguments or named ones; the first entry is repeated.
        profile: runtime, threads, precision, images in a call; by default eager torch in the threads that are set.
        reference: another network on the same device, such as the whole one.
        reference_ms: its time; measured first if not given.
        protocol: how much is measured; by default at least 12 rounds, then until the half interval is 2 % of the
            median, 96 rounds or 1 second. A call of 1 ms costs 0.1 to 0.5 s, one of 100 ms about 3 s.
        seed: of orders and resamples.
        clock_s: another clock, in seconds.

    Raises:
        InvalidInput: net and reference are on different devices, or the profile cannot be had here.
        SubnetSearchError: the runtime rejects the net or answers differently, or a command fails.
    """
    profile = profile or DeviceSettings()
    nets = [net] if reference is None else [net, reference]
    if len(devices := {device_of(one) for one in nets}) > 1:
        raise InvalidInput(f"net and reference must be on one device, got {sorted(map(str, devices))}")
    held = [_Held(one, example, profile) for one in nets]
    with as_profiled(profile, *nets):
        return _measured(held[0], held[1:], reference_ms, protocol, seed, clock_s)


class LatencyMeter:
    """Times nets beside one reference, all in the milliseconds of the moment in which that one was timed alone.

    Args:
        reference: the whole network, on the device that counts; stands for the largest sub-net too.
        example: an input, as for `measure_latency`.
        profile: runtime, threads, precision, images in a call.
        known: the reference's latency from an earlier meter of the same profile; measured here if not given.
        protocol: how much is measured; by default as much as is usual for the runtime.

    Attributes:
        reference: the latency of the reference.
        profile: what latencies depend on besides the net; those of another profile are not to be compared.

    Raises:
        InvalidInput: the profile cannot be had here, or the reference itself does not run in it.
    """

    def __init__(
        self,
        reference: nn.Module,
        example: Example,
        profile: DeviceSettings | None = None,
        *,
        known: Latency | None = None,
        protocol: Protocol | None = None,
    ) -> None:
        self._settings = profile or DeviceSettings()
        self._held = _Held(reference, example, self._settings)
        self._protocol = protocol
        self.profile = self.profile_of(reference, self._settings)
        self.reference = known or self._alone()

    def __call__(self, net: nn.Module, seed: int = 0) -> Latency:
        """The latency of `net` on the reference's device; it goes back to its own."""
        return self.measured(net, seed)[0]

    @property
    def reference_bytes(self) -> int | None:
        """The bytes of the file of the reference that the runtime reads, if it reads one."""
        with as_profiled(self._settings, self._held.net):
            return self._held.prepared.file_bytes

    def measured(
        self, net: nn.Module, seed: int = 0, *, example: Example | None = None
    ) -> tuple[Latency, int | None]:
        """Latency, and the bytes of the file that the runtime read, if it read one.

        Args:
            net: what is timed.
            seed: of orders and resamples.
            example: its input, where it is not the reference's.

        Raises:
            SubnetSearchError: the runtime rejects the net or answers differently, or a command fails.
        """
        whole = self._held.net
        with on_device(device_of(whole), net), as_profiled(self._settings, net, whole):
            ours = _Held(net, self._held.example if example is None else example, self._settings)
            latency = _measured(ours, [self._held], self.reference.median_ms, self._protocol, seed)
            return latency, ours.prepared.file_bytes

    def by(self, protocol: Protocol) -> LatencyMeter:
        """The same meter, its reference known, by another protocol."""
        meter = copy.copy(self)
        meter._protocol = protocol
        return meter

    def _alone(self) -> Latency:
        own = RUNTIMES[self._settings.runtime]
        try:
            with as_profiled(self._settings, self._held.net):
                return _measured(
                    self._held, [], None, own.protocol if own.own_clock else REFERENCE_PROTOCOL, 0
                )
        except InvalidInput:
            raise
        except SubnetSearchError as error:
            raise InvalidInput(f"the whole network cannot be timed: {error}") from error

    @staticmethod
    def profile_of(reference: nn.Module, profile: DeviceSettings | None = None) -> dict[str, Any]:
        """The profile of a meter with this reference: what is run where, with what, and by which clock."""
        profile, device = profile or DeviceSettings(), device_of(reference)
        runs: dict[str, Any] = {"runtime": RUNTIMES[profile.runtime].version()}
        if profile.runtime == "command":
            runs |= {
                "command": profile.command,
                "format": profile.command_format,
                "unit": profile.command_unit,
            }
        else:
            runs |= {"device": device.type, "processor": processor(device), "cores": os.cpu_count()}
        return runs | {
            "threads": profile.threads or torch.get_num_threads(),
            "precision": profile.precision,
            "batch_size": profile.batch_size,
            "input_px": profile.input_px,
            "clock": clock_name(profile, device),
        }


class _Held:
    """A net that its runtime makes ready when it is first needed, with a folder for its file."""

    def __init__(self, net: nn.Module, example: Example, profile: DeviceSettings) -> None:
        self.net, self.example, self.profile = net, example, profile

    @cached_property
    def prepared(self) -> Prepared:
        self._folder = tempfile.TemporaryDirectory(prefix="subnet-")  # gone with this object
        return prepare(self.net, self.example, self.profile, Path(self._folder.name))


def _measured(
    held: _Held,
    beside: list[_Held],
    reference_ms: float | None,
    protocol: Protocol | None,
    seed: int,
    clock_s: Clock | None = None,
) -> Latency:
    profile, rng = held.profile, np.random.default_rng(seed)
    protocol = protocol or RUNTIMES[profile.runtime].protocol
    clock_s = clock_s or CLOCKS[clock_name(profile, device_of(held.net))]
    prepared = [one.prepared for one in (held, *beside)]
    with torch.inference_mode():
        turn, *others = (one.turn(protocol, clock_s) for one in prepared)
        if not others:
            return turns_alone(turn, rng, protocol, clock_s)
        if reference_ms is None:
            reference_ms = turns_alone(others[0], rng, protocol, clock_s).median_ms
        return turns_beside(turn, others[0], reference_ms, rng, protocol, clock_s)


@contextmanager
def as_profiled(profile: DeviceSettings, *nets: nn.Module) -> Iterator[None]:
    """Nets in evaluation mode and torch with the profile's threads; both are as before afterwards."""
    before = torch.get_num_threads()
    try:
        if profile.threads not in (None, before):
            torch.set_num_threads(profile.threads)
        with evaluation_mode(*nets):
            yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def clock_name(profile: DeviceSettings, device: torch.device) -> str:
    """Which clock counts: "thread", what the calling thread computes; "wall"; or "command", the command's own."""
    if RUNTIMES[profile.runtime].own_clock:
        return "command"
    alone = device.type == "cpu" and (profile.threads or torch.get_num_threads()) == 1
    fine = time.get_clock_info("thread_time").resolution <= FINE_S  # it is coarse on some systems
    return "thread" if alone and fine else "wall"
