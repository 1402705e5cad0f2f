"""What the guides on several processes and drivers show is accepted and does what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from search_spaces import CostTable
from subnet_search.cli import app
from subnet_search.record import Run
from subnet_search.searchers import SearchResult
from subnet_search.searchers.storage import storage_url
from subnet_search.training import TrainResult
from tests.searchers.test_study_claims import OBJECTIVES, SPACE, Toy
from tests.small import small_splits, small_supernet

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
NAMES = ("distributed-training.md", "shared-study.md")


def blocks(name: str, kind: str) -> list[str]:
    return re.findall(
        rf"^```{kind}\n(.*?)^```", (GUIDES / name).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_the_guides_are_commands_with_such_options(name: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    lines = "".join(blocks(name, "")).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines]
    ours = [words[words.index(word) + 1 :] for words in calls for word in words if word.endswith("_search")]
    ours += [words[1:] for words in calls if words[0] == "subnet-search"]
    assert len(ours) >= 3
    for command, *arguments in ours:
        commands[command].make_context(command, arguments)
        if "--storage" in arguments:
            storage_url(arguments[arguments.index("--storage") + 1].replace("/shared", "/tmp"))


def test_the_lines_of_python_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBNET_SEARCH_PROGRESS", "0")
    [code] = blocks("distributed-training.md", "python")
    found: dict[str, object] = {"supernet": small_supernet(), "splits": small_splits()}
    exec(code, found)
    result, run = found["result"], found["run"]
    assert isinstance(result, TrainResult)
    assert isinstance(run, Run)
    assert result.epochs == 2
    assert run.has("checkpoint.safetensors")
    run.close()


@pytest.mark.slow
def test_the_lines_of_python_search_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBNET_SEARCH_PROGRESS", "0")
    [code] = blocks("shared-study.md", "python")
    code = code.replace('"guided"', '"nsga2"')  # quicker
    toys = [Toy(), Toy()]
    costs = CostTable(SPACE.names, (8, 1, 8), {("stem",): 3}, {(): 1}, {(): 4}, ({(): 4},))
    for toy in toys:
        found: dict[str, object] = {"space": SPACE, "evaluator": toy, "costs": costs}
        exec(code, found)
        result = found["result"]
        assert isinstance(result, SearchResult)
        assert len(result.evaluations) == 12
    assert [len(toy.asked) for toy in toys] == [12, 0]
    assert (tmp_path / "study.db").exists()
    assert result.front.objectives == OBJECTIVES
