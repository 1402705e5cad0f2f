"""Which sub-nets a step of the sandwich rule trains beside the largest one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from search_spaces import InvalidInput, SearchSpace, SubnetConfig


class Sampling(Protocol):
    """The smallest sub-net of every step, and those drawn anew for each; a frozen dataclass of plain values."""

    def smallest(self, space: SearchSpace) -> SubnetConfig:
        """Is trained in every step."""

    def draw(self, space: SearchSpace, rng: np.random.Generator, count: int) -> list[SubnetConfig]:
        """As many sub-nets of the space, repeats possible."""


@dataclass(frozen=True)
class EachKnob:
    """Every width and depth is drawn on its own, so that any sub-net may come."""

    def smallest(self, space: SearchSpace) -> SubnetConfig:
        """Every knob at its smallest."""
        return space.smallest()

    def draw(self, space: SearchSpace, rng: np.random.Generator, count: int) -> list[SubnetConfig]:
        """Each choice of a knob with equal chance."""
        return space.sample(rng, count)


@dataclass(frozen=True)
class UniformWidths:
    """One multiplier for all widths, drawn from [least, 1]; all blocks are kept.

    Source:
        Yu, Huang, "Universally Slimmable Networks and Improved Training Techniques", 2019, arXiv:1903.05134. A width
        is the choice of its knob nearest to the multiplier, where the paper rounds to multiples of 8.
    """

    least: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise InvalidInput(
                f"the least width multiplier must be above 0 and at most 1, got {self.least!r}"
            )

    def smallest(self, space: SearchSpace) -> SubnetConfig:
        """Every width at the least multiplier."""
        return space.uniform(self.least)

    def draw(self, space: SearchSpace, rng: np.random.Generator, count: int) -> list[SubnetConfig]:
        """Multipliers with equal chance."""
        return [space.uniform(float(rng.uniform(self.least, 1.0))) for _ in range(count)]


@dataclass(frozen=True)
class Among:
    """A list of sub-nets, largest first, such as the path of a progressive search.

    Source:
        Yang, He, Cao, Fan, "Non-uniform DNN Structured Subnets Sampling for Dynamic Inference", 2020,
        arXiv:2009.05681: the last one in every step, the others but the first with equal chance.
    """

    configs: tuple[SubnetConfig, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "configs", tuple(self.configs))
        if len(self.configs) < 2:
            raise InvalidInput(
                f"joint training needs a largest sub-net and at least one smaller, got {len(self.configs)}"
            )

    def __repr__(self) -> str:
        """Short and telling one list from another: it stands in every checkpoint."""
        keys = " ".join(config.key for config in self.configs)
        return f"Among({len(self.configs)} sub-nets, {hashlib.sha256(keys.encode()).hexdigest()[:16]})"

    def smallest(self, space: SearchSpace) -> SubnetConfig:
        """The last of the list."""
        return self.configs[-1]

    def draw(self, space: SearchSpace, rng: np.random.Generator, count: int) -> list[SubnetConfig]:
        """Each but the first with equal chance."""
        return [self.configs[i] for i in rng.integers(1, len(self.configs), size=count)]
