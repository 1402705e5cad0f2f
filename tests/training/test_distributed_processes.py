"""Ranks in processes of their own, as torchrun starts them, over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from subnet_search.record import open_run

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "SUBNET_SEARCH_PROGRESS": "0"}
RECIPE = """
name = "two"
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 4 }
[elastic]
step = 2
[train]
epochs = 6
checkpoint_seconds = 1e-9
[rank]
ranker = "l1"
curve = false
[data]
batch_size = 64
[device]
name = "cpu"
"""


def start(mode: str, folder: Path, size: int = 2) -> list[subprocess.Popen[str]]:
    """The ranks without torchrun's agent, which would end the others when one dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.rank_script", mode, str(folder / f"of-{rank}")],
            cwd=ROOT,
            env={**ENVIRONMENT, **told, "RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
        if (folder / f"of-{rank}").mkdir() is None
    ]


def ended(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]


def test_two_ranks_end_after_the_same_step_and_go_on_to_the_unbroken_result(
    tmp_path: Path,
) -> None:
    found = ended(start("resume", tmp_path))
    assert [code for code, _ in found] == [0, 0], found
    first, second = tmp_path / "of-0", tmp_path / "of-1"
    assert (first / "stopped-0").read_text() == "StoppedElsewhere"
    assert (second / "stopped-1").read_text() == "KeyboardInterrupt"
    assert (second / "failed-1").read_text() == "no memory left"
    assert (first / "failed-0").read_text().startswith("another rank failed in this step")
    whole = load_file(first / "whole-0.safetensors")
    for other in (first / "resumed-0", second / "whole-1", second / "resumed-1"):
        state = load_file(f"{other}.safetensors")
        assert [name for name in whole if not torch.equal(whole[name], state[name])] == []


def test_the_death_of_a_rank_ends_the_others_with_a_message_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    (code, error), (killed, _) = ended(start("die", tmp_path))
    assert killed == -signal.SIGKILL
    assert code == 1
    assert "SubnetSearchError: another rank has ended or cannot be reached" in error
    with open_run(tmp_path / "of-0" / "run") as run:
        assert run.read_json("checkpoint.json")["step"] == 2


def torchrun(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "subnet_search",
        "train",
    ]
    arguments = [str(recipe), "--out", str(folder)]
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_the_command_line_under_torchrun_is_stopped_and_goes_on(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    ranks, checkpoint = torchrun(recipe, tmp_path), tmp_path / "two" / "checkpoint.json"
    for _ in range(6000):
        if checkpoint.exists():
            break
        time.sleep(0.02)
    ranks.send_signal(signal.SIGTERM)
    _, told = ranks.communicate(timeout=100)
    assert ranks.returncode != 0
    assert "go on with: subnet-search resume" in told
    place = json.loads(checkpoint.read_text())
    assert 0 < place["step"] < 6 * 17
    again = torchrun(recipe, tmp_path)
    _, told = again.communicate(timeout=200)
    assert again.returncode == 0, told
    with open_run(tmp_path / "two") as run:  # nobody holds it any more
        assert run.has("supernet.safetensors")
        assert run.read_json("checkpoint.json")["epoch"] == 6
        assert run.damaged() == []
