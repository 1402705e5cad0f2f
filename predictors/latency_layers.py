"""What each layer of a sub-net costs, read off a cost table: what a block table of latencies is built on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces import CostTable, InvalidInput
from search_spaces.knob import RESOLUTION_KNOB

from .base import Floats

Rows = NDArray[np.int64]
# canonical rows [num_configs, num_knobs] to one array [num_configs, num_layers] for each kind of cost, such as
# multiply-adds and bytes; layers in forward order, and equally many of a kind for all configs
LayerCosts = Callable[[Rows], Sequence[Floats]]


class TableLayers:
    """The costs of layers out of a cost table: multiply-adds, parameters, and the bytes that live at each step.

    A cost is a sum of products of knobs, and layers between the same groups of channels share a product: each
    product with its coefficient is taken for a layer. Images of several sizes have tables of their own, whose products
    are matched by their knobs.

    Args:
        costs: of the space whose rows are given.
    """

    def __init__(self, costs: CostTable) -> None:
        self._costs = costs
        tables = [costs, *costs.at_resolution.values()]
        order = {name: place for place, name in enumerate(costs.knobs)}
        self._products = [
            sorted(
                {key for table in tables for key in getattr(table, name)},
                key=lambda key: ([order[knob] for knob in key], key),
            )
            for name in ("macs_terms", "params_terms")
        ]
        self._steps = max(len(table.peak_activation_bytes_terms) for table in tables)

    def __call__(self, rows: Rows) -> list[Floats]:
        """Multiply-adds, parameters and live bytes: `[num_configs, num_layers]` each."""
        if self._costs.at_resolution:
            column = rows[:, self._costs.knobs.index(RESOLUTION_KNOB)]
            found: list[Floats] = []
            for choice in np.unique(column):
                here = column == choice
                parts = self._of(self._costs.at_resolution.get(int(choice), self._costs), rows[here])
                found = found or [np.zeros((len(rows), part.shape[1])) for part in parts]
                for whole, part in zip(found, parts, strict=True):
                    whole[here] = part
            return found
        return self._of(self._costs, rows)

    def _of(self, table: CostTable, rows: Rows) -> list[Floats]:
        units = dict(zip(table.knobs, (rows // np.array(table.divisors)).T.astype(np.float64), strict=True))

        def product(key: tuple[str, ...]) -> Floats:
            return np.asarray(np.prod([units[knob] for knob in key] or [np.ones(len(rows))], axis=0))

        parts = [
            np.stack([getattr(table, name).get(key, 0) * product(key) for key in keys], axis=1)
            if keys
            else np.zeros((len(rows), 0))
            for name, keys in zip(("macs_terms", "params_terms"), self._products, strict=True)
        ]
        live = np.zeros((len(rows), self._steps))
        for step, terms in enumerate(table.peak_activation_bytes_terms):
            for key, coefficient in terms.items():
                live[:, step] += coefficient * product(key)
        return [*parts, live]


def layers_of(costs: CostTable | LayerCosts | None) -> LayerCosts | None:
    """The costs of layers, whatever says them.

    Raises:
        InvalidInput: for what is neither a cost table nor a function of rows.
    """
    if costs is None:
        return None
    if isinstance(costs, CostTable):
        return TableLayers(costs)
    if not callable(costs):
        raise InvalidInput(
            f"costs must be a cost table, or a function of rows that returns arrays [num_configs, num_layers], "
            f"got {costs!r}"
        )
    return costs
