"""What makes two sub-nets alike to a latency predictor: a sum of covariances, each with an amount to be learnt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search_spaces import CostTable, SearchSpace

from .base import Floats
from .latency_layers import LayerCosts, Rows, layers_of

PROBES = 512  # rows of the space to which features are scaled
LEVEL = 4.0  # variance of the level, in that of the values
# What a part explains before anything is measured, as a share of the values' variance. Totals and what alike knobs
# share come first; single layers and choices must be shown by measurements.
AMOUNTS: Mapping[str, float] = {
    "devices": 1.0,
    "totals": 0.5,
    "layers": 0.2,
    "shared": 0.3,
    "near": 0.15,
    "own": 0.1,
    "products": 0.04,
    "residual": 0.04,
}
REACH = 3  # covariances of neighbours fall to 1 / e over this part of a row of alike knobs
CLOSE = 3.0  # exponent of the residual between configs that differ in everything


@dataclass(frozen=True)
class Places:
    """Configs as the parts see them.

    Attributes:
        linear: features of the linear parts, by name `[num_configs, num_features]`.
        places: whose squared distances count differing knobs `[num_configs, num_features]`.
    """

    linear: Mapping[str, Floats]
    places: Floats


class Parts:
    """Covariances between configs: a block table at several depths, and a residual.

    Linear parts say that milliseconds add up: over multiply-adds and bytes of the whole net ("totals"), of each layer
    ("layers"), over the choices of knobs, whose milliseconds alike knobs have in common ("shared"), have
    in common with neighbours ("near"), or have for themselves ("own"). "products" let what is shared act together,
    and "residual" lets configs that differ in few knobs differ little. Knobs are alike if they are of one kind with
    equally many choices. A knob without meaning adds nothing.

    Args:
        space: whose configs are compared.
        costs: a cost table, or what says the costs of layers; without, knobs alone are looked at.
        devices: what other devices' models expect of rows `[num_configs, num_devices]`, one part more: a new device
            is taken for a mix of known ones.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: CostTable | LayerCosts | None = None,
        devices: LayerCosts | None = None,
    ) -> None:
        self.space, self._layers, self._devices = space, layers_of(costs), devices
        alike: dict[tuple[str, int], list[int]] = defaultdict(list)
        for column, knob in enumerate(space.knobs):
            alike[knob.kind, len(knob.choices)].append(column)
        self._alike = [(kind == "choice", columns) for (kind, _), columns in alike.items()]
        probes = space.encode(space.sample(np.random.default_rng(0), PROBES))
        self._scales = {name: _scale(raw) for name, raw in self._raw(probes).items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts, in order."""
        return (*self._scales, "products", "residual")

    @cached_property
    def amounts(self) -> Floats:
        """The prior of each part's variance, in that of the values `[num_parts]`."""
        return np.array([AMOUNTS[name] for name in self.names])

    def __call__(self, rows: NDArray[np.integer]) -> Places:
        """Canonical rows `[num_configs, num_knobs]` as the parts see them."""
        whole: Rows = np.asarray(rows, dtype=np.int64)
        linear = {
            name: (raw - self._scales[name][0]) / self._scales[name][1]
            for name, raw in self._raw(whole).items()
        }
        return Places(linear, self._places(whole))

    def grams(self, a: Places, b: Places) -> Iterator[Floats]:
        """The covariance of each part at amount 1, `[num_a, num_b]`, in the order of `names`."""
        common: Floats | float = 0.0
        for name in self._scales:
            gram = a.linear[name] @ b.linear[name].T
            if name in ("totals", "shared"):
                common = common + gram
            yield gram
        yield np.asarray(common) ** 2 / 8
        squares = (a.places**2).sum(axis=1)[:, None] + (b.places**2).sum(axis=1) - 2 * (a.places @ b.places.T)
        yield np.exp(-CLOSE / len(self.space.knobs) * np.maximum(squares, 0.0))

    def mixed(self, amounts: Floats, a: Places, b: Places) -> Floats:
        """The sum of all parts and of the level `[num_a, num_b]`."""
        total = np.full((len(a.places), len(b.places)), LEVEL)
        for amount, gram in zip(amounts, self.grams(a, b), strict=True):
            total += amount * gram
        return total

    def variances(self, amounts: Floats, a: Places) -> Floats:
        """The diagonal of `mixed(amounts, a, a)`, `[num_a]`."""
        own = {name: (features**2).sum(axis=1) for name, features in a.linear.items()}
        common = sum(own[name] for name in ("totals", "shared") if name in own)
        each = [*own.values(), np.asarray(common) ** 2 / 8, np.ones(len(a.places))]
        return np.asarray(LEVEL + amounts @ np.stack(each))

    def _raw(self, rows: Rows) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        if self._devices is not None:
            found["devices"] = np.concatenate(self._devices(rows), axis=1)
        if self._layers is not None:
            kinds = [layers for layers in self._layers(rows) if layers.shape[1]]
            found["totals"] = np.stack([layers.sum(axis=1) for layers in kinds], axis=1) / self._units
            found["layers"] = np.concatenate(
                [
                    layers / unit @ _root(layers.shape[1], REACH)  # neighbours are alike
                    for layers, unit in zip(kinds, self._units, strict=True)
                ],
                axis=1,
            )
        shared, near, own = [], [], []
        for one_hot, ordered in self._one_hots(rows):
            _, count, choices = one_hot.shape
            close = _root(choices, REACH) if ordered else np.eye(choices)
            blurred = one_hot @ close  # neighbouring widths take about as long
            shared.append(blurred.sum(axis=1))
            near.append(np.einsum("nkc,kl->nlc", blurred, _root(count, REACH)).reshape(len(rows), -1))
            own.append(blurred.reshape(len(rows), -1))
        for name, blocks in {"shared": shared, "near": near, "own": own}.items():
            found[name] = np.concatenate(blocks, axis=1)
        return found

    @cached_property
    def _units(self) -> Floats:
        """A usual cost of the whole net, of each kind."""
        assert self._layers is not None
        rows = self.space.encode([self.space.largest()])
        return np.array([max(layers.sum(), 1e-9) for layers in self._layers(rows) if layers.shape[1]])

    def _one_hots(self, rows: Rows) -> Iterator[tuple[Floats, bool]]:
        """For alike knobs which choice is taken `[num_configs, num_alike, num_choices]`, and if choices are ordered."""
        active = self.space.active_rows(rows)
        for unordered, columns in self._alike:
            choices = np.array([self.space.knobs[i].choices for i in columns])
            taken = (rows[:, columns, None] == choices) & active[:, columns, None]
            yield taken.astype(np.float64), not unordered

    def _places(self, rows: Rows) -> Floats:
        parts = []
        for one_hot, ordered in self._one_hots(rows):
            if ordered:
                count = one_hot.shape[2]
                parts.append(one_hot @ np.linspace(1 / count, 1, count))
            else:
                parts.append(one_hot.reshape(len(rows), -1) / np.sqrt(2))
        return np.concatenate(parts, axis=1)


def _scale(raw: Floats) -> tuple[Floats, float]:
    """The middle of features, and what makes their squares add up to 1 on average."""
    middle = raw.mean(axis=0)
    size = float(np.sqrt(((raw - middle) ** 2).sum(axis=1).mean()))
    return middle, size or 1.0


def _root(count: int, part: int) -> Floats:
    """A square root of correlations that fall by 1 / e over `count / part` places, `[count, count]`."""
    apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    return np.asarray(np.linalg.cholesky(np.exp(-apart * part / count) + 1e-9 * np.eye(count)))
