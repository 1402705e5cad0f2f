"""A run's search and fine-tuning by real workers give what one process gives; settings are tried with Ray Tune."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from search_spaces import InvalidInput
from subnet_search.pipeline import advance, begin
from subnet_search.recipe import parse_recipe
from subnet_search.record import Run, open_run
from subnet_search.run_evaluator import bench_of
from subnet_search.searchers import Workers
from subnet_search.tuning import TRIED, finetune_settings

pytestmark = pytest.mark.slow

RECIPE = """
name = "mine"
[model]
name = "subnet_search.small_models:digits_cnn"
epochs = 1
[data]
source = "digits"
[elastic]
step = 16
[rank]
ranker = "l1"
curve = false
[train]
epochs = 1
[device]
threads = 1
[search]
searcher = "random"
evaluations = 10
choose = 2
[finetune]
epochs = 2
checkpoint_seconds = 1e-3
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose search has not begun."""
    folder = tmp_path_factory.mktemp("runs")
    with begin(parse_recipe(RECIPE), folder) as run:
        advance(run, "train")
    return folder / "mine"


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def found(run: Run) -> dict[str, Any]:
    return {line["key"]: line["values"] for line in run.journal.lines() if line["kind"] == "result"}


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "seconds"}


def test_workers_find_and_tune_what_one_process_does(ray_cluster: Any, trained: Path, tmp_path: Path) -> None:
    with open_run(copied(trained, tmp_path / "one")) as one:
        advance(one, "finetune")
    with open_run(copied(trained, tmp_path / "many")) as many:
        advance(many, "search", workers=Workers(2))
        assert found(many) == found(one)
        before = {line["context"] for line in one.journal.lines()}
        assert {line["context"] for line in many.journal.lines()} == before
        advance(many, "finetune", workers=Workers(2))
        names = [name for name in one.names() if name.startswith("subnets/") and "net.safe" in name]
        assert len(names) == 2
        for name in names:
            assert many.read(name) == one.read(name)
            metrics = name.replace("net.safetensors", "metrics.json")
            assert without_times(many.read_json(metrics)) == without_times(one.read_json(metrics))
        assert many.damaged() == []
        assert not list((many.folder / "trials").glob("members*"))


def test_settings_are_tried_and_used_where_they_are_better(
    ray_cluster: Any, trained: Path, tmp_path: Path
) -> None:
    with open_run(copied(trained, tmp_path / "run")) as run:
        advance(run, "finetune", workers=Workers(2), trials=3)
        told = run.read_json(TRIED)
        metrics = run.read_json(f"subnets/{told['config']}/metrics.json")
        settings = finetune_settings(bench_of(str(run.folder)))
        with pytest.raises(
            InvalidInput, match="are fine-tuned already, and trials of settings come before that"
        ):
            advance(run, "finetune", trials=3)
    assert len(told["trials"]) == 3
    assert {trial["problem"] for trial in (*told["trials"], told["recipe"])} == {""}
    for trial in told["trials"]:
        assert 0.002 <= trial["lr"] <= 0.2
        assert 1 <= trial["epoch"] <= 2
    assert told["recipe"]["epoch"] == 2
    ended = [trial for trial in told["trials"] if trial["epoch"] == 2]
    best = max([told["recipe"], *ended], key=lambda trial: trial["top1_percent"])
    assert told["best"] in [{name: trial[name] for name in told["best"]} for trial in (told["recipe"], best)]
    assert {name: getattr(settings, name) for name in told["best"]} == told["best"]
    if told["best"]["lr"] == best["lr"] and best["top1_percent"] >= metrics["before"]["top1_percent"]:
        assert metrics["after"]["top1_percent"] == best["top1_percent"]  # the trial's own training, once more


def test_a_worker_that_cannot_see_the_run_says_so(ray_cluster: Any, tmp_path: Path) -> None:
    from subnet_search.searchers import EvaluatorFactory
    from subnet_search.workers import RayPool

    factory = EvaluatorFactory(
        "subnet_search.run_evaluator:evaluator_of", {"folder": str(tmp_path / "nowhere")}
    )
    with pytest.raises(
        InvalidInput, match=r"cannot be seen on \S+; keep runs on storage that all nodes have"
    ):
        RayPool(factory, Workers(2))


def test_tune_drives_our_searchers_as_we_do(tmp_path: Path) -> None:
    pytest.importorskip("ray.tune", reason="Ray Tune is not installed: pip install subnet-search[ray]")
    from subnet_search.record import Evaluation
    from subnet_search.searchers import make_searcher
    from subnet_search.workers import as_tune_searcher
    from tests.workers.places import COSTS, OBJECTIVES, SPACE, worth

    def fresh() -> Any:
        return make_searcher("nsga2", SPACE, OBJECTIVES, costs=COSTS, limits={"macs": 150})

    alone, ours = fresh(), as_tune_searcher(fresh(), SPACE, OBJECTIVES)
    for number in range(60):
        config = alone.ask()
        assert ours.suggest(f"t{number}") == dict(config)
        if number % 7 == 3:
            ours.on_trial_complete(f"t{number}", error=True)
            alone.tell(Evaluation(config, (), "failed", "the trial failed"))
            continue
        evaluation = worth(config)
        names = [objective.name for objective in OBJECTIVES]
        ours.on_trial_complete(f"t{number}", dict(zip(names, evaluation.values, strict=True)))
        alone.tell(evaluation)
    ours.suggest("under way")
    ours.save(str(tmp_path / "state"))
    again = as_tune_searcher(fresh(), SPACE, OBJECTIVES)
    again.restore(str(tmp_path / "state"))
    again.on_trial_complete("under way", {})
    seen = {json.dumps(line["config"], sort_keys=True) for line in again._told}
    assert len(seen) == 61
    assert json.dumps(again.suggest("next"), sort_keys=True) not in seen
    few = as_tune_searcher(
        make_searcher("random", SPACE, OBJECTIVES, costs=COSTS, limits={"macs": 9}), SPACE, OBJECTIVES
    )
    assert few.suggest("t0") == dict(SPACE.smallest())
    assert few.suggest("t1") == few.FINISHED
