"""The space of a network in branches: one knob, how many of them run."""

from __future__ import annotations

from ..errors import InvalidInput
from ..knob import Knob, whole_number
from ..space import SearchSpace

BRANCH_KNOB = "branches"
MOST_BRANCHES = 1024


def branch_space(branches: int) -> SearchSpace:
    """The sub-nets of the first 1, 2, ... branches; `InvalidInput` for fewer than two, or more than there can be."""
    if whole_number(branches, "the number of branches") < 2:
        raise InvalidInput(f"a network in branches needs at least 2, got {branches}")
    if branches > MOST_BRANCHES:
        raise InvalidInput(f"a network has at most {MOST_BRANCHES} branches, got {branches}")
    return SearchSpace((Knob(BRANCH_KNOB, tuple(range(1, branches + 1)), "branch"),))
