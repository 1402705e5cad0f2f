from __future__ import annotations

import contextlib
import os
import pty
import sys
import termios

import pytest

from subnet_search import progress as module
from subnet_search.progress import progress


def test_a_log_gets_few_whole_lines(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(1000), "train", "step")) == list(range(1000))
    text = capfd.readouterr().err
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) == 2
    assert "1000/1000" in lines[-1]
    assert all(line.startswith("train: ") for line in lines)


def test_lines_come_at_most_once_per_interval(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with progress(100, "search") as bar:
        for _ in range(100):
            now += 1
            bar.set_postfix_str("front 3", refresh=False)
            bar.update()
    assert 9 <= len(capfd.readouterr().err.splitlines()) <= 12
    assert module.LINE_EVERY_S == 10


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_over_before_the_delay_shows_nothing(
    terminal: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    if terminal:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for seconds in (1, 30):
        with progress(10, "rank", delay_s=2.0) as bar:
            for _ in range(10):
                now += seconds / 10
                bar.update()
        assert ("10/10" in capfd.readouterr().err) == (seconds == 30)


def test_a_resumed_bar_starts_where_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    with progress(10, "search", done=9) as bar:
        bar.update()
    assert "10/10" in capfd.readouterr().err


@pytest.mark.parametrize("enabled", [True, False])
def test_it_can_be_silenced_by_argument_and_by_environment(
    enabled: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if enabled:
        monkeypatch.setenv("SUBNET_SEARCH_PROGRESS", "0")
    assert list(progress([1, 2], "x", enabled=enabled)) == [1, 2]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [(0, 0), (1, 80), (24, 80)])
def test_a_terminal_of_any_reported_size_shows_the_bar(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, size)
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(progress(range(3), "train", "step")) == [0, 1, 2]
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the terminal was closed
        while part := os.read(reader, 10_000):
            shown += part
    os.close(reader)
    assert b"3/3" in shown
