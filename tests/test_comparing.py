"""A verdict from rounds on a machine made of arithmetic; what can be compared; the command line."""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces import InvalidInput
from subnet_search import comparing
from subnet_search.cli import run_command
from subnet_search.comparing import Side, compare, in_words, judge
from subnet_search.measure import footprint
from subnet_search.measure.timing import CallTurn, Protocol, Rounds, rounds_beside
from subnet_search.settings import DeviceSettings
from subnet_search.subjects import Subject, _tried, load_subject
from tests.measure.machine import Machine, swings
from tests.small import EXAMPLE, small_net

SIDE = Side("net", 1.0, 100, None, None, ())


def rounds(ratio: float, seed: int, *, places: float = 0.0, noise: float = 0.03) -> list[Rounds]:
    """Six times that both are made ready, where luck in memory moves the ratio by `places`."""
    rng, parts = np.random.default_rng(seed), []
    for part in range(6):
        machine = Machine(100 * seed + part, noise=noise, drift=swings)
        moved = ratio * float(np.exp(places * rng.standard_normal()))
        protocol = Protocol(least_rounds=12, most_rounds=40, most_seconds=100.0, resamples=200)
        turns = (CallTurn(machine.call(ms), protocol, machine.clock_s) for ms in (4.0 * moved, 4.0))
        parts.append(rounds_beside(*turns, rng, protocol, machine.clock_s))
    return parts


@pytest.mark.parametrize("places", [0.0, 0.02])
def test_equal_nets_are_seldom_told_apart(places: float) -> None:
    rng = np.random.default_rng(0)
    found = [judge(rounds(1.0, s, places=places), SIDE, SIDE, {}, rng).verdict for s in range(20)]
    assert found.count("cannot tell") >= 18


@pytest.mark.parametrize(("ratio", "verdict"), [(0.9, "faster"), (1.1, "slower")])
def test_a_difference_above_the_noise_is_found(ratio: float, verdict: str) -> None:
    found = judge(rounds(ratio, 0, places=0.01), SIDE, SIDE, {}, np.random.default_rng(0))
    assert found.verdict == verdict
    assert found.low <= ratio <= found.high
    assert 0.005 < found.smallest_difference < 0.1
    assert f"A is {verdict} than B" in in_words(found)


def test_what_is_nothing_that_can_be_compared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no exported sub-net .* compare needs two of these"):
        load_subject(tmp_path, DeviceSettings())
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(
        InvalidInput, match=r'"torch" does not read net.onnx; onnxruntime, openvino, command can'
    ):
        compare(tmp_path / "net.onnx", tmp_path / "net.onnx")


def test_the_command_line_refuses_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["compare", str(tmp_path), str(tmp_path)],
        ["compare", "a", "b", "--runtime", "tflite"],
        ["compare", "a", "b", "--input", "3,224"],
        ["profile", str(tmp_path)],
    ):
        assert run_command(arguments) == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 3", "exit code 3: it said nothing"),
        ("echo 3.2 us", 'in another unit than "ms"; let it print ms'),
        ("true", "printed no line of numbers but 'nothing'"),
        ("echo 0", "must be a positive number"),
    ],
)
def test_a_command_that_gives_no_time_is_refused_with_both_names(
    script: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for file in files:
        file.touch()
    arguments = ["compare", *map(str, files), "--command", f"sh -c '{script}' {{file}}"]
    assert run_command(arguments) == 2
    said = capsys.readouterr().err
    assert "a.onnx beside b.onnx cannot be timed: the command" in said
    assert told in said


def test_an_input_that_a_net_does_not_take_is_refused(tmp_path: Path) -> None:
    subject = Subject("a net", tmp_path, small_net().eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InvalidInput, match=r"a net does not take an input of 3x8x8: .*; leave --input out"):
        _tried(subject)
    fitting = replace(subject, example=EXAMPLE[:1])
    assert _tried(fitting) is fitting


def test_energy_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(footprint, "POWERCAP", tmp_path / "none")
    assert footprint.energy_counters() == (
        [],
        f"this machine shows no energy counters ({tmp_path}/none is not there)",
    )


def test_energy_is_what_the_counters_say_even_around_their_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (tmp_path / "intel-rapl:0:0").mkdir()
    for folder in (package, tmp_path / "intel-rapl:0:0"):
        (folder / "energy_uj").write_text("900\n")
        (folder / "max_energy_range_uj").write_text("1000\n")
    monkeypatch.setattr(footprint, "POWERCAP", tmp_path)
    counters, reason = footprint.energy_counters()
    assert (counters, reason) == ([package / "energy_uj"], "")
    ticks = iter([0.0, 0.1, 0.2, 0.3, 5.0])
    monkeypatch.setattr(footprint.time, "perf_counter", ticks.__next__)
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        (package / "energy_uj").write_text(str((900 + 60 * len(calls)) % 1000))

    assert footprint.energy_mj(call, counters, seconds=1.0) == pytest.approx(0.06)


@pytest.mark.skipif(not footprint.CLEAR.exists(), reason="Linux tells the peak of a process's memory")
def test_the_peak_is_that_of_what_ran_and_not_of_what_was_before() -> None:
    def take(megabytes: int) -> None:
        with mmap.mmap(-1, megabytes * 1_000_000) as pages:  # that no allocator has in store
            for _ in range(megabytes):
                pages.write(bytes(1_000_000))

    take(120)
    before = footprint.resident_bytes() or 0
    peak = footprint.peak_bytes_during(lambda: take(20))
    assert peak is not None
    assert 15e6 < peak - before < 60e6


@pytest.mark.slow
def test_two_subnets_of_a_run_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(tmp_path, "tiny.toml")
    recipe.write_text(
        '[model]\nname = "subnet_search.small_models:digits_cnn"\nepochs = 1\n[train]\nepochs = 1\n'
        '[rank]\nranker = "l1"\ncurve = false\n[device]\nthreads = 1\nname = "cpu"\n'
        '[search]\nevaluations = 12\nchoose = 2\nsearcher = "random"\n[finetune]\nepochs = 1\n'
    )
    assert run_command(["run", str(recipe), "--out", str(tmp_path)]) == 0
    run = tmp_path / "tiny"
    one, two = sorted((run / "subnets").iterdir())
    capsys.readouterr()
    quick = Protocol(least_rounds=12, most_rounds=24, most_seconds=0.5)
    found = compare(one, two, DeviceSettings(name="cpu", threads=1), protocol=quick)
    sizes = [path.joinpath("net.safetensors").stat().st_size for path in (one, two)]
    assert [found.first.file_bytes, found.second.file_bytes] == sizes
    assert found.first.peak_bytes is None or found.first.peak_bytes > 0
    assert run_command(["profile", str(run), "--nets", "3", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert len(first["subnets"]) == 3
    assert run_command(["profile", str(run), "--nets", "3", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == first  # all of it was on record
    assert comparing._target_of(one).threads == 1
