"""The doctor: what is named, what counts, and that nothing which is broken breaks it."""

from __future__ import annotations

import importlib.metadata
import json
import tomllib
from pathlib import Path

import pytest
import torch

from subnet_search import doctor
from subnet_search.cli import run_command
from subnet_search.doctor import Check, requirements, table, to_json, try_torch, works

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
GOOD = Check("packages", "torch", "ok", "2.0")
OPTIONAL = Check("extras", "[onnx]", "missing", "", needed=False)
BAD = Check("runtimes", "torch on the cpu", "broken", "OSError: no library")


def test_every_requirement_of_the_project_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = PROJECT["optional-dependencies"]
    extras = [f'{needed}; extra == "{extra}"' for extra, listed in optional.items() for needed in listed]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: [*PROJECT["dependencies"], *extras])
    looked_at = {f"{name}>={floor}" for name, floor, extra in requirements() if not extra}
    assert looked_at == set(PROJECT["dependencies"])
    assert {extra for _, _, extra in requirements() if extra} == set(optional) == set(doctor.ADDS)


def test_a_copy_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", lost)
    python, itself = doctor._packages()
    assert (python.status, itself.name, itself.status) == ("ok", "subnet-search", "missing")


def test_only_what_is_needed_decides() -> None:
    assert works([GOOD, OPTIONAL])
    assert not works([GOOD, OPTIONAL, BAD])
    assert table([GOOD, OPTIONAL]).endswith("the basics work")
    assert table([GOOD, BAD]).endswith("the basics do not work: torch on the cpu")
    assert "not there" in table([OPTIONAL])


@pytest.mark.parametrize(("checks", "code"), [([GOOD, OPTIONAL], 0), ([GOOD, BAD], 1)])
def test_the_exit_code_says_whether_the_basics_work_and_json_says_the_same(
    checks: list[Check], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    assert run_command(["doctor"]) == code
    assert capsys.readouterr().out.strip() == table(checks)
    assert run_command(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told == to_json(checks)
    assert told["works"] == (code == 0)


def test_a_package_is_missing_too_old_broken_or_good(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1.9.0", "no-such-module": "3.0", "tqdm": "4.66.0+local"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {name: doctor._package(name, "1.10")[0] for name in ("numpy", "lost", "no-such-module", "tqdm")}
    assert found == {"numpy": "old", "lost": "missing", "no-such-module": "broken", "tqdm": "ok"}


def test_a_runtime_that_computes_wrongly_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    try_torch("cpu")
    right = torch.nn.functional.conv2d
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda x, w: right(x, w) + 1)
    check = doctor._tried("torch on the cpu", "", lambda: try_torch("cpu"))
    assert (check.status, check.detail) == ("broken", "ArithmeticError: wrong results on cpu")


@pytest.mark.slow
def test_here_the_basics_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor"]) == 0
    told = capsys.readouterr().out
    assert all(
        name in told for name in ("torch on the cpu", "torchvision operators", "export to pt2", "[onnx]")
    )
