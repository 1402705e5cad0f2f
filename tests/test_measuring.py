"""A run that measures latency and a metric of its own, from the recipe to the report."""

from __future__ import annotations

import json
import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from search_spaces import config_from_json
from subnet_search import measuring
from subnet_search.cli import run_command
from subnet_search.data import digits
from subnet_search.measure import Latency, LatencyMeter, answers, top1_percent
from subnet_search.measuring import open_meter, values_on
from subnet_search.pipeline import read_settings
from subnet_search.rebuilding import load_subnet
from subnet_search.recipe import parse_recipe
from subnet_search.record import Objective, Run, create_run, open_run
from subnet_search.settings import DataSettings, DeviceSettings
from subnet_search.workbench import Workbench
from tests.small import EXAMPLE, small_net, small_splits

RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 4 }
[elastic]
step = 2
[train]
epochs = 1
[rank]
images = 64
steps = 20
val_images = 64
[device]
threads = 1
batch_size = 2
[evaluate]
calibration_images = 128
[evaluate.metrics.worst_class_percent]
function = "metrics_of_a_test:worst_class_percent"
goal = "max"
[search]
objectives = ["worst_class_percent", "latency_ms", "top1_percent"]
evaluations = 10
choose_under = [{ latency_ms = "200%" }, { worst_class_percent = -1 }]
[finetune]
epochs = 1
[export]
formats = ["safetensors"]
"""


def worst_class_percent(logits: Tensor, targets: Tensor) -> Tensor:
    right = (logits.argmax(dim=1) == targets).double()
    return 100 * torch.stack([right[targets == label].mean() for label in targets.unique()]).min()


@pytest.fixture(autouse=True, scope="module")
def own_metrics() -> Iterator[types.ModuleType]:
    module = types.ModuleType("metrics_of_a_test")
    module.worst_class_percent = worst_class_percent  # type: ignore[attr-defined]
    sys.modules["metrics_of_a_test"] = module
    yield module
    del sys.modules["metrics_of_a_test"]


def write_recipe(folder: Path, text: str = RECIPE) -> str:
    (folder / "timed.toml").write_text(text)
    return str(folder / "timed.toml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, threads = tmp_path_factory.mktemp("timed"), torch.get_num_threads()
    try:
        assert run_command(["run", write_recipe(folder), "--out", str(folder)]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder / "timed"


def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.mark.slow
def test_the_journal_holds_latencies_with_half_their_interval(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    results = [line for line in lines if line["kind"] == "result"]
    assert len(results) == 10
    for line in results:
        assert set(line["values"]) == {"worst_class_percent", "latency_ms", "top1_percent"}
        assert line["values"]["worst_class_percent"] <= line["values"]["top1_percent"]
        assert 0 < line["spread"]["latency_ms"] < line["values"]["latency_ms"]
        assert line["spread"]["top1_percent"] == line["spread"]["worst_class_percent"] == 0.0


@pytest.mark.slow
def test_the_largest_net_has_the_latency_that_all_others_are_measured_against(finished: Path) -> None:
    stored = read_json(finished, "latency.json")
    assert stored["profile"]["batch_size"] == 2
    lines = [json.loads(line) for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["kind"] == "result")  # the largest net comes first
    assert first["values"]["latency_ms"] == stored["reference"]["median_ms"]
    assert read_json(finished, "metrics.json")["test"]["latency_ms"] == stored["reference"]["median_ms"]


@pytest.mark.slow
def test_every_metric_of_a_chosen_net_is_that_of_its_file(finished: Path) -> None:
    splits = digits(DataSettings())
    folders = sorted((finished / "subnets").iterdir())
    assert folders
    for folder in folders:
        metrics = read_json(folder, "metrics.json")
        assert {*metrics["before"]} == {*metrics["after"]} == {*metrics["test"]}
        assert (
            metrics["before"]["latency_ms"]
            == metrics["after"]["latency_ms"]
            == metrics["test"]["latency_ms"]
            > 0
        )
        net = load_subnet(folder)
        for split, batches in (("after", splits.search_val), ("test", splits.test)):
            found = float(worst_class_percent(*answers(net, batches)))
            assert metrics[split]["worst_class_percent"] == pytest.approx(found)


@pytest.mark.slow
def test_limits_on_latency_and_on_metrics_choose_from_the_front(finished: Path) -> None:
    members = {member["key"]: member["values"] for member in read_json(finished, "front.json")["members"]}
    chosen = {
        config_from_json(read_json(folder, "config.json")).key for folder in (finished / "subnets").iterdir()
    }
    most_accurate = max(members, key=lambda key: members[key]["worst_class_percent"])
    fastest = min(members, key=lambda key: members[key]["latency_ms"])
    assert members.keys() >= chosen
    assert {members[key]["worst_class_percent"] for key in chosen} >= {
        members[most_accurate]["worst_class_percent"]
    }
    assert fastest in chosen


@pytest.mark.slow
def test_the_report_shows_both(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Worst class" in page
    assert "Latency" in page


def test_the_guides_recipes_are_accepted_and_its_metric_is_the_worst_class() -> None:
    guide = (Path(__file__).parent.parent / "docs/guides/latency-and-metrics.md").read_text("utf-8")
    recipes = re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)
    wanted = [parse_recipe('[model]\nname = "a:b"\n' + text).search.objectives for text in recipes]
    assert [names[1] for names in wanted] == ["latency_ms", "worst_class_percent"]
    code, _ = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    logits, targets = torch.randn(60, 5), torch.randint(5, (60,))
    assert names["worst_class_percent"](logits, targets) == worst_class_percent(logits, targets)


@pytest.mark.slow
def test_a_resumed_run_measures_in_the_milliseconds_of_its_beginning(finished: Path) -> None:
    with open_run(finished, write=False) as run:
        bench = Workbench(run, read_settings(run), lambda message: None)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert (
                bench.meter.reference.median_ms
                == read_json(finished, "latency.json")["reference"]["median_ms"]
            )
        finally:
            torch.set_num_threads(threads)


def test_a_metric_that_is_nan_for_a_net_is_left_out_and_told() -> None:
    def moody(logits: Tensor, targets: Tensor) -> float:
        return math.nan

    told: list[str] = []
    metrics = {
        name: Objective(name, "max", function=f) for name, f in (("a", moody), ("b", worst_class_percent))
    }
    found = values_on(small_net().eval(), small_splits().test, metrics, told.append)
    assert list(found) == ["top1_percent", "b"]
    assert found["top1_percent"] == top1_percent(small_net(), small_splits().test)
    assert told == ["  left out: metric 'a' must be a finite number, got nan"]


ONE = DeviceSettings()


class Clockless(LatencyMeter):
    """Measures nothing; its reference takes 5 ms."""

    def __init__(
        self, reference: torch.nn.Module, example: Tensor, profile: DeviceSettings, *, known: Latency | None
    ) -> None:
        super().__init__(reference, example, profile, known=known or Latency(5.0, 4.0, 6.0, 30))


def test_the_whole_networks_latency_is_measured_once_for_each_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "LatencyMeter", Clockless)
    run: Run = create_run(tmp_path / "run", "")
    assert open_meter(run, small_net(), EXAMPLE, ONE).reference.median_ms == 5.0
    stored = run.read_json("latency.json")
    run.write_json("latency.json", {**stored, "reference": {**stored["reference"], "median_ms": 4.5}})
    assert open_meter(run, small_net(), EXAMPLE, ONE).reference.median_ms == 4.5
    assert open_meter(run, small_net(), EXAMPLE, DeviceSettings(batch_size=8)).reference.median_ms == 5.0
    assert run.read_json("latency.json")["profile"]["batch_size"] == 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ":worst_class_percent",
            ":worst_class",
            "no callable 'worst_class'; did you mean 'worst_class_percent'",
        ),
        ("metrics_of_a_test:", "no_such_module:", "the metric worst_class_percent 'no_such_module:"),
        (":worst_class_percent", ":broken", "metric 'worst_class_percent' fails: KeyError: 'no'"),
        pytest.param(
            "{ worst_class_percent = -1 }",
            '{ worst_class_percent = "50%" }',
            "a percentage must be of macs",
            marks=pytest.mark.slow,
        ),
        ('"latency_ms", "top1', '"latency", "top1', "unknown objective 'latency'; did you mean 'latency_ms'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(
    old: str,
    new: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    own_metrics: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(logits: Tensor, targets: Tensor) -> float:
        raise KeyError("no")

    monkeypatch.setattr(own_metrics, "broken", broken, raising=False)
    monkeypatch.setattr(measuring, "LatencyMeter", Clockless)
    assert RECIPE.count(old) >= 1
    recipe = write_recipe(tmp_path, RECIPE.replace(old, new, 1))
    code = run_command(["run", recipe, "--out", str(tmp_path)])
    told = capsys.readouterr().err
    assert (code, message in told) == (2, True), told
    assert not (tmp_path / "timed" / "coverage.json").exists()
