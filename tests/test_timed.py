"""Roads under a time budget: what is refused, planned and kept; the slow ones really walk."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from reports import write_report
from subnet_search import cli, estimating, timed, tuning
from subnet_search.cli import run_command
from subnet_search.data import load_splits
from subnet_search.deadline import Deadline
from subnet_search.estimating import ENOUGH_S, Part, Rehearsal, extrapolated, rehearse
from subnet_search.planning import Rate, Standing, make_plan
from subnet_search.recipe import Recipe, read_recipe, recipe_to_toml
from subnet_search.record import create_run
from subnet_search.workbench import Workbench

RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 4 }
epochs = 3
[elastic]
step = 2
[train]
epochs = 6
[rank]
images = 64
[evaluate]
calibration_images = 128
[search]
evaluations = 40
choose = 2
[finetune]
epochs = 4
[device]
threads = 1
"""
RATES = {
    "prepare": Rate(1.0),
    "teacher": Rate(0.1, 0.5),
    "rank": Rate(0.2),
    "train": Rate(0.1, 1.0),
    "search": Rate(0.1, 0.05),
    "finetune": Rate(0.1, 0.5),
    "test": Rate(0.1),
    "export": Rate(1.0),
    "report": Rate(2.0),
}


def write_recipe(folder: Path, text: str = RECIPE) -> str:
    (folder / "small.toml").write_text(text)
    return str(folder / "small.toml")


def rehearsed(monkeypatch: pytest.MonkeyPatch, rates: dict[str, Rate] = RATES, num_bytes: int = 1000) -> None:
    """Nothing is measured: these are the rates."""
    found = Rehearsal(rates, num_bytes, 0.1, ("  7 sub-nets",))
    monkeypatch.setattr(timed, "rehearse", lambda recipe, out, report: found)


def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "1e9", "soon"])
@pytest.mark.parametrize("command", ["quickstart", "run", "resume"])
def test_minutes_that_are_no_time_are_refused_and_nothing_is_written(
    command: str, minutes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"quickstart": [], "run": [write_recipe(tmp_path)], "resume": [str(tmp_path / "runs")]}[command]
    out = [] if command == "resume" else ["--out", str(tmp_path / "runs")]
    assert run_command([command, *target, f"--minutes={minutes}", *out]) == 2
    told = capsys.readouterr().err
    assert "--minutes" in told
    assert "Traceback" not in told
    assert not (tmp_path / "runs").exists()


def test_too_few_minutes_are_refused_with_the_smallest_number_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsed(monkeypatch)
    arguments = ["run", write_recipe(tmp_path), "--out", str(tmp_path / "runs"), "--minutes"]
    assert run_command([*arguments, "0.01"]) == 2
    told = capsys.readouterr().err
    assert "--minutes 0.01 is too little for what is left of the road" in told
    least = float(told.rsplit("--minutes ", 1)[1])
    smallest_s = (
        1 + 0.6 + 0.2 + 1.1 + 0.6 + 2 * 0.6 + 3 * 0.1 + 2 * 1.0 + 2
    )  # one epoch each, ten evaluations
    assert smallest_s < 60 * least < 1.5 * smallest_s + 20
    assert not (tmp_path / "runs").exists()


def test_minutes_that_measuring_alone_uses_up_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timed, "rehearse", lambda recipe, out, report: time.sleep(60))
    arguments = ["run", write_recipe(tmp_path), "--out", str(tmp_path / "runs"), "--minutes", "0.001"]
    assert run_command(arguments) == 2
    assert "too little even to time a few steps" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_tells_the_plan_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsed(monkeypatch)
    arguments = ["run", write_recipe(tmp_path), "--out", str(tmp_path / "runs"), "--dry-run"]
    assert run_command(arguments) == 0
    told = capsys.readouterr().out
    assert f"the run {tmp_path / 'runs' / 'small'} would begin:\n  7 sub-nets" in told
    assert "6 epochs of 1.0 s" in told
    assert "40 evaluations of 50 ms" in told
    assert run_command([*arguments, "--minutes", "0.3"]) == 0
    assert " of 6 epochs of 1.0 s" in capsys.readouterr().out
    assert run_command([*arguments, "--minutes", "0.02"]) == 0
    assert "too much for 0.02 min: it needs --minutes 0." in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]


def test_a_dry_run_refuses_what_the_run_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsed(monkeypatch)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.txt").write_text("mine")
    arguments = ["run", write_recipe(tmp_path), "--dry-run", "--out", str(tmp_path)]
    assert run_command(arguments) == 2
    assert "exists and is no run folder" in capsys.readouterr().err
    assert run_command([*arguments, "--name", "b/c"]) == 2
    assert run_command([*arguments, "--name", "other"]) == 0


@pytest.mark.parametrize("way", [["--dry-run"], ["--minutes", "5"]])
def test_a_disk_that_is_too_full_is_refused_with_both_sizes(
    way: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Usage(NamedTuple):
        free: int

    rehearsed(monkeypatch, num_bytes=3_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2_000_000_000))
    assert run_command(["run", write_recipe(tmp_path), "--out", str(tmp_path / "runs"), *way]) == 2
    assert f"needs about 3,000 MB, but {tmp_path} has 2,000 MB free" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("whole", [1, 2, 7, 64, 1000])
def test_a_long_measurement_is_continued_on_a_straight_line(whole: int) -> None:
    asked: list[int] = []

    def measured(size: int) -> float:
        asked.append(size)
        return 0.1 + 0.02 * size

    assert extrapolated(measured, whole) == pytest.approx(0.1 + 0.02 * whole)
    assert 0.02 * max(asked) <= 4 * ENOUGH_S


def test_a_measurement_that_takes_very_long_is_made_once() -> None:
    asked: list[int] = []

    def measured(size: int) -> float:
        asked.append(size)
        return 10.0 * size

    assert extrapolated(measured, 50) == 500
    assert asked == [1]


@pytest.mark.parametrize(("images", "speed"), [(64, 1.0), (1024, 1.0), (1024, 0.01)])
def test_the_time_of_the_rank_stage_is_that_of_all_its_parts(
    images: int, speed: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    recipe = read_recipe(write_recipe(tmp_path, RECIPE.replace("images = 64", f"images = {images}")))
    splits = load_splits(recipe.data, recipe.model)

    def rank_channels(bench: Workbench) -> None:
        nonlocal now_s
        asked, read = bench.recipe.rank, sum(1 for _ in bench.splits.search_val)
        now_s += speed * (1e-3 * asked.images + 1e-2 * asked.steps + 1e-3 * asked.val_images + 0.1 * read)

    monkeypatch.setattr(estimating, "clock_s", lambda: now_s)
    monkeypatch.setattr(estimating, "rank_channels", rank_channels)
    with create_run(tmp_path / "run", recipe_to_toml(recipe)) as run:
        road = estimating._Road(run, recipe)
        road.splits = road.bench.splits = splits
        found = road._rank_s()
        assert road.bench.splits is splits
    num_val = sum(1 for _ in splits.search_val)
    assert found == pytest.approx(speed * (1e-3 * images + 2 + 2 + 0.1 * num_val), rel=0.3)


def test_a_part_of_the_batches_notes_when_each_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    times_s = iter(range(100))
    monkeypatch.setattr(estimating, "clock_s", lambda: next(times_s))
    part: Any = Part([("a", 1), ("b", 2), ("c", 3)], 2)  # type: ignore[list-item]
    assert len(part) == 2
    assert [list(part), list(part)] == 2 * [[("a", 1), ("b", 2)]]
    assert part.passes == [[0, 1, 2], [3, 4, 5]]


def estimate(recipe: Recipe, folder: Path) -> dict[str, float]:
    rates = rehearse(recipe, folder, write_report).rates
    return dict(make_plan(recipe, rates, Standing()).seconds)


@pytest.mark.slow
def test_the_estimate_of_a_road_is_within_a_factor_of_two_of_what_it_takes(tmp_path: Path) -> None:
    text = RECIPE.replace("epochs = 6", "epochs = 20").replace("evaluations = 40", "evaluations = 200")
    recipe = read_recipe(write_recipe(tmp_path, text))
    before = estimate(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small.toml"]
    start_s = time.monotonic()
    assert run_command(["run", str(tmp_path / "small.toml"), "--out", str(tmp_path)]) == 0
    took_s = time.monotonic() - start_s
    after = estimate(recipe, tmp_path)  # the machine's speed may change meanwhile
    assert min(sum(before.values()), sum(after.values())) / 2 < took_s
    assert took_s < 2 * max(sum(before.values()), sum(after.values()))
    lines = (tmp_path / "small" / "events.jsonl").read_text().splitlines()
    ends = {event["stage"]: event["seconds"] for event in map(json.loads, lines) if event["kind"] == "end"}
    for stage in ("train", "search"):
        assert min(before[stage], after[stage]) / 2 < ends[stage] < 2 * max(before[stage], after[stage])


@pytest.mark.slow
def test_the_quickstart_in_one_minute_walks_the_whole_road_in_time(tmp_path: Path) -> None:
    start_s = time.monotonic()
    assert run_command(["quickstart", "--minutes", "1", "--out", str(tmp_path)]) == 0
    assert time.monotonic() - start_s < 60 + 5
    folder = tmp_path / "quickstart"
    assert (folder / "report.html").is_file()
    assert len(list(folder.glob("subnets/*/proof.json"))) >= 1
    rows = {row["stage"]: row for row in read_json(folder, "plan.json")["stages"]}
    assert 1 <= rows["train"]["amount"] < rows["train"]["asked"] == 40
    assert read_json(folder, "checkpoint.json")["epochs"] == rows["train"]["amount"]
    assert read_json(folder, "front.json")["state"] == "cut short"
    searched = read_json(folder, "front.json")["evaluations"]
    assert run_command(["resume", str(folder)]) == 0  # nothing is left to do
    assert read_json(folder, "front.json")["evaluations"] == searched
    assert run_command(["resume", str(folder), "--minutes", "0.75"]) == 0  # goes on searching, chooses again
    assert read_json(folder, "front.json")["evaluations"] > searched
    assert {
        read_json(path.parent, "metrics.json")["epochs"] for path in folder.glob("subnets/*/proof.json")
    } == {rows["finetune"]["amount"]}


@pytest.mark.slow
def test_time_that_ends_in_training_is_a_clean_stop_and_the_stage_keeps_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RECIPE.replace("epochs = 6", "epochs = 200")
    promised = {name: Rate(rate.start_s / 12, rate.unit_s / 12) for name, rate in RATES.items()}
    rehearsed(monkeypatch, promised)
    start_s = time.monotonic()
    assert (
        run_command(["run", write_recipe(tmp_path, text), "--out", str(tmp_path), "--minutes", "0.25"]) == 1
    )
    assert time.monotonic() - start_s < 15 + 5
    folder, told = tmp_path / "small", capsys.readouterr().err
    assert "the 0.25 minutes are up\nthere is no front yet\neverything computed so far is kept" in told
    assert f"subnet-search resume {folder} --minutes N" in told
    assert (folder / "report.html").is_file()
    place = read_json(folder, "checkpoint.json")
    assert place["step"] > 0
    assert 1 < place["epochs"] < 200
    rehearsed(monkeypatch, RATES)
    assert run_command(["resume", str(folder), "--minutes", "0.1"]) == 2
    assert f"train has begun and keeps its {place['epochs']} epochs" in capsys.readouterr().err
    assert run_command(["resume", str(folder)]) == 0  # what has not begun does what the recipe says
    assert read_json(folder, "checkpoint.json")["epochs"] == place["epochs"]
    rows = {row["stage"]: row for row in read_json(folder, "plan.json")["stages"]}
    assert [rows[stage]["amount"] for stage in ("train", "search", "finetune")] == [place["epochs"], 40, 4]
    front = read_json(folder, "front.json")
    assert (front["state"], front["evaluations"]) == ("complete", 40)


@pytest.mark.slow
def test_time_that_ends_in_fine_tuning_leaves_a_front_and_exit_code_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsed(monkeypatch, {**RATES, "finetune": Rate(0.0, 1e-4)})
    deadlines: list[Deadline] = []
    monkeypatch.setattr(cli, "_deadline", lambda minutes: deadlines.append(Deadline(minutes)) or deadlines[0])
    tune = tuning.finetune

    def ends_soon(*given: Any, **named: Any) -> Any:
        threading.Timer(0.5, deadlines[0]._fire).start()
        return tune(*given, **named)

    monkeypatch.setattr(tuning, "finetune", ends_soon)
    text = RECIPE.replace("[finetune]\nepochs = 4", "[finetune]\nepochs = 4000")
    assert run_command(["run", write_recipe(tmp_path, text), "--out", str(tmp_path), "--minutes", "9"]) == 0
    folder, told = tmp_path / "small", capsys.readouterr().err
    assert "the 9 minutes are up" in told
    assert f"the front so far is in {folder}/front.json" in told
    assert read_json(folder, "front.json")["members"]


@pytest.mark.slow
def test_ctrl_c_within_the_minutes_stays_ctrl_c(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    rehearsed(monkeypatch)
    for heard in gc.callbacks[
        :
    ]:  # Hypothesis counts collections, and Python drops a Ctrl-C that arrives there
        gc.callbacks.remove(heard)
        request.addfinalizer(partial(gc.callbacks.append, heard))
    text = RECIPE.replace("epochs = 6", "epochs = 600")
    main = threading.main_thread().ident or 0
    timer = threading.Timer(4, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    try:
        assert (
            run_command(["run", write_recipe(tmp_path, text), "--out", str(tmp_path), "--minutes", "9"])
            == 130
        )
    finally:
        timer.cancel()
    assert "stopped by Ctrl-C" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))
