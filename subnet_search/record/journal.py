"""The append-only record of a search: what was asked, what came of it."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces import InvalidInput, SubnetConfig

from .atomic import telling_what_failed
from .images import Images

Line = dict[str, Any]
_CRC = re.compile(rb',"crc":"([0-9a-f]{8})"\}$')


class Journal:
    """Numbered `ask`, `result` and `failed` lines, each flushed to the disk before anything goes on.

    A line holds `n, kind, key, config, context, values {objective: number}, spread, source, searcher, search,
    turn, seconds, reason` and a CRC-32 of all that; where images are counted, also `images` (`Images.to_json`).
    `search` names one call of `search`, `turn` counts that call's questions to this searcher. A torn last line (no
    newline: the process died while writing) is cut off when the file is opened for writing; damage anywhere else is
    refused with its line.

    Args:
        path: the file, made when missing; None keeps the lines in memory.
        write: False only reads: nothing is made or repaired.

    Raises:
        InvalidInput: for a line that does not have its checksum or answers nothing that was asked.
    """

    def __init__(self, path: Path | None = None, *, write: bool = True) -> None:
        self._path = path
        self._write = write
        self._lines: list[Line] = []
        self._open: dict[int, Line] = {}
        self._next_n = 0
        if path is not None:
            self._load(path)

    def lines(self) -> list[Line]:
        """Every line in order, without its checksum."""
        return [dict(line) for line in self._lines]

    @property
    def next_n(self) -> int:
        """The number the next ask takes."""
        return self._next_n

    def pending(self) -> list[Line]:
        """The asks that have no answer yet, in order."""
        return [dict(line) for line in self._open.values()]

    @property
    def is_kept(self) -> bool:
        """Whether it is written to a file."""
        return self._path is not None

    def known(self, context: str) -> dict[str, Line]:
        """The answers under `context` by key, without those of `stopped`.

        A result outranks a failure, the first of equals stands.
        """
        found: dict[str, Line] = {}
        for line in self._lines:
            if line["kind"] != "ask" and line["context"] == context and not _rival(line):
                before = found.get(line["key"])
                if before is None or (before["kind"], line["kind"]) == ("failed", "result"):
                    found[line["key"]] = dict(line)
        return found

    def stopped(self, context: str) -> dict[tuple[str, str], Line]:
        """The results under `context` that were stopped, by their own key and that of the rival that beat them.

        They hold where that rival is known.
        """
        found: dict[tuple[str, str], Line] = {}
        for line in self._lines:
            if line["context"] == context and (rival := _rival(line)):
                found.setdefault((line["key"], rival), dict(line))
        return found

    def ask(
        self,
        n: int,
        config: SubnetConfig,
        context: str,
        searcher: str,
        *,
        search: str = "",
        turn: int | None = None,
    ) -> None:
        """Notes that `config` is about to be evaluated as number `n`, which must be new (see `next_n`)."""
        if n < self._next_n:
            raise InvalidInput(f"the number of an ask must be new, at least {self._next_n}, got {n}")
        empty = {"values": None, "spread": None, "source": None}
        about = {"searcher": searcher, "search": search, "turn": turn, "seconds": None, "reason": ""}
        what = {"n": n, "kind": "ask", "key": config.key, "config": dict(config), "context": context}
        self._append({**what, **empty, **about})

    def result(
        self,
        n: int,
        values: Mapping[str, float],
        *,
        spread: Mapping[str, float] | None = None,
        source: str = "measured",
        seconds: float = 0.0,
        reason: str = "",
        images: Images | None = None,
    ) -> None:
        """Answers ask `n` with values by objective name; `reason` says why it was stopped, if it was."""
        answer = {"values": dict(values), "spread": dict(spread) if spread else None, "source": source}
        about = {"reason": reason, "seconds": seconds, **({"images": images.to_json()} if images else {})}
        self._append({**self._asked(n), "kind": "result", **answer, **about})

    def failed(self, n: int, reason: str, *, seconds: float = 0.0) -> None:
        """Answers ask `n` with why there are no values."""
        self._append({**self._asked(n), "kind": "failed", "reason": reason, "seconds": seconds})

    def _asked(self, n: int) -> Line:
        if n not in self._open:
            raise InvalidInput(f"an answer needs a pending ask, got {n}; pending are {sorted(self._open)}")
        return self._open[n]

    def _append(self, line: Line) -> None:
        if not self._write:
            raise InvalidInput(f"the journal {self._path} was opened for reading only")
        data = sealed(line)
        if self._path is not None:
            with telling_what_failed(self._path):
                _append_flushed(self._path, data)
        self._take(json.loads(data))

    def _take(self, line: Line) -> None:
        line.pop("crc")
        if line["kind"] == "ask":
            self._open[line["n"]] = line
        else:
            del self._open[line["n"]]
        self._next_n = max(self._next_n, line["n"] + 1)
        self._lines.append(line)

    def _load(self, path: Path) -> None:
        data = path.read_bytes() if path.exists() else b""
        *whole, tail = data.split(b"\n")
        for number, text in enumerate(whole, start=1):
            line = unsealed(text)
            if line is None or (line["kind"] != "ask" and line["n"] not in self._open):
                raise InvalidInput(
                    f"corrupt: line {number} of {path} is damaged: {text[:60]!r}. Restore the file from "
                    "a copy, or delete that line and those of the same n; they will be evaluated again"
                )
            self._take(line)
        if tail and self._write:
            with telling_what_failed(path):
                os.truncate(path, len(data) - len(tail))


def _rival(line: Line) -> str:
    return str((line.get("images") or {}).get("rival", ""))


def sealed(line: Line) -> bytes:
    """The line as JSON with the checksum of that at its end; what JSON does not know becomes text."""
    body = json.dumps(line, separators=(",", ":"), allow_nan=False, default=str).encode()
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def unsealed(text: bytes) -> Line | None:
    """What `sealed` made a line of, its `crc` included; None if that is not the checksum of the rest."""
    match = _CRC.search(text)
    if match is None or zlib.crc32(text[: match.start()] + b"}") != int(match[1], 16):
        return None
    line: Line = json.loads(text)
    return line


def _append_flushed(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:  # a buffer would try once more to write what did not fit
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, size)  # a full disk leaves no half line behind
            raise
