"""A sub-net as data: an immutable map from knob name to integer."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping

from .errors import InvalidInput
from .knob import whole_number


class SubnetConfig(Mapping[str, int]):
    """An immutable, hashable map from knob name to value; equal by content, whatever the order.

    `dict(config)` is ready for JSON. Whether the values belong to a space is `SearchSpace.check`'s question.

    Raises:
        InvalidInput: when `values` is no mapping from text to whole numbers.
    """

    __slots__ = ("_hash", "_key", "_values")

    def __init__(self, values: Mapping[str, int]) -> None:
        if not isinstance(values, Mapping):
            raise InvalidInput(f"a config must be a mapping from knob name to whole number, got {values!r}")
        checked: dict[str, int] = {}
        for name, value in values.items():
            if not isinstance(name, str):
                raise InvalidInput(f"the names of knobs in a config must be texts, got {name!r}")
            checked[name] = whole_number(value, f"the value of knob {name!r}")
        self._values = checked
        self._hash: int | None = None
        self._key: str | None = None

    @property
    def key(self) -> str:
        """Short stable name for files and reports: first 12 hex digits of the SHA-256 of the sorted JSON."""
        if self._key is None:
            text = json.dumps(self._values, sort_keys=True, separators=(",", ":"))
            self._key = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._key

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._values.items()))
        return self._hash

    def __reduce__(self) -> tuple[type[SubnetConfig], tuple[dict[str, int]]]:
        return SubnetConfig, (dict(self._values),)

    def __repr__(self) -> str:
        shown = [f"{name!r}: {value}" for name, value in itertools.islice(self._values.items(), 4)]
        if len(self) > len(shown):
            shown.append(f"... {len(self)} knobs")
        return f"SubnetConfig({{{', '.join(shown)}}}, key={self.key})"
