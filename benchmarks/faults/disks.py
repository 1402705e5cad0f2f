"""Disks that are full or read-only."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.faults.child import Act, command
from benchmarks.faults.disk import PAGE
from benchmarks.faults.road import COMMANDS, Road, Row, same_page

LEFT = (0, PAGE, 3 * PAGE)  # bytes of room when a write begins: none, or enough for a part of many files
REPEATED = {"checksums.json": 4, "evaluations.jsonl": 4, "events.jsonl": 2}  # tries of what is written often


def full_disk(road: Road) -> list[Row]:
    """Just before a file is opened for writing the disk fills up and stays full; then there is room again."""
    rows: dict[str, Row] = {}
    out = road.disk.folder / "full"
    for name in (*COMMANDS, "report"):
        for number, at in enumerate(road.picked(_writes(road, name), 100)):
            moment = road.unbroken[name].moments[at]
            what = f"{moment.name}, {LEFT[number % len(LEFT)]} bytes left"
            stage = road.stage_of(name, at)
            row = rows.setdefault(stage, Row(f"full disk ({road.disk.words})", stage))
            folder, arguments = road.before(name, out), road.arguments(name, out)
            refused = command(arguments, folder, at=at, act=_filling(road, LEFT[number % len(LEFT)]))
            road.disk.free()
            ended = command(arguments, folder)
            row.add(refused, ended, wanted={0, 1}, what=what)
            if refused.code:
                helpful = "cannot write" in refused.told and "make room" in refused.told
                row.check(helpful, what, f"the message is {refused.message!r}")
            page = [] if name != "report" or same_page(folder, road.after(name)) else ["report.html"]
            row.compare(road.differences(folder, name) + page, what)
            row.lost = "what was not written"
    return list(rows.values())


def _filling(road: Road, left: int) -> Act:
    """Leaves that many bytes at first, then none."""
    return lambda since: road.disk.fill(left if since == 0 else 0)


def _writes(road: Road, name: str) -> list[int]:
    """The first opening of each file, and some later ones of those that are written often."""
    seen: dict[str, list[int]] = {}
    for number, moment in enumerate(road.unbroken[name].moments):
        if moment.what in ("open", "mkdir"):
            seen.setdefault(moment.name, []).append(number)
    return sorted(at for file, ats in seen.items() for at in road.picked(ats, REPEATED.get(file, 1)))


def full_disk_for_temporary_files(road: Road) -> list[Row]:
    """Exporters write elsewhere first; that place is full while the run's own disk is not."""
    row, out = Row(f"full disk ({road.disk.words})", "temporary files of export"), road.scratch / "plain"
    folder, arguments = road.before("export", out), road.arguments("export", out)
    place = road.disk.folder / "temporary"
    place.mkdir(exist_ok=True)

    def use() -> None:
        tempfile.tempdir = str(place)

    if not road.disk.real:
        return []
    road.disk.fill(PAGE)
    refused = command(arguments, folder, prepare=use)
    road.disk.free()
    row.add(refused, command(arguments, folder), wanted={1}, what="export")
    row.check("make room" in refused.told, "export", f"the message is {refused.message!r}")
    row.compare(road.differences(folder, "export"), "export")
    row.lost = "what was not written"
    return [row]


def read_only(road: Road) -> list[Row]:
    """Every command on a run that cannot be written, and a new run where none can be made."""
    row, out = Row(f"read-only folder ({road.disk.words})", "every command"), road.disk.folder / "fixed"
    for name in (*COMMANDS, "report", "resume", "run"):
        folder = road.before("report" if name == "resume" else name if name != "run" else COMMANDS[0], out)
        arguments = (
            road.arguments(name, out) if name != "run" else ["run", str(road.recipe), "--out", str(out)]
        )
        before = _content(folder)
        with road.disk.read_only():
            refused = command(arguments, folder, at=0, act=lambda since: road.disk.refuse())
        row.check(_content(folder) == before, name, "something was changed")
        ended = command(arguments, folder)
        row.add(refused, ended, wanted={1}, what=name)
        helpful = "cannot write" in refused.told and "write permission" in refused.told
        row.check(helpful, name, f"the message is {refused.message!r}")
        row.compare(road.differences(folder, "report" if name in ("resume", "run") else name), name)
    row.lost = "nothing"
    shutil.rmtree(out)
    return [row]


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
