"""The set of sub-nets one supernet holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from .activity import Activity, Conditions, Ints, checked_conditions
from .config import SubnetConfig
from .errors import InvalidInput, nearest_names
from .knob import Knob

MUTATED_KNOBS = 3  # a mutation changes one to this many knobs


@dataclass(frozen=True)
class SearchSpace:
    """All combinations of knob values, one canonical config per sub-net.

    A knob inside skipped blocks means nothing; the canonical config has it at its largest. All methods return
    canonical configs and take any config of the space.

    Attributes:
        knobs: in the order of the columns of `encode`.
        inactive_when: for each knob that can lose its meaning one tuple per place where it acts, naming the
            depth knobs of the skippable blocks around that place, outermost first. The knob is inactive when
            in every place at least one of them is 0. A depth knob inside an outer block is listed too.

    Raises:
        InvalidInput: for an empty space, equal names, or conditions that name no depth knob or go in circles.
    """

    knobs: tuple[Knob, ...]
    inactive_when: Conditions = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", tuple(self.knobs))
        if not self.knobs:
            raise InvalidInput("a search space needs at least one knob, got none")
        if strange := [knob for knob in self.knobs if not isinstance(knob, Knob)]:
            raise InvalidInput(f"a search space is made of knobs, got {strange[0]!r}")
        names = [knob.name for knob in self.knobs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidInput(f"the knobs of a space must have different names, got {twice[0]!r} twice")
        object.__setattr__(self, "inactive_when", checked_conditions(self.knobs, self.inactive_when))

    def __hash__(self) -> int:
        return hash(self.knobs)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the knobs, in column order."""
        return tuple(knob.name for knob in self.knobs)

    @cached_property
    def _name_set(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def size(self) -> int:
        """The exact number of canonical configs."""
        return self._activity.count()

    @cached_property
    def _activity(self) -> Activity:
        return Activity(self.knobs, self.inactive_when)

    @cached_property
    def _counts(self) -> Ints:
        return np.array([len(knob.choices) for knob in self.knobs])

    @cached_property
    def _choices(self) -> Ints:
        """`[num_knobs, most choices]`, short rows padded with their last choice."""
        most = int(self._counts.max())
        rows = [knob.choices + (knob.largest,) * (most - len(knob.choices)) for knob in self.knobs]
        return np.array(rows, dtype=np.int64)

    def check(self, config: Mapping[str, int]) -> None:
        """Raises `InvalidInput` naming the first unknown knob, missing knob or value that is no choice."""
        if config.keys() != self._name_set:
            self._refuse_names(config)
        for knob in self.knobs:
            value = config[knob.name]
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value not in knob.choices:
                raise InvalidInput(f"knob {knob.name!r} cannot be {value!r}; {_nearest_choice(knob, value)}")

    def _refuse_names(self, config: Mapping[str, int]) -> NoReturn:
        for name in config:
            if name not in self._name_set:
                hint = nearest_names(name, self.names)
                raise InvalidInput(f"the config names the unknown knob {name!r}{hint}")
        missing = [name for name in self.names if name not in config]
        raise InvalidInput(
            f"a config names all {len(self.names)} knobs of its space, this one lacks {len(missing)}, "
            f"first {missing[0]!r}"
        )

    def canonical(self, config: Mapping[str, int]) -> SubnetConfig:
        """Returns the one config of this sub-net; `InvalidInput` when `config` is not of this space."""
        return self._config(self.encode([config])[0])

    def canonical_rows(self, x: NDArray[np.integer]) -> Ints:
        """Returns rows of allowed values `[num_configs, num_knobs]` with inactive knobs at their largest."""
        return self._activity.canonical_rows(np.asarray(x, dtype=np.int64))

    def active_rows(self, x: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Marks in canonical rows `[num_configs, num_knobs]` the knobs that mean something."""
        return ~self._activity.inactive(np.asarray(x, dtype=np.int64))

    def encode(self, configs: Iterable[Mapping[str, int]]) -> Ints:
        """Returns canonical values `[num_configs, num_knobs]` in knob order; `InvalidInput` as `check`."""
        rows = np.empty((len(configs := list(configs)), len(self.knobs)), dtype=np.int64)
        for row, config in zip(rows, configs, strict=True):
            self.check(config)
            row[:] = [config[name] for name in self.names]
        return self.canonical_rows(rows)

    def decode(self, x: NDArray[np.integer]) -> list[SubnetConfig]:
        """Returns the canonical configs of rows `[num_configs, num_knobs]`; `InvalidInput` as `check`."""
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != len(self.knobs) or not np.issubdtype(x.dtype, np.integer):
            shape = f"[num_configs, {len(self.knobs)}]"
            raise InvalidInput(f"encoded configs must be integers {shape}, got {x.dtype} {list(x.shape)}")
        for column, knob in enumerate(self.knobs):
            if len(wrong := np.flatnonzero(~np.isin(x[:, column], knob.choices))):
                value = int(x[wrong[0], column])
                raise InvalidInput(f"knob {knob.name!r} cannot be {value}; {_nearest_choice(knob, value)}")
        return [self._config(row) for row in self.canonical_rows(x)]

    def _config(self, row: Ints) -> SubnetConfig:
        return SubnetConfig(dict(zip(self.names, row.tolist(), strict=True)))

    def smallest(self) -> SubnetConfig:
        """Every knob at its smallest, all skippable blocks skipped."""
        return self.canonical({knob.name: knob.smallest for knob in self.knobs})

    def largest(self) -> SubnetConfig:
        """Every knob at its largest: the whole supernet."""
        return SubnetConfig({knob.name: knob.largest for knob in self.knobs})

    def uniform(self, share: float) -> SubnetConfig:
        """The config with every width nearest to `share` (0 < share <= 1) of its largest, ties upward; branches alike.

        All blocks are kept; knobs that are no widths stay at their largest.
        """
        if isinstance(share, bool) or not 0 < share <= 1:
            raise InvalidInput(f"the share of a uniform config must be above 0 and at most 1, got {share!r}")
        values = {knob.name: knob.largest for knob in self.knobs}
        for knob in self.knobs:
            if knob.kind in ("width", "branch"):
                # rounded, since 0.29 * 50 is meant to lie halfway between 14 and 15
                gaps = {choice: round(abs(choice - share * knob.largest), 9) for choice in knob.choices}
                values[knob.name] = min(knob.choices, key=lambda choice: (gaps[choice], -choice))
        return SubnetConfig(values)

    @overload
    def sample(self, rng: np.random.Generator, n: None = None) -> SubnetConfig: ...
    @overload
    def sample(self, rng: np.random.Generator, n: int) -> list[SubnetConfig]: ...

    def sample(self, rng: np.random.Generator, n: int | None = None) -> SubnetConfig | list[SubnetConfig]:
        """Draws every knob uniformly and independently; a list of `n` configs (repeats possible), or one."""
        picks = rng.integers(0, self._counts, size=(1 if n is None else n, len(self.knobs)))
        rows = self.canonical_rows(self._choices[np.arange(len(self.knobs)), picks])
        configs = [self._config(row) for row in rows]
        return configs[0] if n is None else configs

    def mutate(self, config: Mapping[str, int], rng: np.random.Generator) -> SubnetConfig:
        """Gives one to three active knobs another value; only in a space of one the config stays as it is."""
        row = self.encode([config])
        free = np.flatnonzero(self.active_rows(row)[0] & (self._counts > 1))
        changed = rng.choice(free, size=rng.integers(1, MUTATED_KNOBS, endpoint=True)) if len(free) else free
        for column in np.unique(changed):
            others = [choice for choice in self.knobs[column].choices if choice != row[0, column]]
            row[0, column] = rng.choice(others)
        return self._config(self.canonical_rows(row)[0])

    def cross(self, a: Mapping[str, int], b: Mapping[str, int], rng: np.random.Generator) -> SubnetConfig:
        """Takes every knob from `a` or `b` with equal chance, or from the one in which it means something."""
        rows = self.encode([a, b])
        active = self.active_rows(rows)
        from_a = np.where(active[0] == active[1], rng.random(len(self.knobs)) < 0.5, active[0])
        return self._config(self.canonical_rows(np.where(from_a, rows[:1], rows[1:]))[0])


def _nearest_choice(knob: Knob, value: object) -> str:
    if isinstance(value, int | float | np.number) and value == value and knob.kind != "choice":
        nearest = min(knob.choices, key=lambda choice: abs(choice - value))
        return f"the nearest of its {len(knob.choices)} choices is {nearest}"
    return f"its choices are {', '.join(map(str, knob.choices))}"
