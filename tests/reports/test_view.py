from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports import read_run
from reports.view import RunView
from search_spaces import InvalidInput
from subnet_search.record.run import create_run, open_run
from tests.reports.synthetic import SETTINGS, record, resnet20, write_path, write_run


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_is_read_as_it_was_written(finished: Path, view: RunView) -> None:
    front = json.loads((finished / "front.json").read_text())
    lines = [json.loads(line) for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    results = [line for line in lines if line["kind"] == "result"]
    assert [(s.key, s.searcher) for s in view.seen] == [(line["key"], line["searcher"]) for line in results]
    assert all(line["values"].items() <= s.values.items() for s, line in zip(view.seen, results, strict=True))
    assert list(view.front) == [member["key"] for member in front["members"]]
    assert [(o.name, o.goal) for o in view.objectives] == [
        (o["name"], o["goal"]) for o in front["objectives"]
    ]
    assert view.name == "finished"


def test_reading_changes_no_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=20)
    before = files_of(folder)
    read_run(folder)
    assert files_of(folder) == before


def test_a_run_is_read_while_another_process_writes_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=20, chosen=0)
    with open_run(folder):
        assert len(read_run(folder).seen) == 20


def test_chosen_subnets_are_lettered_by_rising_macs(view: RunView) -> None:
    space, costs, _ = resnet20()
    macs = [int(costs.macs(space.encode([chosen.config]))[0]) for chosen in view.chosen]
    assert [chosen.label for chosen in view.chosen] == ["A", "B", "C"]
    assert macs == sorted(macs) == [chosen.costs["macs"] for chosen in view.chosen]


def test_files_of_a_subnet_have_their_sizes(finished: Path, view: RunView) -> None:
    for chosen in view.chosen:
        folder = finished / "subnets" / chosen.key
        assert dict(chosen.files) == {
            f"subnets/{chosen.key}/{file.name}": file.stat().st_size for file in folder.iterdir()
        }


def test_a_percentage_limit_is_of_the_largest_net(view: RunView) -> None:
    space, costs, _ = resnet20()
    largest = int(costs.macs(space.encode([space.largest()]))[0])
    assert view.limits() == {"macs": pytest.approx(0.8 * largest)}


def test_baselines_come_before_the_searcher(view: RunView) -> None:
    assert view.searchers() == ("uniform", "random", "nsga2")


def test_failures_are_told_apart_from_results(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=20, chosen=0)
    space, _, _ = resnet20()
    with open_run(folder) as run:
        record(run, 20, space.smallest(), "nsga2", None)
    view = read_run(folder)
    assert (len(view.seen), view.failures) == (20, ("out of memory",))


def test_evaluations_of_other_weights_are_left_out_and_counted(tmp_path: Path) -> None:
    space, _, _ = resnet20()
    with create_run(tmp_path / "run", SETTINGS) as run:
        for n, context in enumerate(["old", "old", "new"]):
            record(run, n, space.largest(), "random", {"top1_percent": 90.0 + n}, context)
    view = read_run(tmp_path / "run")
    assert [s.values["top1_percent"] for s in view.seen] == [92.0]
    assert view.left_out == 2


def test_the_full_net_is_known_by_costs_before_it_is_measured(tmp_path: Path) -> None:
    view = read_run(write_run(tmp_path / "run", evaluations=0))
    assert view.full["macs"] == view.coverage["largest"]["macs"]
    assert "top1_percent" not in view.full


def test_the_full_nets_latency_is_known_where_the_search_never_looked_at_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=0)
    with open_run(folder) as run:
        run.write_json("latency.json", {"profile": {}, "reference": {"median_ms": 3.5}})
    assert read_run(folder).full["latency_ms"] == 3.5


def test_unknown_values_are_refused_with_those_that_are_known(view: RunView) -> None:
    with pytest.raises(InvalidInput, match=r"no values of 'latency_ms'; known are macs, .*top1_percent"):
        view.goal("latency_ms")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no run folder"):
        read_run(tmp_path)


def test_a_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=20, chosen=0)
    (folder / "front.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"corrupt: .*front\.json"):
        read_run(folder)


def test_a_path_is_read_as_it_was_written(tmp_path: Path, view: RunView) -> None:
    folder = write_run(tmp_path / "run", evaluations=1, chosen=0)
    path = write_path(folder, evaluated=0, complete=False)
    run = read_run(folder)
    assert (list(run.path), run.path_complete, run.joined) == (path, False, False)
    assert (view.path, view.joined) == ((), False)


@pytest.mark.parametrize("content", [{"complete": True}, {"elements": [{"config": {}}]}, {"elements": 3}])
def test_a_path_that_is_none_is_refused_by_name(tmp_path: Path, content: dict[str, object]) -> None:
    with create_run(tmp_path / "run", SETTINGS) as run:
        run.write_json("path.json", content)
    with pytest.raises(InvalidInput, match=r"path\.json of run .*: a path must be a list"):
        read_run(tmp_path / "run")


def test_a_damaged_path_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", evaluations=1, chosen=0)
    write_path(folder)
    (folder / "path.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"corrupt: .*path\.json"):
        read_run(folder)


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    with create_run(tmp_path / "run", SETTINGS) as run:
        run.write_json("device.json", ["cpu"])
    with pytest.raises(InvalidInput, match=r"device\.json .* must hold an object, got list"):
        read_run(tmp_path / "run")
