"""Measured latency: one call of an extracted net in torch's eager mode, beside the whole net."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from search_spaces import InvalidInput
from subnet_search.batches import device_of, on_device
from subnet_search.elastic.graph import Example, at_batch_one, call_arguments
from subnet_search.elastic.image_size import as_taken
from subnet_search.measure.accuracy import evaluation_mode
from subnet_search.measure.device import processor
from subnet_search.measure.timing import Call, Clock, Latency, Protocol, time_alone, time_beside

FINE_S = 1e-6
CLOCKS: dict[str, Clock] = {"thread": time.thread_time, "wall": time.perf_counter}
REFERENCE_PROTOCOL = Protocol(narrow=0.01, least_rounds=30, most_rounds=500, most_seconds=3.0)


def measure_latency(
    net: nn.Module,
    example: Example,
    *,
    reference: nn.Module | None = None,
    reference_ms: float | None = None,
    batch_size: int = 1,
    protocol: Protocol | None = None,
    seed: int = 0,
    clock_s: Clock | None = None,
) -> Latency:
    """The time of one call of `net`, in evaluation mode without gradients, on the device it lives on.

    Torch runs eagerly with as many threads as are set (`torch.set_num_threads`), in the net's own precision and
    memory format; inputs are on the device already. On a CPU with one thread the time that this thread computes is
    counted, which is the time of a machine to itself: when other programs take the core, their turns do not count.
    With more threads or an accelerator it is the time that passes. With a reference, drift of the machine is taken
    out as `time_beside` says.

    Args:
        net: any network; it comes back in the mode in which it came.
        example: its input, a tensor `[B, ...]`, positional arguments or named ones; the first entry is repeated.
        reference: another network on the same device, such as the whole one.
        reference_ms: its time; measured first if not given.
        batch_size: how many inputs one call has.
        protocol: how much is measured; by default at least 12 rounds, then until the half interval is 2 % of the
            median, 96 rounds or 1 second. A call of 1 ms costs 0.1 to 0.5 s, one of 100 ms about 3 s.
        seed: of orders and resamples.
        clock_s: another clock, in seconds.

    Raises:
        InvalidInput: net and reference are on different devices.
    """
    rng = np.random.default_rng(seed)
    nets = [net] if reference is None else [net, reference]
    if len(devices := {device_of(one) for one in nets}) > 1:
        raise InvalidInput(f"net and reference must be on one device, got {sorted(map(str, devices))}")
    clock_s = clock_s or CLOCKS[_clock_name(device_of(net))]
    with evaluation_mode(*nets), torch.inference_mode():
        call = _caller(net, example, batch_size)
        if reference is None:
            return time_alone(call, rng, protocol, clock_s=clock_s)
        other = _caller(reference, example, batch_size)
        if reference_ms is None:
            reference_ms = time_alone(other, rng, protocol, clock_s=clock_s).median_ms
        return time_beside(call, other, reference_ms, rng, protocol, clock_s=clock_s)


class LatencyMeter:
    """Times nets beside one reference, all in the milliseconds of the moment in which that one was timed alone.

    Args:
        reference: the whole network, on the device that counts; stands for the largest sub-net too.
        example: an input, as for `measure_latency`.
        batch_size: how many inputs one call has.
        known: the reference's latency from an earlier meter of the same profile; measured here if not given.
        protocol: how much is measured.

    Attributes:
        reference: the latency of the reference.
        profile: what latencies depend on besides the net; those of another profile are not to be compared.
    """

    def __init__(
        self,
        reference: nn.Module,
        example: Example,
        *,
        batch_size: int = 1,
        known: Latency | None = None,
        protocol: Protocol | None = None,
    ) -> None:
        self._net, self._example, self._batch_size = reference, example, batch_size
        self._protocol = protocol or Protocol()
        self.profile = self.profile_of(reference, batch_size)
        self.reference = known or measure_latency(
            reference, example, batch_size=batch_size, protocol=REFERENCE_PROTOCOL
        )

    def __call__(self, net: nn.Module, seed: int = 0) -> Latency:
        """The latency of `net` on the reference's device; it goes back to its own."""
        with on_device(device_of(self._net), net):
            return measure_latency(
                net,
                self._example,
                reference=self._net,
                reference_ms=self.reference.median_ms,
                batch_size=self._batch_size,
                protocol=self._protocol,
                seed=seed,
            )

    def by(self, protocol: Protocol) -> LatencyMeter:
        """The same meter, its reference known, by another protocol."""
        meter = copy.copy(self)
        meter._protocol = protocol
        return meter

    @staticmethod
    def profile_of(reference: nn.Module, batch_size: int) -> dict[str, Any]:
        """The profile of a meter with this reference: runtime, device, threads, images in a call, clock."""
        device = device_of(reference)
        return {
            "runtime": f"torch {torch.__version__} eager",
            "device": device.type,
            "processor": processor(device),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "batch_size": batch_size,
            "clock": _clock_name(device),
        }


def _clock_name(device: torch.device) -> str:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    fine = time.get_clock_info("thread_time").resolution <= FINE_S  # it is coarse on some systems
    return "thread" if alone and fine else "wall"


def _caller(net: nn.Module, example: Example, batch_size: int) -> Call:
    """One call with inputs of the size the net takes, on its device; it returns when the answer is there."""
    device = device_of(net)

    def repeated(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        return value.repeat(batch_size, *[1] * (value.ndim - 1)).to(device)

    args, kwargs = tree_map(repeated, as_taken(net, call_arguments(at_batch_one(example))))
    wait: Callable[[], object] = (
        (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
    )

    def call() -> None:
        net(*args, **kwargs)
        wait()

    return call
