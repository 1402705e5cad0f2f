from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from search_spaces import SubnetConfig, SubnetSearchError
from subnet_search import remeasuring, tuning
from subnet_search.choosing import choose_spread
from subnet_search.measure import Latency
from subnet_search.record import Evaluation, Objective, ParetoFront, create_run
from subnet_search.remeasuring import settled, tied
from subnet_search.settings import DeviceSettings

OBJECTIVES = (Objective("top1_percent", "max"), Objective("latency_ms", "min"))


def front(*points: tuple[float, float]) -> ParetoFront:
    return ParetoFront.of(OBJECTIVES, [Evaluation(SubnetConfig({"a": i}), p) for i, p in enumerate(points)])


def best(members: ParetoFront) -> list[Evaluation]:
    return [max(members, key=lambda member: member.values[0])]


def looked(times: dict[int, float], seen: list[int]) -> object:
    def look(config: SubnetConfig) -> Latency:
        seen.append(config["a"])
        ms = times[config["a"]]
        return Latency(ms, ms, ms, 24)

    return look


def test_who_is_over_the_limit_when_measured_again_gives_way_to_the_next() -> None:
    seen: list[int] = []
    look = looked({0: 1.0, 1: 4.9, 2: 5.2, 3: 5.1}, seen)
    members, failed = settled(front((90, 1), (91, 4.8), (92, 4.9), (93, 5.0)), best, look, 5.0)  # type: ignore[arg-type]
    assert [member.config["a"] for member in members] == [1]
    assert [(member.config["a"], found.median_ms) for member, found in failed] == [(3, 5.1), (2, 5.2)]
    assert members[0].values == (91, 4.9)
    assert seen == [3, 2, 1]  # each once


def test_everything_that_is_chosen_was_measured_again() -> None:
    seen: list[int] = []
    points = [(80.0 + i, 1.0 + i) for i in range(8)]
    look = looked({i: 1.0 + i - 0.5 * (i == 3) for i in range(8)}, seen)
    members, failed = settled(front(*points), lambda one: choose_spread(one, 3), look, 100.0)  # type: ignore[arg-type]
    assert {member.config["a"] for member in members} <= set(seen)
    assert failed == []


def test_a_limit_that_nobody_meets_any_more_names_the_fastest() -> None:
    look = looked({0: 5.5, 1: 5.3}, [])
    with pytest.raises(
        SubnetSearchError, match=r"latency_ms <= 5 when it is measured again; the fastest takes 5.3 ms"
    ):
        settled(front((90, 4.0), (91, 4.5)), best, look, 5.0)  # type: ignore[arg-type]


def workbench(folder: Path, told: list[str]) -> Any:
    """What the choice needs of one; what it says goes into `told`."""
    return SimpleNamespace(
        times_nets=True,
        run=create_run(folder / "run", ""),
        recipe=SimpleNamespace(device=DeviceSettings(), search=SimpleNamespace(seed=0, limits={})),
        meter=SimpleNamespace(profile={"clock": "wall"}, reference=Latency(3.0, 3.0, 3.0, 30)),
        supernet=None,
        limits=lambda limits: limits,
        say=told.append,
    )


def test_what_was_measured_again_is_kept_with_who_was_not_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = front((90, 1.0), (91, 1.01), (92, 2.0))
    times = {0: 1.0, 1: 1.01, 2: 2.0}

    def look(config: SubnetConfig) -> Latency:
        ms = times[config["a"]]
        return Latency(ms, ms - 0.05, ms + 0.05, 24)

    monkeypatch.setattr(remeasuring, "SubnetLatency", lambda *args, **more: SimpleNamespace(of=look))
    told = list[str]()
    bench = workbench(tmp_path, told)
    remeasuring.choose_measured(bench, members, list)  # type: ignore[arg-type]
    keys = [member.config.key for member in members]
    stored = bench.run.read_json("latency_again.json")
    assert stored["subnets"].keys() == set(keys)
    assert [set(tie) for tie in stored["ties"]] == [{keys[0], keys[1]}]
    assert told == [f"  not told apart in time: {' and '.join(stored['ties'][0])}"]
    assert remeasuring._stored(bench)[0][keys[2]].median_ms == 2.0  # type: ignore[arg-type]


def test_a_device_that_hangs_once_is_asked_again_and_one_that_hangs_twice_costs_one_sub_net(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = front((90, 1.0), (91, 2.0), (92, 3.0))
    hangs, asked = {0: 1, 1: 9, 2: 0}, list[int]()

    def look(config: SubnetConfig) -> Latency:
        asked.append(config["a"])
        hangs[config["a"]] -= 1
        if hangs[config["a"]] >= 0:
            raise SubnetSearchError("the command was stopped after 60 s")
        ms = 1.0 + config["a"]
        return Latency(ms, ms, ms, 24)

    monkeypatch.setattr(remeasuring, "SubnetLatency", lambda *args, **more: SimpleNamespace(of=look))
    told = list[str]()
    bench = workbench(tmp_path, told)
    for _ in range(2):  # the second time nothing is measured again
        chosen = remeasuring.choose_measured(bench, members, list)  # type: ignore[arg-type]
        assert [member.config["a"] for member in chosen] == [0, 2]
        assert asked == [0, 0, 1, 1, 2]
    stored = bench.run.read_json("latency_again.json")
    assert stored["failed"] == {SubnetConfig({"a": 1}).key: "the command was stopped after 60 s"}
    assert [("trying once more" in line, "left out" in line) for line in told] == [
        (True, False), (True, False), (False, True)
    ]  # fmt: skip


def test_where_no_sub_net_can_be_timed_that_is_said() -> None:
    with pytest.raises(SubnetSearchError, match="none of the front's sub-nets could be timed again"):
        settled(front((90, 1.0), (91, 2.0)), best, lambda config: None, 5.0)


def test_a_tuned_net_that_cannot_be_timed_keeps_its_other_values() -> None:
    def broken(net: object) -> Latency:
        raise SubnetSearchError("no route to the board")

    bench = SimpleNamespace(times_nets=True, metrics={}, meter=broken, say=lambda message: None)
    found = tuning._values_beside_top1(bench, "k", nn.Identity(), nn.Identity())  # type: ignore[arg-type]
    assert found == ({}, {}, {"latency_ms": "no route to the board"})


def test_ties_are_told() -> None:
    found = [("a", 1.0), ("b", 2.0), ("c", 1.01), ("d", 3.0)]
    latencies = [(key, Latency(ms, ms - 0.05, ms + 0.05, 24)) for key, ms in found]
    assert tied(latencies) == [["a", "c"]]
