"""A command as the runtime: what it prints is what counts."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.measure import LatencyMeter, SubnetLatency
from subnet_search.measure.runtimes.command import CommandTurn, filled_in, times_ms
from subnet_search.settings import DeviceSettings
from tests.small import EXAMPLE, small_supernet

PYTHON = shlex.quote(sys.executable)


def board(code: str, **more: object) -> DeviceSettings:
    """A profile whose command is a line of Python, with the file and the runs as its arguments."""
    command = f"{PYTHON} -c {shlex.quote('import sys; ' + code)} {{file}} {{runs}}"
    return DeviceSettings(runtime="command", command=command, **{"timeout_s": 20.0, **more})


def turn(code: str, **more: object) -> CommandTurn:
    return CommandTurn(Path("net.onnx"), board(code, **more))


def test_a_turn_is_one_use_of_the_command_and_it_is_told_file_and_runs() -> None:
    found = turn("print(int(sys.argv[2]) if sys.argv[1] == 'net.onnx' else -1)")
    assert found.once_ms == 1
    assert found(7) == 7


@pytest.mark.parametrize(
    ("text", "unit", "milliseconds"),
    [
        ("4.5", "ms", [4.5]),
        ("4.5 ms\n", "ms", [4.5]),
        ("4.5, 4.6; 4.7", "ms", [4.5, 4.6, 4.7]),
        ("[1e1 20.]", "ms", [10.0, 20.0]),
        ("loading took 3 s\n4.5 msec\ndone 2 of 2", "ms", [4.5]),
        ("1500", "us", [1.5]),
        ("1500 µs", "us", [1.5]),
        ("0.25 seconds", "s", [250.0]),
    ],
)
def test_lines_of_numbers_are_times(text: str, unit: str, milliseconds: list[float]) -> None:
    assert times_ms(text, unit) == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "printed no line of numbers but 'nothing'"),
        ("average: 4.5 ms", "printed no line of numbers but 'average: 4.5 ms'"),
        ("4500 us", 'in another unit than "ms"; let it print ms, or set .device. command_unit'),
        ("4.5 ms 0.1 fps", "in another unit"),
        ("nan", "must be a positive number"),
        ("inf ms", "must be a positive number"),
        ("-3", "must be a positive number"),
        ("0.0", "must be a positive number"),
    ],
)
def test_output_without_times_is_refused(text: str, told: str) -> None:
    with pytest.raises(SubnetSearchError, match=told):
        times_ms(text, "ms")


def test_a_command_that_fails_tells_its_last_lines() -> None:
    with pytest.raises(SubnetSearchError, match=r"exit code 3: two \| three \| no such device"):
        turn("print(*('one', 'two', 'three', 'no such device'), sep=chr(10), file=sys.stderr); sys.exit(3)")


def test_a_command_that_hangs_is_stopped_with_what_it_started() -> None:
    start_s = time.perf_counter()
    with pytest.raises(SubnetSearchError, match=r"stopped after 0\.5 s \(\[device\] timeout_s\)"):
        turn("import subprocess; subprocess.run(['sleep', '30'])", timeout_s=0.5)
    assert time.perf_counter() - start_s < 15


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("no-such-program {file}", "'no-such-program' is not there or not executable"),
        ("sh {flie} {file}", r"a place \{flie\}; did you mean 'file'"),
        ("sh '{file}", "cannot be split into words"),
    ],
)
def test_commands_that_cannot_run_are_refused(command: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        filled_in(command, {"file": "net.onnx", "runs": 1})


def test_a_path_with_spaces_is_one_word() -> None:
    assert filled_in("sh {file} --n={runs}", {"file": "/a b/net.onnx", "runs": 3}) == [
        "sh",
        "/a b/net.onnx",
        "--n=3",
    ]


@pytest.mark.slow
def test_subnets_are_timed_by_a_command_that_reads_their_file() -> None:
    supernet = small_supernet()
    profile = board("import os; print(os.path.getsize(sys.argv[1]) / 1000)", command_format="pt2")
    latency = SubnetLatency(supernet, profile=profile)
    small, large = (
        latency.measured(config) for config in (supernet.space.smallest(), supernet.space.largest())
    )
    assert small.latency is not None
    assert large.latency is not None
    assert small.latency.median_ms == pytest.approx((small.file_bytes or 0) / 1000)
    assert large.latency.median_ms > small.latency.median_ms
    assert latency.profile["clock"] == "command"


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_a_command_that_fails_for_the_whole_network_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match="the whole network cannot be timed: the command failed with exit code 1"
    ):
        LatencyMeter(small_supernet().model, EXAMPLE, board("sys.exit(1)", command_format="pt2"))
