"""When so many evaluations have failed in a row that something is broken."""

from __future__ import annotations

import math

IN_A_ROW = 10  # at least
CHANCE = 1e-6  # that so many fail in a row by chance, as often as they have failed before; small, as alike ones fail


class Failures:
    """Counts failures, in all and in a row.

    Where many sub-nets fail one by one, as where some are too narrow, a long row of failures is no wonder; where none
    has failed before, ten in a row mean that something else is broken, such as a full disk.

    Attributes:
        in_a_row: the last ones, by config key.
    """

    def __init__(self) -> None:
        self._ok = self._failed = 0  # before this row
        self.in_a_row: list[str] = []

    def add(self, key: str, *, ok: bool) -> None:
        """Counts one evaluation."""
        if ok:
            self.end_row()
            self._ok += 1
        else:
            self.in_a_row.append(key)

    def end_row(self, *, broken: bool = False) -> None:
        """Begins a new row; failures of what was broken tell nothing about sub-nets."""
        self._failed += 0 if broken else len(self.in_a_row)
        self.in_a_row = []

    @property
    def too_many(self) -> bool:
        """Whether the row is too long to be chance."""
        if not self._ok:
            return len(self.in_a_row) >= IN_A_ROW
        share = (self._failed + 1) / (self._failed + self._ok + 2)
        return len(self.in_a_row) >= max(IN_A_ROW, math.log(CHANCE) / math.log(share))
