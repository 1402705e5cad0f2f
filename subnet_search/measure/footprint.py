"""What a net takes besides time: the memory of a process that runs it, and energy where the machine counts it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
POWERCAP = Path("/sys/class/powercap")
NO_MEMORY = "this system does not tell the peak of a process's memory (Linux does)"
CALLS_WATCHED = 3


def resident_bytes() -> int | None:
    """The memory that this process holds now; None where the system does not tell."""
    return _status("VmRSS")


def peak_bytes_during(run: Callable[[], object]) -> int | None:
    """The most memory that this process held at any moment while something ran; None where nobody tells."""
    try:
        CLEAR.write_text("5", encoding="ascii")  # the kernel's peak begins anew
    except OSError:
        return None
    for _ in range(CALLS_WATCHED):
        run()
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        lines = STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def energy_counters() -> tuple[list[Path], str]:
    """The readable energy counters of whole processors (RAPL), or none and the reason."""
    if not POWERCAP.is_dir():
        return [], f"this machine shows no energy counters ({POWERCAP} is not there)"
    packages = sorted(POWERCAP.glob("intel-rapl:[0-9]*/energy_uj"))
    packages = [path for path in packages if path.parent.name.count(":") == 1]
    readable = [path for path in packages if _number(path) is not None]
    if not packages:
        return [], f"this machine shows no energy counters (nothing of intel-rapl in {POWERCAP})"
    if len(readable) < len(packages):
        return [], f"the energy counters may not be read ({packages[0]}); root can make them readable"
    return readable, ""


def energy_mj(call: Callable[[], object], counters: list[Path], *, seconds: float = 2.0) -> float:
    """Millijoules of one call: what all processors took while it ran again and again, other programs included."""
    before = [_number(path) or 0 for path in counters]
    start_s, calls = time.perf_counter(), 0
    while time.perf_counter() - start_s < seconds:
        call()
        calls += 1
    taken_uj = 0
    for path, old in zip(counters, before, strict=True):
        range_uj = _number(path.with_name("max_energy_range_uj")) or 0
        new = _number(path) or 0
        taken_uj += new - old if new >= old else new - old + range_uj  # the counter went around
    return taken_uj / calls / 1e3


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
