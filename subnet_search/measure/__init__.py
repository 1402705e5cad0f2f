"""Measuring sub-nets: accuracy, independent counts, the machine, and the proof."""

from __future__ import annotations

from .accuracy import answers, check_calibrated, correct, top1_percent
from .counter import count_macs, count_params
from .device import describe_device, describe_target
from .evaluator import SupernetEvaluator, make_evaluator
from .latency import LatencyMeter, measure_latency
from .metrics import check_metrics, load_metrics
from .own_task import TaskEvaluator
from .prove import Proof, prove
from .subnet_latency import Measured, SubnetLatency, measure_nets
from .timing import Latency

__all__ = [
    "Latency",
    "LatencyMeter",
    "Measured",
    "Proof",
    "SubnetLatency",
    "SupernetEvaluator",
    "TaskEvaluator",
    "answers",
    "check_calibrated",
    "check_metrics",
    "correct",
    "count_macs",
    "count_params",
    "describe_device",
    "describe_target",
    "load_metrics",
    "make_evaluator",
    "measure_latency",
    "measure_nets",
    "prove",
    "top1_percent",
]
