"""Training of supernets; the loop also fine-tunes extracted sub-nets."""

from __future__ import annotations

from .loop import TrainResult, train
from .sampling import Among, EachKnob, UniformWidths
from .sandwich import SandwichStep
from .step import PlainStep, Step

__all__ = [
    "Among",
    "EachKnob",
    "PlainStep",
    "SandwichStep",
    "Step",
    "TrainResult",
    "UniformWidths",
    "train",
]
