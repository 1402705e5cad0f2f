"""Workers of a Ray cluster: evaluations on many processes; no torch."""

from .pool import RayPool

__all__ = ["RayPool"]
