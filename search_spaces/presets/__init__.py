"""Ready-made ways through a space; numpy only."""

from .widths import Ladders, ladders, steps_down

__all__ = ["Ladders", "ladders", "steps_down"]
