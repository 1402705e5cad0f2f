"""Looks at one network after the other, each in a process of its own; what is known already is not done again."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.zoo.exports import look_at_exports
from benchmarks.zoo.look import look
from subnet_search import ElasticSettings, make_elastic
from subnet_search.progress import progress
from subnet_search.record.atomic import write_whole

GIB = 2**30
POLL_S = 0.05
CODE = Path(__file__).parents[2] / "subnet_search" / "elastic"
EXPORTING = CODE.parent / "exporting.py"

Look = Callable[[str], dict[str, Any]]  # name of a network -> what was found; `status` and `wrong` among it


@dataclass(frozen=True)
class Limits:
    """Of one network's process."""

    cpu_s: float = 600.0
    memory_gib: float = 14.0


@dataclass(frozen=True)
class Folder:
    """The results of a walk, one file a network."""

    path: Path

    def file(self, name: str) -> Path:
        """Where the result of a network lies."""
        source, _, entry = name.partition(":")
        return self.path / source / f"{entry}.json"

    def result(self, name: str) -> dict[str, Any] | None:
        """What is known of a network."""
        file = self.file(name)
        return json.loads(file.read_text("utf-8")) if file.exists() else None

    def write(self, name: str, found: Mapping[str, Any]) -> None:
        """Keeps what was found, whole or not at all."""
        file = self.file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, (json.dumps(found, indent=1) + "\n").encode())


def walk(
    names: Sequence[str],
    folder: Folder,
    limits: Limits,
    again: Callable[[Mapping[str, Any]], bool] = lambda known: False,
    looking: Look | None = None,
) -> None:
    """Looks at all networks of which nothing is known, or whose result is to be made again; `look` looks by default."""
    known = {name: found for name in names if (found := folder.result(name)) is not None}
    missing = [name for name in names if name not in known or again(known[name])]
    if not missing:
        return
    load_exporter()
    stamp = {"code": code_version(looking), "date": date.today().isoformat(), **versions()}
    bar: tqdm[Any] = progress(len(names), "zoo", "network", done=len(names) - len(missing))
    with bar:
        for name in missing:
            bar.set_postfix_str(name)
            found = {"name": name, **one(name, limits, looking), **stamp}
            folder.write(name, found)
            bar.update()
            told = [found["status"], *([found["reason"]] if "reason" in found else []), *found["wrong"]]
            bar.write(f"{name}: {'; '.join(told)}"[:300], file=sys.stderr)


def one(name: str, limits: Limits, looking: Look | None = None) -> dict[str, Any]:
    """Looks at a network in a forked process, whose end and greatest memory are watched."""
    read, write = os.pipe()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _run_child(name, limits, looking or look, write)
    os.close(write)
    too_large = False
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if _resident_gib(pid) > limits.memory_gib:
            too_large = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    if answer:
        found: dict[str, Any] = json.loads(answer)
        return found
    code = os.waitstatus_to_exitcode(ended[1])
    reason = f"its process ended with code {code}"
    if too_large:
        reason = f"needs more than {limits.memory_gib:g} GiB"
    elif code == -signal.SIGXCPU:
        reason = f"needs more than {limits.cpu_s:g} s of a core"
    return {"status": "stopped", "reason": reason, "wrong": []}


def _run_child(name: str, limits: Limits, looking: Look, write: int) -> None:
    """The forked process; never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (int(limits.cpu_s), int(limits.cpu_s) + 1))
        _go_first_when_memory_is_short()
        warnings.simplefilter("ignore")
        try:
            found = looking(name)
        except Exception as error:  # anything can come, and each is a finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            found = {"status": "failed", "reason": f"{type(error).__name__} at {place}: {error}", "wrong": []}
        found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        with os.fdopen(write, "wb") as pipe:
            pipe.write(json.dumps(found).encode())
    finally:
        os._exit(0)


def _resident_gib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):  # it ends, or this is no Linux
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / GIB


def _go_first_when_memory_is_short() -> None:
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    except OSError:  # no Linux
        return


def load_exporter() -> None:
    """Imports what torch.export imports when it is first used, so that it is no part of a network's time."""
    torch.set_num_threads(1)
    tiny = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))
    make_elastic(tiny, torch.zeros(1, 3, 8, 8), ElasticSettings(form="graph"))


def code_version(looking: Look | None = None) -> str:
    """Eight digits that change when conversion does, and where exports are looked at, when they do."""
    files = [*sorted(CODE.rglob("*.py")), *([EXPORTING] if looking is look_at_exports else [])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def versions() -> dict[str, str]:
    """Of the packages that the results depend on."""
    return {package: version(package) for package in ("torch", "torchvision", "timm")}
