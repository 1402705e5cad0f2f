from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.record import Images, Journal
from tests.record.forked import in_a_child

A, B, C = (SubnetConfig({"stem": width}) for width in (8, 16, 24))


def filled(path: Path | None) -> Journal:
    journal = Journal(path)
    journal.ask(0, A, "weights1", "nsga2", search="s", turn=0)
    journal.result(0, {"macs": 1e9 / 3, "top1_percent": 71.5}, spread={"macs": 0.0}, seconds=0.25)
    journal.ask(1, B, "weights1", "random")
    journal.failed(1, "out of memory", seconds=1.5)
    journal.ask(2, C, "weights1", "nsga2")
    return journal


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    written = filled(tmp_path / "j.jsonl").lines()
    assert Journal(tmp_path / "j.jsonl").lines() == written == filled(None).lines()
    assert written[1] == {
        "n": 0,
        "kind": "result",
        "key": A.key,
        "config": {"stem": 8},
        "context": "weights1",
        "values": {"macs": 1e9 / 3, "top1_percent": 71.5},
        "spread": {"macs": 0.0},
        "source": "measured",
        "searcher": "nsga2",
        "search": "s",
        "turn": 0,
        "seconds": 0.25,
        "reason": "",
    }


def test_asks_without_an_answer_are_pending(tmp_path: Path) -> None:
    filled(tmp_path / "j.jsonl")
    again = Journal(tmp_path / "j.jsonl")
    assert [line["key"] for line in again.pending()] == [C.key]
    assert again.next_n == 3


def test_known_are_the_answers_of_this_context_and_results_outrank_failures() -> None:
    journal = filled(None)
    journal.ask(3, B, "weights1", "tpe")
    journal.result(3, {"macs": 2.0})
    journal.ask(4, A, "weights2", "tpe")
    journal.result(4, {"macs": 5.0})
    known = journal.known("weights1")
    assert {key: line["values"]["macs"] for key, line in known.items()} == {A.key: 1e9 / 3, B.key: 2.0}


def test_what_was_stopped_is_known_beside_its_rival_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = filled(path)
    stopped, whole = Images(3, 9, 5, rival=A.key), Images(9, 9, 5, b"\xa5\x80")
    for n, config, images in ((3, C, stopped), (4, C, whole), (5, A, whole)):
        journal.ask(n, config, "weights3", "tpe")
        source = "measured" if images.in_full else "predicted"
        journal.result(n, {"macs": float(n)}, source=source, reason="told", images=images)
    for read in (journal, Journal(path)):
        assert read.known("weights3")[C.key]["values"] == {"macs": 4.0}
        [(pair, line)] = read.stopped("weights3").items()
        assert pair == (C.key, A.key)
        assert (line["values"], line["reason"]) == ({"macs": 3.0}, "told")
        assert Images.from_json(line["images"]) == stopped
        assert Images.from_json(read.known("weights3")[A.key]["images"]) == whole
        assert read.stopped("weights1") == {}
    assert whole.answers().tolist() == [True, False, True, False, False, True, False, True, True]
    assert (stopped.spent, stopped.in_full_spent) == (8, 14)
    assert "images" not in journal.lines()[0]


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    whole = filled(path).lines()
    data = path.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    for end in range(last + 1, len(data)):
        path.write_bytes(data[:end])
        assert Journal(path, write=False).lines() == whole[:-1]
        assert path.read_bytes() == data[:end]
        journal = Journal(path)
        journal.ask(2, C, "weights1", "nsga2")
        assert path.read_bytes() == data


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path, number: int) -> None:
    path = tmp_path / "j.jsonl"
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b"weights1", b"weights9")
    path.write_bytes(b"".join(lines))
    with pytest.raises(InvalidInput, match=rf"corrupt: line {number} of .*j\.jsonl.*delete that line"):
        Journal(path)


def test_an_answer_whose_ask_is_lost_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    filled(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(InvalidInput, match="line 1 of"):
        Journal(path)


def test_asks_are_new_and_answers_have_asks() -> None:
    journal = filled(None)
    with pytest.raises(InvalidInput, match="must be new, at least 3, got 1"):
        journal.ask(1, A, "", "random")
    with pytest.raises(InvalidInput, match=r"pending ask, got 0; pending are \[2\]"):
        journal.result(0, {"macs": 1.0})


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="reading only"):
        Journal(tmp_path / "j.jsonl", write=False).ask(0, A, "", "random")
    assert not (tmp_path / "j.jsonl").exists()


def test_a_disk_that_fills_up_within_a_line_leaves_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    before = filled(path).lines()
    size = path.stat().st_size

    def fill() -> None:
        journal = Journal(path)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for room in (1, 40):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
            with pytest.raises(
                SubnetSearchError, match=r"cannot write .*j\.jsonl: File too large.*make room"
            ):
                journal.failed(2, "x" * 100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        journal.failed(2, "x")

    assert in_a_child(fill) == 0
    assert Journal(path).lines()[:-1] == before
    assert Journal(path).lines()[-1]["reason"] == "x"


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.jsonl"
    journal = filled(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(SubnetSearchError, match=r"cannot write .*j\.jsonl: No space left.*make room"):
            journal.failed(2, "x")
    assert path.read_bytes() == before
    journal.failed(2, "x")
    assert json.loads(path.read_bytes().splitlines()[-1])["reason"] == "x"
