"""Cheap families of regression: linear, Gaussian process, trees, boosting, small networks."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import BayesianRidge
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import PolynomialFeatures
from sklearn.tree import ExtraTreeRegressor

from .base import Floats, Model
from .gaussian import GaussianProcess

MOST_PAIRED = 60  # features; with more, their products are left out
TREES = 60
NETS = 5
MOST_NET_ROWS = 2_000


class _Refitted(ABC):
    """A family without settings to find: learning again is learning anew, and the mean costs as much as the spread."""

    def __init__(self, groups: NDArray[np.integer]) -> None:
        self._groups = groups

    @abstractmethod
    def fit(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.fit`; noise is left out of account."""

    @abstractmethod
    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """As `Model.predict`."""

    def again(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.again`."""
        return type(self)(self._groups).fit(x, y, noise)

    anew = again

    def expect(self, x: Floats) -> Floats:
        """As `Model.expect`."""
        return self.predict(x)[0]


class Ridge(_Refitted):
    """Linear in the features and, where these are few, in their products; Bayesian, so that it knows its spread."""

    def __init__(self, groups: NDArray[np.integer]) -> None:
        super().__init__(groups)
        few = len(groups) <= MOST_PAIRED
        self._paired = PolynomialFeatures(2 if few else 1, interaction_only=True, include_bias=False)

    def fit(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.fit`; noise is left out of account."""
        self._model = BayesianRidge().fit(self._paired.fit_transform(x), y)
        return self

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """As `Model.predict`."""
        mean, std = self._model.predict(self._paired.transform(x), return_std=True)
        return mean, std


class Trees(_Refitted):
    """Extremely randomised trees, built one by one as a forest spends most of its time copying; the spread is theirs.

    Source:
        Geurts, Ernst, Wehenkel, "Extremely randomized trees", 2006, doi:10.1007/s10994-006-6226-1.
    """

    def fit(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.fit`; noise is left out of account."""
        single = np.ascontiguousarray(x, dtype=np.float32)
        values = np.ascontiguousarray(y, dtype=np.float64)[:, None]
        with config_context(skip_parameter_validation=True):
            self._trees = [
                ExtraTreeRegressor(max_features=0.7, random_state=seed).fit(single, values, check_input=False)
                for seed in range(TREES)
            ]
        return self

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """As `Model.predict`."""
        single = np.ascontiguousarray(x, dtype=np.float32)
        each = np.stack([tree.predict(single, check_input=False) for tree in self._trees])
        return each.mean(axis=0), each.std(axis=0) + 1e-3


class Boosting(_Refitted):
    """Boosted trees; the spread is that of what was left out of each tree's sample."""

    def __init__(self, groups: NDArray[np.integer]) -> None:
        super().__init__(groups)
        self._model = GradientBoostingRegressor(
            n_estimators=150, learning_rate=0.08, max_depth=4, subsample=0.7, max_features=0.5, random_state=0
        )

    def fit(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.fit`; noise is left out of account."""
        self._model.fit(x, y)
        self._spread = max(float(np.sqrt(self._model.oob_scores_[-20:].mean())), 1e-3)
        return self

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """As `Model.predict`."""
        mean = self._model.predict(x)
        return mean, np.full(len(mean), self._spread)


class Networks(_Refitted):
    """Small networks that begin differently and see different resamplings; the spread is that between them."""

    def __init__(self, groups: NDArray[np.integer]) -> None:
        super().__init__(groups)
        make: Callable[..., Any] = partial(
            MLPRegressor, hidden_layer_sizes=(32, 16), solver="lbfgs", alpha=0.1, max_iter=100
        )
        self._nets = [make(random_state=seed) for seed in range(NETS)]

    def fit(self, x: Floats, y: Floats, noise: Floats | None = None) -> Self:
        """As `Model.fit`; noise is left out of account."""
        rng = np.random.default_rng(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            for net in self._nets:
                picks = rng.integers(0, len(y), min(len(y), MOST_NET_ROWS))
                net.fit(x[picks], y[picks])
        return self

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """As `Model.predict`."""
        each = np.stack([net.predict(x) for net in self._nets])
        return each.mean(axis=0), each.std(axis=0) + 1e-3


FAMILIES: Mapping[str, Callable[[NDArray[np.integer]], Model]] = {
    "gp": GaussianProcess,
    "ridge": Ridge,
    "trees": Trees,
    "boosting": Boosting,
    "networks": Networks,
}
