"""The unbroken run that every try is compared with, and copies of it at the beginning of each command."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.faults.child import Ended, command, import_as
from benchmarks.faults.compare import differences
from benchmarks.faults.disk import Disk
from subnet_search.record import open_run

T = TypeVar("T")

RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 4 }
epochs = 2
[device]
threads = 1
[elastic]
step = 2
[train]
epochs = 2
[rank]
images = 64
steps = 20
val_images = 64
[evaluate]
calibration_images = 128
timeout_seconds = 4.0
[evaluate.metrics.confidence]
function = "benchmarks.faults.evaluators:confidence"
goal = "max"
[search]
objectives = ["top1_percent", "macs", "confidence"]
evaluations = 14
limits = { macs = "90%" }
choose = 2
[finetune]
epochs = 2
"""
NAME = "small"
COMMANDS = ("rank", "train", "search", "finetune", "export")


@dataclass
class Row:
    """What came of one fault at one place.

    Attributes:
        fault, where: what was done, and in what.
        tries: how often, each at another moment or place.
        codes: how many tries ended with which exit codes.
        lost: what had to be done again, at most.
        resumed, unequal: how many tries were gone on with, and how many of those came to something else than the
            unbroken run.
        told: the message of one try.
        harm: what should not have happened, "try: problem"; empty when all is well.
    """

    fault: str
    where: str
    tries: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    lost: str = ""
    resumed: int = 0
    unequal: int = 0
    told: str = ""
    harm: list[str] = field(default_factory=list)

    def add(self, *ended: Ended, wanted: Iterable[int], what: str) -> None:
        """Counts one try; the first command must end with a code of `wanted`, all later ones with 0."""
        self.tries += 1
        self.codes[", then ".join(str(end.code) for end in ended)] += 1
        first, *later = ended
        if first.code not in wanted or any(end.code for end in later):
            self.harm.append(f"{what}: exit codes {[end.code for end in ended]}: {first.message[-300:]}")
        if any("Traceback" in end.told for end in ended):
            self.harm.append(f"{what}: a traceback")
        self.told = self.told or first.message

    def compare(self, different: list[str], what: str) -> None:
        """Counts a try that was resumed, and in which files it differs from the unbroken run."""
        self.resumed += 1
        self.unequal += bool(different)
        if different:
            self.harm.append(f"{what}: differs from the unbroken run in {', '.join(different)}")

    def check(self, sound: bool, what: str, problem: str) -> None:
        """Notes a problem of a try unless what was looked at is sound."""
        if not sound:
            self.harm.append(f"{what}: {problem}")

    def as_json(self) -> dict[str, Any]:
        """For the results."""
        harmed = {harm.partition(":")[0] for harm in self.harm}
        return {**vars(self), "codes": dict(self.codes), "harmed": min(len(harmed), self.tries)}


class Road:
    """A tiny run on digits, made command by command, its folder kept after each.

    Args:
        scratch: an empty folder for everything.
        share: of the tries that are made; 1 makes all of them.
    """

    def __init__(self, scratch: Path, share: float = 1.0) -> None:
        self.scratch, self.share = scratch, share
        self.disk = Disk(scratch / "disk")
        self.recipe = scratch / f"{NAME}.toml"
        self.recipe.write_text(RECIPE, "utf-8")
        self.unbroken: dict[str, Ended] = {}
        out = scratch / "unbroken"
        for name in (*COMMANDS, "report"):
            self.unbroken[name] = ended = command(self.arguments(name, out), out / NAME)
            if ended.code:
                raise RuntimeError(f"the unbroken run failed in {name}: {ended.told}")
            shutil.copytree(out / NAME, self.after(name))
            import_as(ended)

    def close(self) -> None:
        """Gives the disk back."""
        self.disk.close()

    def arguments(self, name: str, out: Path) -> list[str]:
        """The command line of one command on the run in `out`."""
        return [name, str(self.recipe), "--out", str(out)] if name == COMMANDS[0] else [name, str(out / NAME)]

    def after(self, name: str) -> Path:
        """The unbroken run's folder as it was after that command."""
        return self.scratch / "after" / name

    def before(self, name: str, out: Path) -> Path:
        """Puts the run as it was before that command into `out`, which is emptied."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        names = (*COMMANDS, "report")
        if name != names[0]:
            shutil.copytree(self.after(names[names.index(name) - 1]), out / NAME)
        return out / NAME

    def stage_of(self, name: str, number: int) -> str:
        """The stage in which moment `number` of a command falls."""
        if name == "report":
            return name
        time_s, first = self.unbroken[name].moments[number].time_s, self.stages(name)[0]
        begun = [
            event["stage"]
            for event in open_run(self.after(name), write=False).events()
            if event["kind"] == "begin" and event["time"] <= time_s
        ]
        return begun[-1] if begun and begun[-1] in self.stages(name) else first

    def stages(self, name: str) -> tuple[str, ...]:
        """The stages of a command."""
        return {"rank": ("prepare", "teacher", "rank"), "export": ("test", "export")}.get(name, (name,))

    def picked(self, items: Sequence[T], most: int) -> Sequence[T]:
        """At most so many of the items (fewer in a reduced run), spread evenly, the ends included."""
        most = max(2, round(most * self.share))
        if len(items) <= most:
            return items
        return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]

    def differences(self, folder: Path, name: str) -> list[str]:
        """In what a run differs from the unbroken one after that command."""
        return differences(folder, self.after(name))


def same_page(folder: Path, other: Path) -> bool:
    """Whether two run folders have the same report; the report of one run is the same each time."""
    pages = [place / "report.html" for place in (folder, other)]
    return all(page.is_file() for page in pages) and pages[0].read_bytes() == pages[1].read_bytes()
