"""Training of supernets; the loop also fine-tunes extracted sub-nets."""

from __future__ import annotations

from .bootstrap import BootstrapStep
from .loop import TrainResult, train
from .sampling import Among, EachKnob, UniformWidths
from .sandwich import SandwichStep
from .skip_paths import SkipPathStep, make_skip_aware
from .step import PlainStep, Step

__all__ = [
    "Among",
    "BootstrapStep",
    "EachKnob",
    "PlainStep",
    "SandwichStep",
    "SkipPathStep",
    "Step",
    "TrainResult",
    "UniformWidths",
    "make_skip_aware",
    "train",
]
