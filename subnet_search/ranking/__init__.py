"""Rankings: which units of each channel group to keep first."""

from __future__ import annotations

from .base import RANKERS, natural_ranking, random_ranking, rank
from .curve import Ranked, SliceCurves, has_scales, rank_by, slice_curves, table_of
from .magnitude import bn_scale_ranking, l1_ranking
from .noise import (
    NoiseLevels,
    levels_from_json,
    noise_levels,
    noise_ranking,
    predicted_increase,
    weight_noise_ranking,
)
from .scores import Ranker, Ranking
from .taylor import taylor_ranking

__all__ = [
    "RANKERS",
    "NoiseLevels",
    "Ranked",
    "Ranker",
    "Ranking",
    "SliceCurves",
    "bn_scale_ranking",
    "has_scales",
    "l1_ranking",
    "levels_from_json",
    "natural_ranking",
    "noise_levels",
    "noise_ranking",
    "predicted_increase",
    "random_ranking",
    "rank",
    "rank_by",
    "slice_curves",
    "table_of",
    "taylor_ranking",
    "weight_noise_ranking",
]
