"""Which images an evaluation has looked at, where it may stop before it has seen all."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces import InvalidInput


@dataclass(frozen=True, slots=True)
class Images:
    """The images that one evaluation cost, beside what it costs in full.

    Attributes:
        seen: images of search-validation that were answered.
        of: how many there are.
        calibration: images besides that set batch-norm statistics; always all of them.
        right: of an evaluation in full, which images were answered right, in the order of the split: packed bits.
        rival: of one that was stopped, the key of the sub-net that is better.

    Raises:
        InvalidInput: for counts that cannot be, bits that are not of all images, or one stopped without a rival.
    """

    seen: int
    of: int
    calibration: int = 0
    right: bytes = b""
    rival: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.seen <= self.of or self.calibration < 0:
            raise InvalidInput(
                f"an evaluation sees from 1 to all images, got {self.seen} of {self.of} and {self.calibration} "
                "to calibrate"
            )
        if self.right and (len(self.right) != -(-self.of // 8) or not self.in_full):
            raise InvalidInput(
                f"right must hold one bit for each of {self.of} images that were all seen, got "
                f"{len(self.right)} bytes for {self.seen}"
            )
        if self.in_full == bool(self.rival):
            raise InvalidInput(
                f"an evaluation has a rival if it was stopped, got {self.rival!r} after {self.seen} of {self.of}"
            )

    @property
    def in_full(self) -> bool:
        """Whether all images were seen."""
        return self.seen == self.of

    @property
    def spent(self) -> int:
        """Images that went through the sub-net."""
        return self.seen + self.calibration

    @property
    def in_full_spent(self) -> int:
        """What `spent` is when nothing is stopped."""
        return self.of + self.calibration

    def answers(self) -> np.ndarray:
        """Which images were answered right, booleans `[of]`; only of an evaluation in full."""
        bits = np.frombuffer(self.right, np.uint8)
        return np.unpackbits(bits, count=self.of).astype(bool)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the journal."""
        right = base64.b64encode(self.right).decode()
        told = {"seen": self.seen, "of": self.of, "calibration": self.calibration}
        return told | ({"right": right} if right else {}) | ({"rival": self.rival} if self.rival else {})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Images:
        """What `to_json` gave."""
        return cls(**{**stored, "right": base64.b64decode(stored.get("right", ""))})


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """What is known of a sub-net after some of its images.

    Attributes:
        correct: booleans `[n]`, in the order in which the images were drawn.
        images: their places in the split, `[n]`.
        of: how many images there are.
        calibration: images besides that set batch-norm statistics.
        values: one number per objective; top1_percent is that of the images so far, all others are final.
        spread: as of an evaluation, or None.
    """

    correct: np.ndarray
    images: np.ndarray
    of: int
    calibration: int
    values: tuple[float, ...]
    spread: tuple[float, ...] | None = None
