"""What a predictor can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Config = Mapping[str, int]


class Predictor(Protocol):
    """Stands in for a slow measurement: learns from measured configs, foretells others."""

    def fit(self, configs: Sequence[Config], values: Sequence[float]) -> Self:
        """Learns from `[num_rows]` configs and what was measured of each."""

    def predict(self, configs: Sequence[Config]) -> Floats:
        """The value expected of each config: `[num_configs]`."""

    def predict_interval(self, configs: Sequence[Config]) -> tuple[Floats, Floats]:
        """Low and high `[num_configs]`, between which a stated share of measurements falls."""


class Model(Protocol):
    """One family of regression on features."""

    def fit(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """Learns from features `[num_rows, num_features]` and values `[num_rows]`; `noise` are variances of these."""

    def again(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """Another model for other rows, with whatever this one found out about how to learn from them."""

    def anew(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """Another model for other rows, which owes nothing to this one."""

    def expect(self, x: Floats) -> Floats:
        """The mean alone `[num_rows]`, where that is less work."""

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a new measurement, both `[num_rows]`."""
