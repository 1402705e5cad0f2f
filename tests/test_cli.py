"""The command line: exit codes, messages without tracebacks, and no torch where none is needed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search import cli
from subnet_search.cli import run_command

RECIPE = '[model]\nname = "torchvision:resnet18"\n'


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InvalidInput("a rule"), 2, "refused: a rule"),
        (SubnetSearchError("the disk is full"), 1, "failed: the disk is full"),
        (ZeroDivisionError("division by zero"), 1, "failed: ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_every_error_is_one_message_and_its_exit_code(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error.add_note("go on with: subnet-search resume x")
    monkeypatch.setattr(cli, "_walk", fail_with(error))
    assert run_command(["quickstart"]) == code
    told = capsys.readouterr().err
    assert told.startswith(message)
    assert "go on with: subnet-search resume x" in told
    assert "Traceback" not in told


def test_debug_anywhere_shows_the_traceback_and_keeps_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_walk", fail_with(InvalidInput("a rule")))
    assert run_command(["quickstart", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_every_line_of_a_message_is_short_enough_to_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = InvalidInput(f"a rule, got {'x' * 10_000}; a way out\nanother rule")
    monkeypatch.setattr(cli, "_walk", fail_with(error))
    assert run_command(["quickstart"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("refused: a rule, got xxx")
    assert first.endswith("xxx; a way out")
    assert len(first) <= 600
    assert second == "another rule"


def test_sigterm_is_143_and_gives_the_handler_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_walk", lambda *args: signal.raise_signal(signal.SIGTERM))
    assert run_command(["quickstart"]) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.toml"], "recipe missing.toml cannot be read"),
        (["resume", "missing"], "missing is no run folder"),
        (["report", "missing"], "missing"),
        (["plot", "missing"], "missing"),
        (["inspect", "resnet18", "--input", "3x"], "--input must look like 3x224x224, got '3x'"),
        (["inspect", "nothing:here"], "cannot be imported"),
        (["inspect", "torchvision:resnet1"], "did you mean"),
        (["run"], "Missing argument"),
        (["trian"], "No such command"),
        (["quickstart", "--name", "../x"], "choose another --name"),
        (["quickstart", "--seed", "-1"], "Invalid value"),
    ],
)
def test_wrong_arguments_are_refused_with_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_recipe_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE + "[train]\nepoks = 1\n")
    code = (
        "import sys; from subnet_search.cli import run_command; "
        "code = run_command(['run', 'r.toml']); sys.exit(100 + code if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "line 4: [train] 'epoks' is not a setting; did you mean 'epochs'?" in done.stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    text = capsys.readouterr().out
    commands = "quickstart run inspect train rank search finetune export report plot resume doctor"
    assert [command for command in commands.split() if command not in text] == []


def test_inspect_prints_the_coverage_that_conversion_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    model = "subnet_search.small_models:digits_cnn"
    assert run_command(["inspect", model, "--input", "1x8x8", "--json"]) == 0
    coverage = json.loads(capsys.readouterr().out)
    names = {"groups", "blocks", "fixed", "reachable_macs_share", "smallest", "largest"}
    assert names <= coverage.keys()
    assert {"knob", "size", "units", "step", "writers", "readers"} <= coverage["groups"][0].keys()
    assert run_command(["inspect", model, "--input", "1x8x8"]) == 0
    table = capsys.readouterr().out
    assert f"{coverage['largest']['macs']:,} MACs" in table
    assert [group["knob"] for group in coverage["groups"] if group["knob"] not in table] == []


def test_inspect_of_an_input_the_model_cannot_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", "subnet_search.small_models:digits_cnn", "--input", "3x8x8"]) == 2
    assert "Traceback" not in capsys.readouterr().err
