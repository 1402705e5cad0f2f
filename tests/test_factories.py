from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces import InvalidInput
from subnet_search.factories import call_factory


def test_the_folder_one_starts_in_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_module_here.py").write_text("def make(n):\n    return [n]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    assert call_factory("my_own_module_here:make", {"n": 3}, list, "list") == [3]


def test_an_error_in_the_users_module_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInput, match="importing 'my_broken_module' fails: ZeroDivisionError: division"):
        call_factory("my_broken_module:make", {}, list, "list")


def test_what_the_users_factory_refuses_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InvalidInput("splits 'train' and 'test' share images")

    monkeypatch.setattr("subnet_search.factories.import_callable", lambda name, what: refuse)
    with pytest.raises(InvalidInput, match=r"the source a:b with options {} is refused: splits 'train' and"):
        call_factory("a:b", {}, list, "source")


def test_a_module_that_ends_the_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_script_module.py").write_text("import sys\nsys.exit(3)  # no `if __name__`\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInput, match="importing 'my_script_module' fails: SystemExit: 3"):
        call_factory("my_script_module:make", {}, list, "list")


@pytest.mark.parametrize("name", ["", ":", "module", "module:", ":make"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r'is named "package\.module:factory"'):
        call_factory(name, {}, list, "list")
