"""The whole quickstart as a user starts it: wall time and peak memory of the process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.figure import Figure

ROUNDS = 3
MAXRSS_UNITS_PER_GIB = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere


def measure() -> list[Figure]:
    walls, processor, peaks = zip(*[_run(seed) for seed in range(ROUNDS)], strict=True)
    busy_s = float(np.median(processor))
    return [
        Figure("quickstart, wall time", "s", walls, "<=", 120.0, "its own processor time", busy_s),
        Figure("quickstart, peak memory", "GiB", peaks, "<=", 2.0, "the aim", 2.0),
    ]


def _run(seed: int) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and GiB of one quickstart."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "subnet_search", "quickstart", "--out", folder, "--seed", str(seed)]
        start_s = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)  # of this child and its own children only
        seconds = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-1000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / MAXRSS_UNITS_PER_GIB
