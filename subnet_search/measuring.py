"""What a run measures of a net besides top-1: its own metrics, and latency beside the whole network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TypeVar

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.data import Batch
from subnet_search.measure import Latency, LatencyMeter, answers, check_metrics
from subnet_search.measure.accuracy import share_right
from subnet_search.measure.metrics import metric_value
from subnet_search.record import Objective, Run
from subnet_search.seeding import kept_generators, start_epoch
from subnet_search.settings import DeviceSettings

LATENCIES = "latency.json"
T = TypeVar("T")


def measured_or_why(
    measure: Callable[[], T], what: str, say: Callable[[str], None] = lambda message: None
) -> tuple[T | None, str]:
    """What a measurement gives, tried once more where it fails; None and the reason where it fails again.

    A device that hangs once, or drops a connection, must not end a run of hours.

    Args:
        measure: measures.
        what: is measured, for messages.
        say: is told of failures.

    Raises:
        InvalidInput: it cannot be measured here at all, so that trying again is of no use.
    """
    reason = ""
    for last in (False, True):
        try:
            return measure(), ""
        except InvalidInput:
            raise
        except SubnetSearchError as error:
            reason = str(error)
        say(f"  {what} could not be timed{'; left out' if last else ', trying once more'}: {reason}")
    return None, reason


def open_meter(run: Run, whole: nn.Module, example: Tensor, settings: DeviceSettings) -> LatencyMeter:
    """A meter beside the whole network, whose own latency is measured once and kept in the run.

    On another machine, in another runtime, with other threads or another batch size, it is measured anew; the search
    then finds that its record is of another context.

    Raises:
        InvalidInput: the profile cannot be had here, or the whole network does not run in it.
    """
    profile = LatencyMeter.profile_of(whole, settings)
    stored = run.read_json(LATENCIES) if run.has(LATENCIES) else {}
    known = Latency(**stored["reference"]) if stored.get("profile") == profile else None
    meter = LatencyMeter(whole, example, settings, known=known)
    if known is None:
        run.write_json(LATENCIES, {"profile": profile, "reference": asdict(meter.reference)})
    return meter


def values_on(
    net: nn.Module,
    batches: Iterable[Batch],
    metrics: Mapping[str, Objective],
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, float]:
    """Top-1 and the metrics of a net on a split, by name, from one pass over it.

    A metric that fails or is not finite is left out, and told to `say`.
    """
    logits, targets = answers(net, batches)
    values = {"top1_percent": share_right(logits, targets)}
    for name, metric in metrics.items():
        try:
            values[name] = metric_value(metric, logits, targets)
        except SubnetSearchError as error:
            say(f"  left out: {error}")
    return values


def try_metrics(
    metrics: Mapping[str, Objective], net: nn.Module, example: Tensor, batches: Iterable[Batch]
) -> None:
    """Calls each metric once with the targets of a split; `InvalidInput` says what is wrong with one.

    Args:
        metrics: of the recipe.
        net: says how many classes there are.
        example: one input of it, `[1, ...]`.
        batches: the split whose targets are read.
    """
    if not metrics:
        return
    [logits, _] = answers(net, [(example, torch.zeros(len(example)))])
    with kept_generators():
        start_epoch(batches, 0, 0)
        targets = torch.cat([batch[1] for batch in batches])
    check_metrics(metrics, targets, logits.shape[1])
