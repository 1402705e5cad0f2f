"""Anytime prediction: the best answer so far at a deadline, or the first one that is sure enough."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from search_spaces import InvalidInput
from search_spaces.knob import number_above_0, whole_number
from subnet_search.measure.timing import Clock
from subnet_search.training.losses import at_least_float, cross_entropy


class Anytime(Protocol):
    """A network that answers in steps, such as a `TriangularNet` in evaluation mode."""

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        """Logits `[B, num_classes]`, each better than the one before; the iterator may be left at any time."""


@dataclass(frozen=True, eq=False)
class AnytimeAnswer:
    """What an anytime loop returns.

    Attributes:
        logits: of the last step that was finished, `[B, num_classes]`.
        steps: how many were.
        reason: why it ended: all were done, the deadline (also after the last step, if no times of steps were told), or
            enough confidence.
        elapsed_ms: from the call on.
    """

    logits: Tensor
    steps: int
    reason: Literal["complete", "deadline", "confidence"]
    elapsed_ms: float


@torch.no_grad()
def predict_anytime(
    net: Anytime,
    x: Tensor,
    *,
    deadline_ms: float | None = None,
    confidence: float | None = None,
    step_ms: Sequence[float] = (),
    clock_s: Clock = time.perf_counter,
) -> AnytimeAnswer:
    """Runs a network step by step and returns the best answer so far.

    The first step always runs. A later one begins only if it is expected to end before the deadline: its time in
    `step_ms`, times how much slower than there this call has been so far. Without `step_ms` a step begins while there
    is time at all, and the answer may be late by one step.

    Args:
        net: whose steps are run.
        x: a batch `[B, ...]`.
        deadline_ms: from the call on; None: no deadline.
        confidence: stop when the largest probability of every input of the batch is above this; None: never.
        step_ms: milliseconds of each step at rest, from `time_steps`.
        clock_s: a clock in seconds.

    Raises:
        InvalidInput: a deadline, confidence or times that make no sense, or a network without steps.
    """
    _check_steps(net)
    if deadline_ms is not None:
        deadline_ms = number_above_0(deadline_ms, "a deadline in milliseconds")
    if confidence is not None and not number_above_0(confidence, "confidence, a probability below 1,") < 1:
        raise InvalidInput(f"confidence is a probability above 0 and below 1, got {confidence!r}")
    step_ms = [number_above_0(ms, "the milliseconds of a step") for ms in step_ms]
    if math.inf in step_ms:
        raise InvalidInput(f"step_ms are finite milliseconds, one for each step, got {step_ms}")
    start_s = clock_s()
    logits: Tensor | None = None
    steps, elapsed_ms = 0, 0.0
    reason: Literal["complete", "deadline", "confidence"] = "complete"
    for logits in net.rows(x):
        steps += 1
        if step_ms and steps > len(step_ms):
            raise InvalidInput(
                f"step_ms tells the times of {len(step_ms)} steps, and the network has more; use time_steps"
            )
        elapsed_ms = 1e3 * (clock_s() - start_s)
        if confidence is not None and bool((at_least_float(logits).softmax(1).amax(1) > confidence).all()):
            reason = "confidence"
            break
        if deadline_ms is None or (step_ms and steps == len(step_ms)):
            continue
        if elapsed_ms + _expected_ms(step_ms, steps, elapsed_ms) > deadline_ms:
            reason = "deadline"
            break
    if logits is None:
        raise InvalidInput(f"{type(net).__name__} has no step, so there is no answer")
    return AnytimeAnswer(logits, steps, reason, elapsed_ms)


def _expected_ms(step_ms: Sequence[float], done: int, elapsed_ms: float) -> float:
    """What the next step will take."""
    if done >= len(step_ms):
        return 0.0
    return step_ms[done] * max(1.0, elapsed_ms / max(sum(step_ms[:done]), 1e-9))


def _check_steps(net: Anytime) -> None:
    if not hasattr(net, "rows"):
        raise InvalidInput(
            f"{type(net).__name__} does not answer in steps: it has no rows(x); convert it with make_triangular, or "
            "give its exits to FixedSteps"
        )


@torch.no_grad()
def time_steps(
    net: Anytime, x: Tensor, *, repeats: int = 15, clock_s: Clock = time.perf_counter
) -> list[float]:
    """Median milliseconds of each step on an input, as the machine is now; the first call is not counted."""
    _check_steps(net)
    if whole_number(repeats, "repeats") < 1:
        raise InvalidInput(f"steps are timed at least once, got repeats={repeats}")
    rounds: list[list[float]] = []
    for _ in range(repeats + 1):
        times, before_s = [], clock_s()
        for _ in net.rows(x):
            now_s = clock_s()
            times.append(1e3 * (now_s - before_s))
            before_s = now_s
        rounds.append(times)
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]


def branch_loss(answers: Sequence[Tensor], labels: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Sum over sub-nets of w_k CE(y, z_k), w_k = 1 by default.

    Source:
        Lee, Shin, "Anytime Neural Prediction via Slicing Networks Vertically", 2018, arXiv:1807.02609.

    Args:
        answers: logits `[B, num_classes]` of each sub-net.
        labels: class numbers `[B]`.
        weights: one for each sub-net.

    Raises:
        InvalidInput: weights that are not as many as answers, or a label that is no class.
    """
    if weights is None:
        weights = [1.0] * len(answers)
    if len(weights) != len(answers):
        raise InvalidInput(f"{len(answers)} sub-nets need as many weights, got {len(weights)}")
    losses = [w * cross_entropy(z, labels) for w, z in zip(weights, answers, strict=True)]
    return torch.stack(losses).sum()


class FixedSteps:
    """Answers in steps from separate calls, such as the sub-nets of a `NestedResNeXt` or the exits of another net."""

    def __init__(self, calls: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self.calls = tuple(calls)

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        """One call after the other."""
        return (call(x) for call in self.calls)
