"""The root of all errors this project raises on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SubnetSearchError(Exception):
    """Something failed while working; the message says the rule, what came and the way out."""


class InvalidInput(SubnetSearchError, ValueError):
    """What was given cannot be used, and the one who gave it can mend it."""


def in_words(error: BaseException) -> str:
    """The kind of an error and what it says, whoever raised it."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # it cannot say it
        return type(error).__name__


def nearest_names(name: object, known: Iterable[str]) -> str:
    """The end of an error message: `"; did you mean 'a' or 'b'?"`, or nothing when no known name is near."""
    written = {entry.lower(): entry for entry in known}
    near = difflib.get_close_matches(str(name).lower(), list(written), n=3, cutoff=0.5)
    close = [written[entry] for entry in near]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
