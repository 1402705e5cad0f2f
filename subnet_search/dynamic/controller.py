"""One weight file, many sub-nets: a network that changes its size from call to call so that a latency budget holds."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.batches import resolve_device
from subnet_search.dynamic.control import ControlSettings, LatencyControl
from subnet_search.dynamic.dynamic_files import Loaded, Member, in_memory, load_dynamic
from subnet_search.dynamic.sharing import bytes_of
from subnet_search.elastic import Statistics, Supernet
from subnet_search.elastic.image_size import as_taken
from subnet_search.measure.latency import measure_latency
from subnet_search.measure.timing import Clock, Protocol

QUICK = Protocol(narrow=0.03, least_rounds=8, most_rounds=40, most_seconds=0.4)


class BudgetWarning(UserWarning):
    """A latency budget that not even the fastest sub-net holds."""


@dataclass(frozen=True, slots=True)
class ControllerState:
    """What a controller is doing.

    Attributes:
        key: of the sub-net that the next call runs.
        budget_ms: None before `set_budget`.
        predicted_ms: the percentile of that sub-net's latency, as things are.
        slowdown: of the machine, beside the time when latencies were measured.
        switches: how often the loop has switched so far.
    """

    key: str
    budget_ms: float | None
    predicted_ms: float
    slowdown: float
    switches: int


@dataclass(frozen=True, slots=True)
class Rung:
    """A sub-net that may run, and its latency at rest."""

    member: Member
    latency_ms: float


def rungs_of(members: Sequence[Member], latencies_ms: Sequence[float]) -> list[int]:
    """Places of the members worth running, by rising latency: each is better than all that are faster.

    Better is a higher accuracy where all have one, else more multiply-adds.
    """
    if len(members) != len(latencies_ms):
        raise InvalidInput(f"each of {len(members)} sub-nets needs its latency, got {len(latencies_ms)}")
    known = all(member.top1_percent is not None for member in members)

    def goodness(place: int) -> float:
        member = members[place]
        return member.top1_percent if known and member.top1_percent is not None else float(member.macs)

    kept: list[int] = []
    for place in sorted(range(len(members)), key=lambda i: (latencies_ms[i], -goodness(i))):
        if not kept or goodness(place) > goodness(kept[-1]):
            kept.append(place)
    return kept


class SwitchingNet:
    """Runs one of several networks; which one, a `LatencyControl` decides. Any number of threads may call it.

    A call reads the current place once, so a switch amid a call concerns later calls alone. What is remembered
    between calls is the control's window.

    Args:
        rungs: by rising latency.
        nets: as many callables from a batch to an answer, complete when they return.
        input_size: `[...]` of one input.
        settings: how the controller reacts.
        clock_s: a clock in seconds.
        dtype: of the numbers that the networks take.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        nets: Sequence[Callable[[Tensor], Tensor]],
        input_size: Sequence[int],
        settings: ControlSettings | None = None,
        clock_s: Clock = time.perf_counter,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.rungs, self._nets, self._size = tuple(rungs), tuple(nets), tuple(input_size)
        self._dtype = dtype
        self._control = LatencyControl([rung.latency_ms for rung in rungs], settings)
        self._lock, self._clock_s, self._told = threading.Lock(), clock_s, False

    def set_budget(self, *, latency_ms: float) -> None:
        """From now on each call should take at most so long, in the percentile of the settings.

        A budget below the fastest sub-net's latency is served by that one; a `BudgetWarning` says so, once.

        Raises:
            InvalidInput: the budget is no number above 0.
        """
        with self._lock:
            held = self._control.set_budget(latency_ms)
            tell = not held and not self._told
            self._told = self._told or tell
        if tell:
            warnings.warn(
                f"a budget of {latency_ms:g} ms is below the fastest sub-net, {self.rungs[0].member.key} with "
                f"{self.rungs[0].latency_ms:.3g} ms: it runs whatever it takes. Give a larger budget, or save a "
                "smaller sub-net too",
                BudgetWarning,
                stacklevel=2,
            )

    @property
    def state(self) -> ControllerState:
        """What the controller is doing now."""
        with self._lock:
            control = self._control
            return ControllerState(
                self.rungs[control.current].member.key,
                control.budget_ms,
                control.predicted_ms(control.current),
                control.slowdown,
                control.switches,
            )

    def __call__(self, x: Tensor) -> Tensor:
        """The answer of the current sub-net.

        Args:
            x: a batch `[B, *input size]` of the network's floating-point type.

        Raises:
            InvalidInput: for anything else.
        """
        self._check(x)
        place = self._control.current
        start_s = self._clock_s()
        answer = self._nets[place](x)
        taken_ms = 1e3 * (self._clock_s() - start_s)
        with self._lock:
            self._control.observe(place, max(taken_ms, 1e-6))
        return answer

    def _check(self, x: object) -> None:
        wanted = ", ".join(map(str, self._size))
        if not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0 or x.shape[1:] != self._size:
            came = list(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            way_out = "resize the images, or save the network again from a supernet of that size"
            if isinstance(x, Tensor) and x.shape == self._size:
                way_out = "give one image as x[None]"
            elif isinstance(x, Tensor) and x.shape == (0, *self._size):
                way_out = "leave empty batches out"
            raise InvalidInput(
                f"the input must be a batch [B, {wanted}] with B at least 1, got {came}; {way_out}"
            )
        if x.dtype != self._dtype:
            floats = x.is_floating_point()
            raise InvalidInput(
                f"the input must be of {self._dtype}, as the network is, got {x.dtype}; "
                f"{f'convert it with x.to({self._dtype})' if floats else 'prepare images as in training'}"
            )


class DynamicNet(SwitchingNet):
    """Sub-nets of one supernet over one set of weights, each with batch-norm statistics of its own.

        net = DynamicNet.load("net.safetensors")
        net.set_budget(latency_ms=12)
        logits = net(images)

    Switching is one assignment: all sub-nets are there as modules whose weights are views of the same memory. A
    weight that is not the beginning of the shared one (channels of a concatenation, say) is a copy; `own_bytes` counts
    these.

    Attributes:
        rungs: the sub-nets that may run by rising latency; those that are slower and no better were left out.
        shared_bytes: of the weights that all share.
        own_bytes: of statistics and other tensors that sub-nets have for themselves.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        latencies_ms: Sequence[float] | None = None,
        settings: ControlSettings | None = None,
        clock_s: Clock = time.perf_counter,
    ) -> None:
        if latencies_ms is None:
            latencies_ms = latencies_of(loaded.nets, loaded.members, loaded.example)
        kept = rungs_of(loaded.members, latencies_ms)
        rungs = [Rung(loaded.members[place], float(latencies_ms[place])) for place in kept]
        device = loaded.example.device
        nets = [_caller(loaded.nets[place], device) for place in kept]
        super().__init__(rungs, nets, loaded.example.shape[1:], settings, clock_s, loaded.example.dtype)
        self.shared_bytes = bytes_of(loaded.whole)
        self.own_bytes = sum(loaded.own_bytes[place] for place in kept)
        self.nets = tuple(loaded.nets[place] for place in kept)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        build: Callable[[], nn.Module] | None = None,
        trusted: bool = False,
        latencies_ms: Sequence[float] | None = None,
        settings: ControlSettings | None = None,
    ) -> DynamicNet:
        """Reads a file of `save_dynamic`.

        Args:
            path: the file.
            device: "cpu", "cuda", "cuda:N" or "auto".
            build: makes the original network, where the file does not name it.
            trusted: see `load_dynamic`; needed for sub-nets of the graph form.
            latencies_ms: of each sub-net at rest, in the order of the file; measured here by default, which takes
                about half a second for each.
            settings: how the controller reacts.

        Raises:
            InvalidInput: the file cannot be used, or the device is not there.
        """
        loaded = load_dynamic(path, build=build, trusted=trusted, device=resolve_device(device))
        return cls(loaded, latencies_ms=latencies_ms, settings=settings)

    @classmethod
    def of(
        cls,
        supernet: Supernet,
        subnets: Sequence[tuple[SubnetConfig, Statistics | None]],
        *,
        top1_percent: Sequence[float] | None = None,
        latencies_ms: Sequence[float] | None = None,
        settings: ControlSettings | None = None,
    ) -> DynamicNet:
        """The same without a file; arguments as of `save_dynamic`. The supernet must not be trained any more."""
        loaded = in_memory(supernet, subnets, top1_percent)
        return cls(loaded, latencies_ms=latencies_ms, settings=settings)


def latencies_of(nets: Sequence[nn.Module], members: Sequence[Member], example: Tensor) -> list[float]:
    """Milliseconds of one call with one input, on the clock on the wall; the largest network is the reference."""
    largest = max(range(len(nets)), key=lambda place: members[place].macs)
    alone = measure_latency(
        nets[largest], example, protocol=replace(QUICK, most_seconds=1.0), clock_s=time.perf_counter
    )
    found = []
    for place, net in enumerate(nets):
        if place == largest:
            found.append(alone.median_ms)
            continue
        timed = measure_latency(
            net,
            example,
            reference=nets[largest],
            reference_ms=alone.median_ms,
            protocol=QUICK,
            clock_s=time.perf_counter,
        )
        found.append(timed.median_ms)
    return found


def _caller(net: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Tensor = net(as_taken(net, x.to(device)))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return answer

    return call
