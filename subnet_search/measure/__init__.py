"""Measuring sub-nets: accuracy, independent counts, the machine, and the proof."""

from __future__ import annotations

from .accuracy import answers, check_calibrated, correct, top1_percent
from .counter import count_macs, count_params
from .device import describe_device
from .evaluator import SupernetEvaluator, make_evaluator
from .latency import LatencyMeter, measure_latency
from .metrics import check_metrics, load_metrics
from .own_task import TaskEvaluator
from .prove import Proof, prove
from .subnet_latency import SubnetLatency
from .timing import Latency

__all__ = [
    "Latency",
    "LatencyMeter",
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
    "load_metrics",
    "make_evaluator",
    "measure_latency",
    "prove",
    "top1_percent",
]
