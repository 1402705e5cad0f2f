"""Signals and kills, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from subnet_search.data import Batch, Splits
from subnet_search.elastic.supernet import Supernet
from subnet_search.record import create_run, open_run
from subnet_search.settings import TrainSettings
from subnet_search.training import train
from subnet_search.training.interrupt import held_interrupts
from tests.small import small_splits, small_supernet

ROOT = Path(__file__).parent.parent.parent
SETTINGS = TrainSettings(epochs=16, lr=0.02, device="cpu", checkpoint_seconds=1e-9)
CHILD = """
import sys
from subnet_search.record import open_run
from subnet_search.training import train
from tests.small import small_splits, small_supernet
from tests.training.test_interrupt import SETTINGS
with open_run(sys.argv[1]) as run:
    train(small_supernet(), small_splits(), settings=SETTINGS, run=run)
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SUBNET_SEARCH_PROGRESS": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )


def wait_for_checkpoint(folder: Path) -> None:
    for _ in range(6000):
        if (folder / "checkpoint.json").exists():
            return
        time.sleep(0.01)
    raise AssertionError("no checkpoint within a minute")


@pytest.fixture(scope="module")
def unbroken() -> tuple[Supernet, tuple[float, ...]]:
    supernet = small_supernet()
    return supernet, train(supernet, small_splits(), settings=SETTINGS).losses


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_training_that_was_killed_goes_on_to_the_unbroken_result(
    number: signal.Signals, unbroken: tuple[Supernet, tuple[float, ...]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    create_run(folder, "").close()
    child = start(folder)
    wait_for_checkpoint(folder)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == -number, errors.decode()
    resumed, (whole, losses) = small_supernet(), unbroken
    with open_run(folder) as run:
        assert 0 < run.read_json("checkpoint.json")["step"] < 48
        assert train(resumed, small_splits(), settings=SETTINGS, run=run).losses == losses
    state, wanted = resumed.state_dict(), whole.state_dict()
    assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []


def interrupted(times: int, done: list[str]) -> None:
    """Works on while Ctrl-C is pressed so many times."""
    with held_interrupts() as interrupts:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
            assert interrupts.pending == signal.SIGINT
            done.append("step")


def test_a_held_signal_arrives_at_the_end_of_the_scope() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, done)
    assert done == ["step"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_goes_through_at_once() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, done)
    assert done == ["step"]


def test_handlers_of_the_program_come_back_and_are_called() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with held_interrupts() as interrupts:
            signal.raise_signal(signal.SIGTERM)
            assert seen == []
            interrupts.deliver()
            assert seen == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_the_program_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert interrupts.pending is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class SignallingBatches(list[Batch]):
    """Sends SIGTERM whenever a batch is drawn."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            signal.raise_signal(signal.SIGTERM)
            yield batch


def test_training_goes_on_when_the_handler_of_the_program_returns() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    splits = small_splits()
    splits = Splits(SignallingBatches(splits.train), splits.search_val, splits.test)
    try:
        result = train(small_supernet(), splits, settings=SETTINGS.model_copy(update={"epochs": 2}))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.epochs == 2
    assert signal.SIGTERM in seen


def test_another_thread_can_train_too() -> None:
    entered: list[bool] = []

    def work() -> None:
        with held_interrupts() as interrupts:
            interrupts.deliver()
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]
