"""Measuring sub-nets: accuracy, independent counts, the machine, and the proof."""

from __future__ import annotations

from .accuracy import check_calibrated, correct, top1_percent
from .counter import count_macs, count_params
from .device import describe_device
from .evaluator import SupernetEvaluator, make_evaluator
from .prove import Proof, prove

__all__ = [
    "Proof",
    "SupernetEvaluator",
    "check_calibrated",
    "correct",
    "count_macs",
    "count_params",
    "describe_device",
    "make_evaluator",
    "prove",
    "top1_percent",
]
