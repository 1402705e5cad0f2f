"""Any board: a command of the user's that is handed a file and prints times."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from search_spaces import InvalidInput, SubnetSearchError, nearest_names
from subnet_search.measure.runtimes.base import Arguments, Prepared, Runtime
from subnet_search.measure.runtimes.executorch_xnnpack import write_pte
from subnet_search.measure.runtimes.onnx_files import write_onnx
from subnet_search.measure.timing import Protocol
from subnet_search.settings import DeviceSettings

MILLISECONDS = {"s": 1e3, "ms": 1.0, "us": 1e-3}
SPELLINGS = {
    "sec": "s",
    "second": "s",
    "seconds": "s",
    "msec": "ms",
    "millisecond": "ms",
    "milliseconds": "ms",
}
SPELLINGS |= {"µs": "us", "μs": "us", "usec": "us", "microsecond": "us", "microseconds": "us"}
TIME = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan\b|inf\b)\s*([A-Za-zµμ]*)"
LINES_TOLD = 3  # of what a failing command says


def prepare(net: nn.Module, arguments: Arguments, profile: DeviceSettings, folder: Path) -> Prepared:
    """The net as a file; each turn runs the command once, and it runs the net as often as `{runs}` says."""
    path = folder / f"net.{profile.command_format}"
    WRITERS[profile.command_format](net, arguments, path)
    return open_file(path, profile)


def open_file(path: Path, profile: DeviceSettings) -> Prepared:
    """A file for the command, whatever is in it."""
    return Prepared(lambda protocol, clock_s: CommandTurn(path, profile), file=path)


class CommandTurn:
    """A turn is one use of the command: the number that it prints, or the median of several."""

    def __init__(self, path: Path, profile: DeviceSettings) -> None:
        self._path, self._profile = path, profile
        self.once_ms = self(1)

    def __call__(self, calls: int) -> float:
        """Milliseconds of one call.

        Raises:
            InvalidInput: the command does not exist, or has a place that nothing is for.
            SubnetSearchError: it fails, is silent for too long, or prints no times.
        """
        profile = self._profile
        words = filled_in(
            profile.command or "",
            {
                "file": self._path,
                "runs": calls,
                "threads": profile.threads or torch.get_num_threads(),
                "batch": profile.batch_size,
            },
        )
        return statistics.median(times_ms(_printed(words, profile.timeout_s), profile.command_unit))


def filled_in(template: str, values: dict[str, object]) -> list[str]:
    """The words of a command, its places filled in; no shell reads them.

    Raises:
        InvalidInput: quotes that do not close, an unknown place, or a program that is not there.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise InvalidInput(f"the command {template!r} cannot be split into words: {error}") from None
    for name in re.findall(r"{(\w*)}", template):
        if name not in values:
            raise InvalidInput(
                f"the command has a place {{{name}}}{nearest_names(name, values)}; "
                f"what can be filled in is {', '.join(f'{{{known}}}' for known in values)}"
            )
    for name, value in values.items():
        words = [word.replace(f"{{{name}}}", str(value)) for word in words]
    if not words or shutil.which(words[0]) is None:
        raise InvalidInput(
            f"the command's program {(words or [''])[0]!r} is not there or not executable; give its path, or "
            "write sh -c '...' for what a shell has to read"
        )
    return words


def times_ms(text: str, unit: str) -> list[float]:
    """The times that a command printed, in milliseconds.

    Lines that are nothing but numbers, with or without a unit, separated by spaces, commas or semicolons, are
    times; all other lines are ignored. Numbers without a unit are in `unit`.

    Raises:
        SubnetSearchError: no such line, another unit, or a time that is not positive and finite.
    """
    found: list[float] = []
    for line in text.splitlines():
        pairs = re.findall(TIME, line)
        if not pairs or re.sub(TIME, "", line).strip(" \t,;[]"):
            continue
        for number, written in pairs:
            printed = SPELLINGS.get(written.lower(), written.lower()) or unit
            if printed != unit:
                raise SubnetSearchError(
                    f'the command printed "{line.strip()[:80]}", in another unit than "{unit}"; let it print {unit}, '
                    'or set [device] command_unit to "s", "ms" or "us"'
                )
            value = float(number) * MILLISECONDS[unit]
            if not (math.isfinite(value) and value > 0):
                raise SubnetSearchError(
                    f'the command printed "{line.strip()[:80]}"; a time must be a positive number'
                )
            found.append(value)
    if not found:
        told = text.strip()[-200:] or "nothing"
        raise SubnetSearchError(
            f"the command printed no line of numbers but {told!r}; it must print the time of one call in {unit}, or "
            "several such times"
        )
    return found


def _printed(words: list[str], timeout_s: float) -> str:
    """What a command prints to its standard output."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it started can be stopped with it
    )
    try:
        out, said = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise SubnetSearchError(
            f"the command was stopped after {timeout_s:g} s ([device] timeout_s): {shlex.join(words)[:200]}"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        last = " | ".join((said.strip() or out.strip()).splitlines()[-LINES_TOLD:]) or "it said nothing"
        raise SubnetSearchError(f"the command failed with exit code {process.returncode}: {last[-500:]}")
    return out


def _write_pt2(net: nn.Module, arguments: Arguments, path: Path) -> None:
    program = torch.export.export(net, *arguments)
    program.example_inputs = None  # they would be a pickle
    torch.export.save(program, path)


WRITERS: dict[str, Callable[[nn.Module, Arguments, Path], None]] = {
    "onnx": write_onnx,
    "pt2": _write_pt2,
    "pte": write_pte,
}
COMMAND = Runtime(
    prepare,
    lambda: "command",
    dict.fromkeys((".onnx", ".pt2", ".pte", ".xml", ".tflite"), open_file),
    protocol=Protocol(least_rounds=6, most_rounds=24, most_seconds=30.0, turn_ms=50.0, warmup=1),
    own_clock=True,
)
