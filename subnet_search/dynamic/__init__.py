"""Networks that change while they run: sub-nets switched under a budget, or chosen anew for each input."""

from __future__ import annotations

from .control import ControlSettings
from .controller import BudgetWarning, ControllerState, DynamicNet
from .dynamic_files import save_dynamic
from .storing import load_slimming
from .storing_layers import load_layer_channel

__all__ = [
    "BudgetWarning",
    "ControlSettings",
    "ControllerState",
    "DynamicNet",
    "load_layer_channel",
    "load_slimming",
    "save_dynamic",
]
