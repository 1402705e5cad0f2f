"""Files of a finished run with a flipped byte, or cut short: what `resume` and `report` make of them."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.faults.child import Ended, command
from benchmarks.faults.road import NAME, Road, Row, same_page
from subnet_search.record.journal import unsealed
from subnet_search.record.run import CHECKSUMS, EVENTS, JOURNAL, SETTINGS

Damage = Callable[[bytes, np.random.Generator], bytes]


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    place, bit = int(rng.integers(len(content))), 1 << int(rng.integers(8))
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


DAMAGES: dict[str, Damage] = {"a flipped bit": _flip, "cut short": _cut}
SPENT = ("checkpoint.", "statistics/")  # what a finished run needs no more, and does not make again


def damaged_files(road: Road) -> list[Row]:
    """Each file of the finished run; then the way out that the message names."""
    rows = []
    finished, out = road.after("report"), road.disk.folder / "damaged"
    names = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    for fault, damage in DAMAGES.items():
        refused, mended = (
            Row(fault, "files that are refused"),
            Row(fault, "files that are made anew or not read"),
        )
        for name in road.picked(names, len(names)):
            rng = np.random.default_rng(zlib.crc32(f"{fault} {name}".encode()))
            _one(road, name, damage, rng, out, refused, mended)
        refused.lost = "that file"
        mended.lost = "nothing" if fault == "a flipped bit" else "nothing but the end of a record"
        rows += [row for row in (refused, mended) if row.tries]
    return rows


def _one(
    road: Road, name: str, damage: Damage, rng: np.random.Generator, out: Path, refused: Row, mended: Row
) -> None:
    content = (road.after("report") / name).read_bytes()
    bad = damage(content, rng) if content else b"\0"  # a lock is empty
    if bad == content:
        return
    file = road.before("report", out) / name
    folder = out / NAME
    _bring_report(road, folder)
    file.write_bytes(bad)
    reported = command(["report", str(folder)], folder)
    _judge_report(road, folder, name, reported, mended)
    shutil.rmtree(folder)
    road.before("report", out)
    _bring_report(road, folder)
    file.write_bytes(bad)
    ended = command(["resume", str(folder)], folder)
    if ended.code == 0:
        mended.add(ended, wanted={0}, what=name)
        mended.compare(_differences(road, folder), f"resume with {name}")
        return
    refused.check(str(file) in ended.told, name, f"not named by {ended.message!r}")
    again = _way_out(road, name, content, folder)
    refused.add(ended, again, wanted={2}, what=name)
    refused.compare(_differences(road, folder), f"the way out of {name}")


def _bring_report(road: Road, folder: Path) -> None:
    """The finished folder has its report too."""
    shutil.copytree(road.after("report"), folder, dirs_exist_ok=True)


def _judge_report(road: Road, folder: Path, name: str, reported: Ended, row: Row) -> None:
    """The report is refused with the file's name, says that it is damaged, or is what it was: that was not read.

    Records whose end is lost cannot tell; then it shows what is left of them.
    """
    what = f"report with {name}"
    if reported.code == 0 and "Traceback" not in reported.told:
        told = "Changed after being written, do not use" in (folder / "report.html").read_text("utf-8")
        same = same_page(folder, road.after("report")) or name in (EVENTS, JOURNAL)
        row.check(same or told, what, "silently another page")
        return
    row.check(reported.code == 2, what, f"exit code {reported.code}: {reported.message!r}")
    row.check(str(folder / name) in reported.told, what, f"not named by {reported.message!r}")


def _way_out(road: Road, name: str, content: bytes, folder: Path) -> Ended:
    """What the message says: the recipe again, the damaged lines away, a copy, or the file away."""
    file = folder / name
    if name == CHECKSUMS:
        file.write_bytes(content)
    elif name == JOURNAL:
        _without_damaged_lines(file)
    elif name != SETTINGS:
        file.unlink()
    return command(["run", str(road.recipe), "--out", str(folder.parent)], folder)


def _without_damaged_lines(journal: Path) -> None:
    """Deletes the lines that differ from their checksum, and those of the same n."""
    lines = journal.read_bytes().split(b"\n")[:-1]
    sound = [line for line in map(unsealed, lines) if line is not None]
    kinds = [line["kind"] for line in sound]
    whole = {line["n"] for line in sound if line["kind"] != "ask"} & {
        line["n"] for line, kind in zip(sound, kinds, strict=True) if kind == "ask"
    }
    kept = [line for line in lines if (found := unsealed(line)) is not None and found["n"] in whole]
    journal.write_bytes(b"".join(line + b"\n" for line in kept))


def _differences(road: Road, folder: Path) -> list[str]:
    return [name for name in road.differences(folder, "report") if not name.startswith(SPENT)]


def torn_journal(road: Road) -> list[Row]:
    """The journal's last line without its end, at every kind of place; the search goes on."""
    row, out = Row("torn last line", JOURNAL), road.disk.folder / "torn"
    content = (road.after("search") / JOURNAL).read_bytes()
    lines = content.splitlines(keepends=True)
    for number in road.picked(list(range(len(lines))), 7):
        for part in (1, len(lines[number]) // 2, len(lines[number]) - 1):
            folder = road.before("search", out)
            (folder / JOURNAL).write_bytes(b"".join(lines[:number]) + lines[number][:part])
            row.add(
                command(["search", str(folder)], folder),
                wanted={0},
                what=f"{part} bytes of line {number + 1}",
            )
            row.compare(road.differences(folder, "search"), f"{part} bytes of line {number + 1}")
    row.lost = "that line: at most 1 evaluation"
    return [row]
