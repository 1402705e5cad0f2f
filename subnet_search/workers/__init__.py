"""Workers of a Ray cluster: evaluations on many processes; no torch."""

from .pool import RayPool
from .tune_searcher import as_tune_searcher

__all__ = ["RayPool", "as_tune_searcher"]
