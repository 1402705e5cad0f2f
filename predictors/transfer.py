"""A new device from few measurements: models of other devices say what latencies usually look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from search_spaces import CostTable, InvalidInput, SearchSpace

from .base import Config, Floats
from .latency import LatencyPredictor, Way
from .latency_layers import LayerCosts, Rows
from .latency_parts import PROBES, Parts
from .latency_process import LatencyProcess

# canonical rows [num_configs, num_knobs] to what another device takes, in milliseconds [num_configs]
Source = Callable[[Rows], Floats]
SHARPNESS = 4  # how much more a device counts that errs less
LEFT_OUT_FOLDS = 20


def learn_devices(
    space: SearchSpace,
    measured: Mapping[str, tuple[Sequence[Config], Sequence[float]]],
    costs: CostTable | LayerCosts | None = None,
) -> dict[str, Source]:
    """Models of known devices, by name, for `TransferPredictor`.

    Args:
        space: of all of them.
        measured: for each device its configs and their milliseconds.
        costs: as for `LatencyPredictor`.
    """
    return {
        name: LatencyPredictor(space, costs).fit(configs, values).predict_rows
        for name, (configs, values) in measured.items()
    }


class TransferPredictor(LatencyPredictor):
    """Learns a device from 10 to 30 measurements and the models of other devices.

    The prior is a blend of the other devices, each scaled to the measurements and counting more the better it fits
    them. What is left is learnt by the process of `LatencyPredictor` with one part more, in which the new device is any
    mix of the known ones. Where cross-validation finds that the device is clearly better learnt by itself, the
    others are forgotten.

    Source:
        Learning a device from reference devices and few samples after Lee, Lee, Chong, Hwang, "HELP:
        Hardware-Adaptive Efficient Latency Prediction for NAS via Meta-Learning", NeurIPS 2021, arXiv:2106.08630.
        Unlike theirs, nothing is meta-trained: the known devices are the samples of the prior's covariance.

    Args:
        space: whose configs are predicted.
        sources: models of other devices, from `learn_devices`, or any functions of rows.
        costs, coverage, seed: as for `LatencyPredictor`.

    Raises:
        InvalidInput: without any source.
    """

    def __init__(
        self,
        space: SearchSpace,
        sources: Sequence[Source] | Mapping[str, Source],
        costs: CostTable | LayerCosts | None = None,
        *,
        coverage: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(space, costs, coverage=coverage, seed=seed)
        each = list(sources.values()) if isinstance(sources, Mapping) else list(sources)
        if not each:
            raise InvalidInput(
                "a transfer needs the model of at least one other device, got none; use LatencyPredictor without"
            )
        self._devices = _Devices(space, each)
        self._alone = self._parts
        self._parts = Parts(space, costs, self._devices.alike)

    def _ways(self) -> list[Way]:
        """From other devices, or alone; the former where there is no telling."""
        return [
            Way("other devices", partial(Blended, self._devices, self._parts)),
            Way("sums", partial(LatencyProcess, self._alone)),
            Way("products", partial(LatencyProcess, self._alone), logarithms=True),
        ]

    @property
    def transferred(self) -> bool:
        """Whether the other devices were of use."""
        return self.learnt.way.name == "other devices"


class _Devices:
    """What other devices take, and the same brought to one scale."""

    def __init__(self, space: SearchSpace, sources: Sequence[Source]) -> None:
        self._sources = sources
        found = self.ms(space.encode(space.sample(np.random.default_rng(1), PROBES)))
        self._middle, spread = found.mean(axis=0), found.std(axis=0)
        self._spread = np.where(spread > 0, spread, 1.0)

    def ms(self, rows: NDArray[np.integer]) -> Floats:
        """Milliseconds `[num_rows, num_devices]`."""
        whole: Rows = np.asarray(rows, dtype=np.int64)
        return np.stack([source(whole) for source in self._sources], axis=1)

    def alike(self, rows: Rows) -> list[Floats]:
        """Milliseconds brought to mean 0 and deviation 1: a part of the covariance."""
        return [(self.ms(rows) - self._middle) / self._spread]


class Blended:
    """A process of what a blend of other devices leaves.

    Args:
        devices: what they take.
        parts: of the process.
        amounts: of the process, found by itself if not given.
    """

    def __init__(self, devices: _Devices, parts: Parts, amounts: Floats | None = None) -> None:
        self._devices, self._process = devices, LatencyProcess(parts, amounts)

    def fit(self, x: Any, y: Floats, noise: Floats | None = None) -> Self:
        """As `LatencyProcess.fit`."""
        self._seen = np.asarray(x), y, noise
        self._ms = self._devices.ms(x)
        self._shares = blend(self._ms, y)
        self._process.fit(x, y - self._ms @ self._shares, noise)
        return self

    def again(self, x: Any, y: Floats, noise: Floats | None = None) -> Self:
        """As `LatencyProcess.again`; the blend is found anew."""
        return type(self)(self._devices, self._process.parts, self._process.amounts).fit(x, y, noise)

    def anew(self, x: Any, y: Floats, noise: Floats | None = None) -> Self:
        """As `LatencyProcess.anew`."""
        return type(self)(self._devices, self._process.parts).fit(x, y, noise)

    def expect(self, x: Any) -> Floats:
        """The mean `[num_rows]`."""
        return np.asarray(self._devices.ms(x) @ self._shares + self._process.expect(x))

    def predict(self, x: Any) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a new measurement, both `[num_rows]`."""
        mean, std = self._process.predict(x)
        return self._devices.ms(x) @ self._shares + mean, std

    def left_out(self) -> Floats:
        """What is expected of each learnt row without it, blend included `[num_rows]`."""
        x, y, noise = self._seen
        found = np.empty(len(y))
        fold_of = np.arange(len(y)) % min(len(y), LEFT_OUT_FOLDS)
        for fold in range(int(fold_of.max()) + 1):
            rest, held = fold_of != fold, fold_of == fold
            other = self.again(x[rest], y[rest], None if noise is None else noise[rest])
            found[held] = other.expect(x[held])
        return found

    def uncertainty(self, x: Any) -> tuple[Floats, float]:
        """As `LatencyProcess.uncertainty`."""
        return self._process.uncertainty(x)


def blend(ms: Floats, y: Floats) -> Floats:
    """How much of each device is taken: scaled to the measurements, and counting by its error on left-out rows.

    Args:
        ms: what the devices take at the measured rows `[num_rows, num_devices]`.
        y: what was measured `[num_rows]`.

    Returns:
        Factors of the devices' milliseconds `[num_devices]`.
    """
    squares = np.maximum((ms**2).sum(axis=0), 1e-300)
    factors = ms.T @ y / squares
    leverage = np.minimum(ms**2 / squares, 0.99)
    errors = np.abs((ms * factors - y[:, None]) / (1 - leverage)).mean(axis=0)
    trust = (
        np.maximum(errors, 1e-9 * np.abs(y).max()) / errors.max() if errors.max() > 0 else errors + 1
    ) ** -SHARPNESS
    return np.asarray(factors * trust / trust.sum())
