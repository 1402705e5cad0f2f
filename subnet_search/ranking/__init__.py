"""Rankings: which units of each channel group to keep first."""

from __future__ import annotations

from .base import RANKERS, random_ranking, rank
from .magnitude import bn_scale_ranking, l1_ranking
from .scores import Ranker, Ranking
from .taylor import taylor_ranking

__all__ = [
    "RANKERS",
    "Ranker",
    "Ranking",
    "bn_scale_ranking",
    "l1_ranking",
    "random_ranking",
    "rank",
    "taylor_ranking",
]
