"""Training of supernets; the loop also fine-tunes extracted sub-nets."""

from __future__ import annotations

from .loop import TrainResult, train
from .sandwich import SandwichStep
from .step import PlainStep, Step

__all__ = ["PlainStep", "SandwichStep", "Step", "TrainResult", "train"]
