from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.record import Run, create_run, open_run
from subnet_search.record.run import restore_settings
from tests.record.forked import in_a_child


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_run(tmp_path / "run", "seed = 1\n").close()
    return tmp_path / "run"


def dying_at(step: int, work: Callable[[], None]) -> Callable[[], None]:
    """`work`, killed just before its `step`-th call that changes the disk."""
    changing = ("fsync", "replace", "unlink", "mkdir")
    calls = {name: getattr(os, name) for name in changing}
    seen = 0

    def patched(name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal seen
            if seen == step:
                os._exit(9)
            seen += 1
            return calls[name](*args, **kwargs)

        return call

    def run() -> None:
        for name in changing:
            setattr(os, name, patched(name))
        work()

    return run


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    with open_run(folder) as run:
        run.write("subnets/abc/net.bin", b"\0\1")
        run.write_json("front.json", {"members": [1]})
    with open_run(folder) as run:
        assert run.read("subnets/abc/net.bin") == b"\0\1"
        assert run.read_json("front.json") == {"members": [1]}
        assert run.names() == ["front.json", "settings.toml", "subnets/abc/net.bin"]
        assert run.verify("front.json") == folder / "front.json"
        assert run.has("front.json")
        assert not run.has("report.html")


def test_what_was_deleted_is_forgotten_and_what_is_gone_is_missing(folder: Path) -> None:
    with open_run(folder) as run:
        for name in ("a.json", "b.json", "c.json"):
            run.write_json(name, [])
        run.delete("a.json")
        run.path("b.json").unlink()
        run.path("c.json").write_text("[1]")
        assert run.missing() == ["b.json"]
        assert run.damaged() == ["c.json"]
        assert run.names() == ["c.json", "settings.toml"]


def test_a_changed_table_of_checksums_is_refused(folder: Path) -> None:
    table = folder / "checksums.json"
    table.write_text(table.read_text().replace("settings.toml", "settings.tomm"))
    with pytest.raises(InvalidInput, match=r"checksums\.json .* was changed"):
        open_run(folder)


def test_every_file_can_be_read_by_those_who_may_read_the_others(folder: Path) -> None:
    with open_run(folder) as run, run.writing("a.bin") as temporary:
        temporary.write_bytes(b"")
        temporary.chmod(0o600)
    assert run.path("a.bin").stat().st_mode == (folder / "checksums.json").stat().st_mode


def test_weights_that_meet_a_full_disk_are_told_as_what_cannot_be_written(folder: Path) -> None:
    with (
        open_run(folder) as run,
        pytest.raises(SubnetSearchError, match=r"cannot write .*w\.safetensors: I/O"),
        run.writing("w.safetensors"),
    ):
        raise SafetensorError("I/O error: no space left on device")


@pytest.mark.parametrize("place", ["file/run", "file/deep/run"])
def test_a_run_where_no_folder_can_be_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="no run can be at"):
        create_run(tmp_path / place, "seed = 1\n")


def test_a_writer_with_a_path_gets_one_with_the_right_ending(folder: Path, tmp_path: Path) -> None:
    with open_run(folder) as run:
        with run.writing("weights/net.safetensors") as temporary:
            assert temporary.suffix == ".safetensors"
            temporary.write_bytes(b"weights")
        (tmp_path / "made.pt2").write_bytes(b"program")
        run.adopt("net.pt2", tmp_path / "made.pt2")
        assert run.read("weights/net.safetensors") == b"weights"
        assert run.read("net.pt2") == b"program"
        assert not (tmp_path / "made.pt2").exists()


def test_a_writer_that_fails_changes_nothing(folder: Path) -> None:
    with open_run(folder) as run:
        run.write("a.bin", b"old")

        def fail_half_way() -> None:
            with run.writing("a.bin") as temporary:
                temporary.write_bytes(b"half of the n")
                raise KeyError

        with pytest.raises(KeyError):
            fail_half_way()
        assert run.read("a.bin") == b"old"
        assert not list(folder.glob(".tmp*"))


@pytest.mark.parametrize("damage", [b"", b"conten", b"contenT", b"contents"])
def test_damaged_files_are_refused(folder: Path, damage: bytes) -> None:
    with open_run(folder) as run:
        run.write("a.bin", b"content")
        (folder / "a.bin").write_bytes(damage)
        for look in (run.read, run.verify):
            with pytest.raises(InvalidInput, match=r"corrupt: .*a\.bin was truncated or changed.*Restore it"):
                look("a.bin")


def test_missing_and_foreign_files_are_refused(folder: Path) -> None:
    with open_run(folder) as run:
        run.write("a.bin", b"content")
        (folder / "a.bin").rename(folder / "b.bin")
        with pytest.raises(InvalidInput, match=r"a\.bin is missing"):
            run.read("a.bin")
        with pytest.raises(InvalidInput, match=r"b\.bin is not listed"):
            run.read("b.bin")
        assert not run.has("a.bin")
        assert not run.has("b.bin")


@pytest.mark.parametrize("name", ["settings.toml", "checksums.json"])
def test_a_run_with_a_damaged_heart_is_not_opened_and_not_locked(folder: Path, name: str) -> None:
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(b"[")
    for _ in range(2):
        with pytest.raises(InvalidInput, match=rf"corrupt: .*{name}"):
            open_run(folder)
    (folder / name).write_bytes(good)
    open_run(folder).close()


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../../x", ".lock", "evaluations.jsonl", "a\\b"])
def test_names_stay_inside_the_folder(folder: Path, name: str) -> None:
    with open_run(folder) as run, pytest.raises(InvalidInput):
        run.write(name, b"x")


def test_a_run_is_not_made_twice_nor_over_something_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds a run already; continue it"):
        create_run(folder, "")
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InvalidInput, match="is no run folder; choose another name"):
            create_run(place, "")


def test_a_folder_without_settings_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no run folder: it has no settings\.toml"):
        open_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused_with_the_first_ones_process_and_host(folder: Path) -> None:
    code = f"""
        from subnet_search.record import open_run
        open_run({str(folder)!r}, write=False)
        open_run({str(folder)!r})
    """
    with open_run(folder):
        second = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert f"in use by process {os.getpid()} on host {socket.gethostname()}" in second.stderr
    assert "line 4" in second.stderr  # reading was allowed


def test_a_killed_process_holds_no_lock(folder: Path) -> None:
    def hold() -> None:
        run = open_run(folder)
        run.write("a.bin", b"x")
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(hold) == -signal.SIGKILL
    with open_run(folder) as run:
        assert run.read("a.bin") == b"x"


def test_a_reader_changes_nothing_and_sees_what_a_writer_does(folder: Path) -> None:
    reader = open_run(folder, write=False)
    with open_run(folder) as writer:
        writer.write("a.bin", b"one")
        assert reader.read("a.bin") == b"one"
        writer.write("a.bin", b"two")
        assert reader.read("a.bin") == b"two"
    for attempt in (lambda: reader.write("a.bin", b"three"), lambda: reader.event("x")):
        with pytest.raises(InvalidInput, match="reading only"):
            attempt()


@pytest.mark.parametrize("old", [pytest.param(None, marks=pytest.mark.slow), b"old content"])
def test_a_kill_at_any_step_of_a_write_leaves_the_old_file_or_the_new_one(
    folder: Path, old: bytes | None
) -> None:
    def write() -> None:
        open_run(folder).write("stats/a.bin", b"new content")

    for step in range(100):
        with open_run(folder) as run:
            if old is None:
                (folder / "stats/a.bin").unlink(missing_ok=True)
            else:
                run.write("stats/a.bin", old)
        status = in_a_child(dying_at(step, write))
        assert status in (0, 9)
        with open_run(folder) as run:
            if run.has("stats/a.bin"):
                assert run.read("stats/a.bin") in (old, b"new content")
            else:
                assert old is None
            assert not list(folder.rglob(".tmp*"))
        if status == 0:
            break
    assert 8 <= step < 100


def test_a_kill_at_any_step_of_making_a_run_leaves_a_run_or_none(tmp_path: Path) -> None:
    for step in range(100):
        folder = tmp_path / str(step)
        status = in_a_child(dying_at(step, lambda: create_run(folder, "seed = 1\n")))  # noqa: B023
        run = open_run(folder) if (folder / "settings.toml").exists() else create_run(folder, "seed = 1\n")
        assert run.read("settings.toml") == b"seed = 1\n"
        run.close()
        if status == 0:
            break
    assert 6 <= step < 100


def test_a_full_disk_is_told_with_path_and_way_out_and_the_old_file_stays(folder: Path) -> None:
    with open_run(folder) as run:
        run.write("a.bin", b"old")

    def fill() -> None:
        run = open_run(folder)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with pytest.raises(SubnetSearchError, match=r"cannot write .*a\.bin: File too large.*make room"):
            run.write("a.bin", b"n" * 5000)
        assert run.read("a.bin") == b"old"

    assert in_a_child(fill) == 0
    with open_run(folder) as run:
        assert run.read("a.bin") == b"old"


def test_a_folder_that_may_not_be_written_is_told_with_the_way_out_and_can_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: object, flags: int, *more: object, **named: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SubnetSearchError, match=r"cannot write .*Read-only.*give write permission"):
        open_run(folder)
    assert open_run(folder, write=False).read("settings.toml") == b"seed = 1\n"


def test_events_survive_a_torn_line(folder: Path) -> None:
    with open_run(folder) as run:
        run.event("stage", name="train", path=folder)
        with (folder / "events.jsonl").open("ab") as file:
            file.write(b'{"time": 1, "ki')
        run.event("stage", name="search")
        assert [event["name"] for event in run.events()] == ["train", "search"]
        assert run.events()[0]["time"] > 1.7e9


def test_a_changed_event_is_left_out_and_one_of_an_early_run_is_not(folder: Path) -> None:
    events = folder / "events.jsonl"
    events.write_text('{"time":1.0,"kind":"begin","stage":"rank"}\n')
    with open_run(folder) as run:
        run.event("begin", stage="train")
        run.event("end", stage="train", seconds=17)
        events.write_bytes(events.read_bytes().replace(b'"seconds":17', b'"seconds":18'))
        assert [(event["kind"], event["stage"]) for event in run.events()] == [
            ("begin", "rank"),
            ("begin", "train"),
        ]


@pytest.mark.parametrize("damage", [None, b"", b"seed = 2\n"])
def test_settings_that_were_damaged_are_restored_from_the_same_text_and_from_no_other(
    folder: Path, damage: bytes | None
) -> None:
    settings = folder / "settings.toml"
    settings.unlink()
    if damage is not None:
        settings.write_bytes(damage)
    restore_settings(folder, "seed = 3\n")
    with pytest.raises(InvalidInput, match=r"settings\.toml.* give the recipe that it was begun with again"):
        open_run(folder)
    restore_settings(folder, "seed = 1\n")
    with open_run(folder) as run:
        assert run.read("settings.toml") == b"seed = 1\n"


def test_a_holder_of_the_lock_that_cannot_be_read_is_another_process(folder: Path) -> None:
    with open_run(folder):
        (folder / ".lock-holder").write_bytes(b"\xff\xfe")
        with pytest.raises(InvalidInput, match="in use by another process"):
            open_run(folder)


def test_closing_twice_is_harmless_and_reading_goes_on(folder: Path) -> None:
    run: Run = open_run(folder)
    run.close()
    run.close()
    assert run.read("settings.toml") == b"seed = 1\n"
