"""The whole road, small: what it leaves, that it can be stopped anywhere, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from search_spaces import (
    InvalidInput,
    SubnetConfig,
    SubnetSearchError,
    config_from_json,
    costs_from_json,
    space_from_json,
)
from subnet_search import exporting, pipeline, stages
from subnet_search.cli import run_command
from subnet_search.data import Splits, TensorBatches, digits, splits_from_arrays
from subnet_search.fronts import read_front
from subnet_search.measure import SupernetEvaluator
from subnet_search.rebuilding import load_subnet
from subnet_search.recipe import parse_recipe
from subnet_search.record import Evaluation, Objective, ParetoFront, open_run
from subnet_search.settings import DataSettings
from subnet_search.workbench import Workbench

RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 4 }
epochs = 1
[elastic]
step = 2
[train]
epochs = 1
[rank]
images = 64
steps = 20
val_images = 64
[evaluate]
calibration_images = 128
[search]
evaluations = 14
limits = { macs = "90%" }
choose = 2
[finetune]
epochs = 1
"""
ROAD = ["prepare", "teacher", "rank", "train", "search", "finetune", "test", "export"]


def write_recipe(folder: Path, text: str = RECIPE) -> str:
    path = folder / "small.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("road")
    assert run_command(["run", write_recipe(folder), "--out", str(folder)]) == 0
    return folder / "small"


def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def chosen_of(folder: Path) -> list[SubnetConfig]:
    return [config_from_json(read_json(path, "config.json")) for path in sorted(folder.glob("subnets/*"))]


def results_of(folder: Path) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    return [(line["n"], line["key"], line.get("values")) for line in lines if line["kind"] == "result"]


def test_the_run_folder_holds_what_the_design_promises(finished: Path) -> None:
    files = (
        "settings.toml space.json costs.json coverage.json device.json splits.json checksums.json teacher.safetensors "
        "supernet.safetensors checkpoint.safetensors checkpoint.json ranking.json evaluations.jsonl front.json "
        "events.jsonl report.html"
    )
    assert [name for name in files.split() if not (finished / name).is_file()] == []
    assert list((finished / "figures").glob("*.png"))
    for config in chosen_of(finished):
        names = {path.name for path in (finished / "subnets" / config.key).iterdir()}
        written = {"net.safetensors", "net.pt2", "network.json"}
        assert names == written | {"config.json", "proof.json", "metrics.json"}
        assert (finished / "statistics" / f"{config.key}.safetensors").is_file()
    assert [
        event["stage"] for event in open_run(finished, write=False).events() if event["kind"] == "end"
    ] == ROAD


def test_every_evaluated_subnet_is_canonical_within_the_limit_and_evaluated_once(finished: Path) -> None:
    space = space_from_json(read_json(finished, "space.json"))
    costs = costs_from_json(read_json(finished, "costs.json"))
    lines = [json.loads(line) for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    results = [line for line in lines if line["kind"] == "result"]
    assert len(results) == 14
    assert len({line["key"] for line in results}) == 14
    limit = 0.9 * costs.macs(space.encode([space.largest()]))[0]
    for line in results:
        config = SubnetConfig(line["config"])
        assert space.canonical(config) == config
        assert line["values"]["macs"] == costs.macs(space.encode([config]))[0] <= limit
    assert {"uniform", "random", "guided"} <= {line["searcher"] for line in results}


def test_the_front_is_that_of_the_journal_by_brute_force(finished: Path) -> None:
    front = read_json(finished, "front.json")
    goals = {objective["name"]: objective["goal"] for objective in front["objectives"]}
    rows = [values for _, _, values in results_of(finished)]

    def losses(values: dict[str, float]) -> list[float]:
        return [value if goals[name] == "min" else -value for name, value in sorted(values.items())]

    def beaten(values: dict[str, float]) -> bool:
        mine = losses(values)
        return any(o != mine and all(a <= b for a, b in zip(o, mine, strict=True)) for o in map(losses, rows))

    members = {member["key"] for member in front["members"]}
    assert members == {key for _, key, values in results_of(finished) if not beaten(values)}
    assert front["hypervolume"] > 0
    assert {config.key for config in chosen_of(finished)} <= members


def test_every_chosen_subnet_is_proved_and_its_file_gives_the_accuracy_on_record(finished: Path) -> None:
    test = digits(DataSettings()).test
    for config in chosen_of(finished):
        folder = finished / "subnets" / config.key
        assert read_json(folder, "proof.json")["passed"] is True
        program = torch.export.load(folder / "net.pt2").module()
        with torch.no_grad():
            right = torch.cat([program(images).argmax(dim=1) == labels for images, labels in test])
        metrics = read_json(folder, "metrics.json")
        assert metrics["test"]["top1_percent"] == pytest.approx(100 * right.double().mean().item())
        shares = [metrics[when]["top1_percent"] / 100 for when in ("before", "after")]
        error = (sum(share * (1 - share) for share in shares) / 359) ** 0.5
        assert shares[1] >= shares[0] - 2 * error - 1e-9  # what tuning makes clearly worse is not taken
        stored = sum(
            tensor.numel()
            for name, tensor in load_file(folder / "net.safetensors").items()
            if "bn" not in name
        )
        assert stored <= read_json(folder, "proof.json")["params"]


def test_a_finished_run_with_equal_settings_does_nothing_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(bench: Workbench) -> None:
        raise AssertionError("a stage that was done ran again")

    monkeypatch.setattr(pipeline, "STAGES", tuple(stages.Stage(s.name, s.done, never) for s in stages.STAGES))
    recipe = write_recipe(tmp_path)
    assert run_command(["run", recipe, "--out", str(finished.parent)]) == 0
    assert run_command(["resume", str(finished)]) == 0
    assert run_command(["search", str(finished)]) == 0


def test_other_settings_on_an_existing_run_are_refused_with_what_differs(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace("evaluations = 14", "evaluations = 15"))
    assert run_command(["run", recipe, "--out", str(finished.parent)]) == 2
    told = capsys.readouterr().err
    assert "[search] evaluations: 14 -> 15" in told
    assert "--name" in told
    assert "--overwrite" in told


def test_overwrite_deletes_a_run_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="no run folder"):
        pipeline.begin(parse_recipe('name = "small"\n' + RECIPE), tmp_path, overwrite=True)
    assert (tmp_path / "small" / "thesis.txt").read_text() == "mine"
    pipeline.begin(parse_recipe('name = "other"\n' + RECIPE), tmp_path).close()
    (tmp_path / "other" / "settings.toml").write_text("corrupt")
    pipeline.begin(parse_recipe('name = "other"\n' + RECIPE), tmp_path, overwrite=True).close()
    assert parse_recipe((tmp_path / "other" / "settings.toml").read_text()).search.evaluations == 14


def test_a_second_process_on_the_run_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(finished):
        assert run_command(["resume", str(finished)]) == 2
    assert f"process {os.getpid()} on host" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["search.limits]", "[search.choose_under]]"])
def test_an_infeasible_limit_is_refused_before_training_with_the_nearest_feasible_value(
    limit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(
        tmp_path, RECIPE.replace('limits = { macs = "90%" }', "") + f"[{limit}\nmacs = 10\n"
    )
    assert run_command(["run", recipe, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "nearest feasible value" in told
    assert not (tmp_path / "small" / "supernet.safetensors").exists()
    mended = write_recipe(tmp_path, RECIPE)
    pipeline.begin(parse_recipe('name = "small"\n' + Path(mended).read_text()), tmp_path).close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("{ top1_percent = 101 }", "a limit on top1_percent must be from 0 to 100, got 101"),
        (
            "{ latency_ms = 1e-6 }",
            "no sub-net has latency_ms <= 1e-06; the fastest possible takes .* raise the limit",
        ),
    ],
)
@pytest.mark.parametrize("key", ["limits = {}", "choose_under = [{}]"])
def test_a_limit_on_what_is_measured_that_cannot_be_met_is_refused_before_training(
    limits: str, message: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = 'objectives = ["top1_percent", "latency_ms"]\n' + key.replace("{}", limits)
    recipe = write_recipe(tmp_path, RECIPE.replace('limits = { macs = "90%" }', asked))
    assert run_command(["run", recipe, "--out", str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "small" / "teacher.safetensors").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[finetune]\ndevice = "cuda"\n', 'device "cuda" is not there'),
        ('[export]\nformats = ["onnx"]\n', "not installed here"),
        ('[data]\nsource = "lonely:other_size"\n', "split 'search_val': inputs must have the size"),
        (
            '[data]\nsource = "lonely:one_hot"\n',
            "split 'train': targets must be class numbers [B] of type int64",
        ),
        ('[data]\nsource = "lonely:lost"\n', "split 'train' cannot be read: FileNotFoundError: no images"),
    ],
)
def test_what_a_late_stage_would_refuse_is_refused_before_anything_is_computed(
    table: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "lonely", lonely_data())
    recipe = write_recipe(tmp_path, RECIPE.replace("[finetune]\nepochs = 1\n", "") + table)
    assert run_command(["run", recipe, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small" / "coverage.json").exists()


def lonely_data() -> types.ModuleType:
    """A module with data sources that have something wrong."""

    class Lost:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[Any]:
            raise FileNotFoundError("no images")

    def other_size() -> Splits:
        return Splits(*(TensorBatches(torch.zeros(4, 1, s, s), torch.zeros(4).long(), 2) for s in (8, 12, 8)))

    def one_hot() -> Splits:
        return Splits(*(TensorBatches(torch.zeros(4, 1, 8, 8), torch.eye(4), 2) for _ in range(3)))

    module = types.ModuleType("lonely")
    vars(module).update(one_hot=one_hot, other_size=other_size, lost=lambda: Splits(Lost(), Lost(), Lost()))
    return module


class Striding(nn.Sequential):
    """Costs more or less with the same space."""

    def __init__(self, stride: int) -> None:
        convolutions = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride))
        super().__init__(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 2}, "other costs than the recipe's model and images have now"),
        ({"count": 60}, "the data changed since run .* other images in search_val, test, train, so that"),
    ],
)
def test_what_changed_under_a_run_is_refused_when_it_goes_on(
    change: dict[str, int],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = {"stride": 1, "count": 90}

    def data() -> Splits:
        pixels = np.random.default_rng(0).integers(0, 256, (now["count"], 8, 8), dtype=np.uint8)
        arrays = {"x": pixels, "y": np.arange(now["count"]) % 10}
        return splits_from_arrays(arrays, DataSettings(gate_share=0.0))

    module = types.ModuleType("moving")
    vars(module).update(net=lambda: Striding(now["stride"]), data=data)
    monkeypatch.setitem(sys.modules, "moving", module)
    own = RECIPE.replace("subnet_search.small_models:digits_cnn", "moving:net").replace("options", "# ")
    recipe = write_recipe(tmp_path, own + '[data]\nsource = "moving:data"\n')
    assert run_command(["train", recipe, "--out", str(tmp_path)]) == 0
    now |= change
    assert run_command(["resume", str(tmp_path / "small")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_cure_and_keeps_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace("[train]\n", "[train]\nlr = 1e30\nwarmup_epochs = 0\n"))
    assert run_command(["run", recipe, "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "failed:" in told
    assert "smaller lr" in told
    assert f"subnet-search resume {tmp_path / 'small'}" in told
    assert (tmp_path / "small" / "coverage.json").is_file()


def test_truncated_weights_are_refused_and_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    weights = copy / "supernet.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (copy / "front.json").unlink()
    assert run_command(["search", str(copy)]) == 2
    told = capsys.readouterr().err
    assert "supernet.safetensors" in told
    assert "Traceback" not in told


def test_the_rank_stage_compares_rankings_stores_the_curves_and_takes_the_best(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    before = read_json(copy, "ranking.json")
    (copy / "ranking.json").unlink()
    assert run_command(["rank", str(copy)]) == 0
    assert read_json(copy, "ranking.json") == before
    told = capsys.readouterr().err
    curve = before["curve"]
    assert list(curve["top1_percent"]) == ["noise", "l1", "bn_scale", "taylor", "random"]
    assert curve["images"] == 64  # val_images
    means = {name: sum(top1) / len(top1) for name, top1 in curve["top1_percent"].items()}
    assert means[before["ranker"]] == max(mean for name, mean in means.items() if name != "random")
    for name, mean in means.items():
        assert re.search(rf"{name} .* {mean:.2f}{' <- taken' if name == before['ranker'] else ''}\n", told)
    assert (finished / "figures" / "slices.png").is_file()


def test_a_ranker_by_name_is_taken_without_curves_if_none_are_wanted(tmp_path: Path) -> None:
    text = RECIPE.replace("[rank]\n", '[rank]\nranker = "l1"\ncurve = false\n')
    assert run_command(["rank", write_recipe(tmp_path, text), "--out", str(tmp_path)]) == 0
    assert set(read_json(tmp_path / "small", "ranking.json")) == {"ranker", "order", "weights"}


@pytest.mark.slow
def test_a_ranking_of_an_earlier_version_is_read(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    with open_run(copy) as run:
        new = run.read_json("ranking.json")
        run.write_json("ranking.json", {name: new[name] for name in ("ranker", "weights", "order")})
        for name in ("supernet.safetensors", "checkpoint.json", "checkpoint.safetensors"):
            run.delete(name)
    assert run_command(["train", str(copy)]) == 0
    assert run_command(["report", str(copy)]) == 0
    assert "alone, without a comparison" in (copy / "report.html").read_text("utf-8")


def test_a_ranking_of_other_weights_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    with open_run(copy) as run:
        run.write_json("ranking.json", {**run.read_json("ranking.json"), "weights": "0" * 64})
    (copy / "supernet.safetensors").unlink()
    assert run_command(["train", str(copy)]) == 2
    assert "other weights than teacher.safetensors" in capsys.readouterr().err


def test_a_run_folder_of_another_space_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    with open_run(copy) as run:
        space = run.read_json("space.json")
        space["knobs"][0]["choices"] = space["knobs"][0]["choices"][1:]
        run.write_json("space.json", space)
    (copy / "ranking.json").unlink()
    assert run_command(["rank", str(copy)]) == 2
    assert "another space" in capsys.readouterr().err


@pytest.mark.slow
def test_any_evaluated_subnet_can_be_rebuilt_by_its_key(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    chosen = {config.key for config in chosen_of(copy)}
    key = next(key for _, key, _ in results_of(copy) if key not in chosen)
    assert run_command(["export", str(copy), "--key", key]) == 0
    assert read_json(copy / "subnets" / key, "proof.json")["passed"] is True
    assert run_command(["export", str(copy), "--key", "zzz"]) == 2


def test_a_subnet_can_be_rebuilt_through_the_recipe_too(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "small")
    arguments = ["export", write_recipe(tmp_path), "--out", str(tmp_path), "--key", "zzz"]
    assert run_command(arguments) == 2
    assert "has evaluated no sub-net 'zzz'" in capsys.readouterr().err


def killed_run(folder: Path, recipe: str, when: Path, number: int) -> int:
    """Starts the run in a process of its own and sends it a signal as soon as the file `when` is there."""
    command = [sys.executable, "-m", "subnet_search", "run", recipe, "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline_s = time.monotonic() + 120
    while process.poll() is None and not when.exists() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert b"Traceback" not in told
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("checkpoint.json", signal.SIGTERM, 143),
        ("teacher.safetensors", signal.SIGKILL, -9),
        ("evaluations.jsonl", signal.SIGINT, 130),
        ("front.json", signal.SIGKILL, -9),
        ("subnets", signal.SIGTERM, 143),
    ],
)
def test_a_run_stopped_anywhere_and_resumed_equals_the_unbroken_one(
    name: str, number: int, code: int, finished: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path)
    assert killed_run(tmp_path, recipe, tmp_path / "small" / name, number) == code
    assert run_command(["resume", str(tmp_path / "small")]) == 0
    assert results_of(tmp_path / "small") == results_of(finished)
    assert read_json(tmp_path / "small", "front.json") == read_json(finished, "front.json")
    mine = load_file(tmp_path / "small" / "supernet.safetensors")
    assert all(
        torch.equal(mine[key], tensor) for key, tensor in load_file(finished / "supernet.safetensors").items()
    )
    assert chosen_of(tmp_path / "small") == chosen_of(finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "costs.json",
        "KEY/net.safetensors",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("splits.json", "coverage.json", "front.json", "KEY/config.json", "KEY/net.pt2")
        ),
    ],
)
def test_a_damaged_file_is_named_and_deleting_it_as_the_message_says_is_a_way_out(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "small")
    key = chosen_of(copy)[0].key
    file = copy / name.replace("KEY", f"subnets/{key}")
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert run_command(["resume", str(copy)]) == 2
    assert str(file) in capsys.readouterr().err
    file.unlink()
    assert run_command(["run", write_recipe(tmp_path), "--out", str(tmp_path)]) == 0
    assert file.suffix == ".pt2" or file.read_bytes() == content
    times_ns = [(folder / "supernet.safetensors").stat().st_mtime_ns for folder in (copy, finished)]
    assert times_ns[0] == times_ns[1]  # not trained again
    assert all(
        "test" in read_json(copy / "subnets" / config.key, "metrics.json") for config in chosen_of(finished)
    )
    assert results_of(copy) == results_of(finished)


def test_lines_that_a_finished_journal_has_lost_are_evaluated_again(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    journal = copy / "evaluations.jsonl"
    journal.write_bytes(journal.read_bytes()[:-2000])
    assert run_command(["search", str(copy)]) == 0
    assert results_of(copy) == results_of(finished)
    assert (copy / "front.json").read_bytes() == (finished / "front.json").read_bytes()


def test_a_run_that_is_done_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["search", str(finished)]) == 0
    assert f"{finished}: search is done" in capsys.readouterr().err


def test_a_subnet_is_loaded_from_a_copy_of_its_folder(finished: Path, tmp_path: Path) -> None:
    config = chosen_of(finished)[0]
    folder = shutil.copytree(finished / "subnets" / config.key, tmp_path / "alone")
    net = load_subnet(folder)
    assert sum(p.numel() for p in net.parameters()) == read_json(folder, "proof.json")["params"]
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(net(x), torch.export.load(folder / "net.pt2").module()(x))


def test_a_folder_that_holds_no_subnet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="give the folder of an exported sub-net"):
        load_subnet(tmp_path)
    (tmp_path / "network.json").write_text("[]")
    with pytest.raises(InvalidInput, match="must name name, options, layers and skipped"):
        load_subnet(tmp_path)


def test_a_subnet_that_failed_its_proof_is_proved_again(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    name = f"subnets/{chosen_of(copy)[0].key}/proof.json"
    with open_run(copy) as run:
        run.write_json(name, {**run.read_json(name), "passed": False})
    assert run_command(["export", str(copy)]) == 0
    assert read_json(copy, name)["passed"] is True


def test_a_ranker_that_the_network_has_no_norms_for_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.ModuleType("normless")
    vars(module)["net"] = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    monkeypatch.setitem(sys.modules, "normless", module)
    text = RECIPE.replace("subnet_search.small_models:digits_cnn", "normless:net")
    text = text.replace("options = { width = 4 }\n", "").replace("[rank]\n", '[rank]\nranker = "bn_scale"\n')
    assert run_command(["run", write_recipe(tmp_path, text), "--out", str(tmp_path)]) == 2
    assert "needs batch norm with a scale, and this network has none" in capsys.readouterr().err
    assert not (tmp_path / "small" / "teacher.safetensors").exists()


def test_a_limit_that_no_member_meets_does_not_keep_others_from_being_chosen(finished: Path) -> None:
    with open_run(finished) as run:
        told: list[str] = []
        recipe = pipeline.read_settings(run)
        bench = Workbench(run, recipe, told.append)
        least = int(bench.costs.macs(bench.space.encode([bench.space.smallest()]))[0])
        found = read_front(run)
        front = ParetoFront(found.objectives, tuple(m for m in found if m.values[1] > least))
        loosest = max(member.values[1] for member in front)

        def choose(*bounds: float) -> list[Any]:
            under = tuple({"macs": bound} for bound in bounds)
            search = recipe.search.model_copy(update={"choose_under": under})
            bench.recipe = recipe.model_copy(update={"search": search})
            return stages._best_under_each(bench, front)

        assert len(choose(least, loosest)) == 1
        assert "left out: no sub-net of the front meets" in told[0]
        with pytest.raises(SubnetSearchError, match="no sub-net of the front meets"):
            choose(least)


def test_the_knee_is_chosen_besides_on_request(finished: Path) -> None:
    with open_run(finished) as run:
        told: list[str] = []
        recipe = pipeline.read_settings(run)
        bench = Workbench(run, recipe, told.append)
        search = recipe.search.model_copy(update={"choose": 1, "choose_knee": True})
        bench.recipe = recipe.model_copy(update={"search": search})
        objectives = (Objective("top1_percent", "max"), Objective("macs", "min"))
        configs = bench.space.sample(np.random.default_rng(0), 3)
        points = zip(configs, [(50.0, 1.0), (88.0, 2.0), (90.0, 9.0)], strict=True)
        bent = [Evaluation(config, values) for config, values in points]
        front = ParetoFront.of(objectives, bent)
        chosen = stages.choose_members(bench, front)
        assert [member.values[0] for member in chosen] == [90.0, 88.0]
        assert told == [f"  the front's knee: {configs[1].key}"]
        front = ParetoFront.of(objectives, bent[:1])
        assert stages.choose_members(bench, front) == bent[:1]
        assert told[1:] == ["  the front has no knee"]


def test_the_order_after_fine_tuning_is_told(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    with open_run(folder) as run:
        told: list[str] = []
        stages.choose_and_tune(Workbench(run, pipeline.read_settings(run), told.append))
    after = {p.name: read_json(p, "metrics.json")["after"]["top1_percent"] for p in folder.glob("subnets/*")}
    assert told[0] == "  by accuracy after fine-tuning (search-validation):"
    places = sorted(after.values(), reverse=True)
    assert [f"{after[line.split()[1][:-1]]:.2f} %" in line for line in told[1:]] == [True] * len(after)
    assert [after[line.split()[1][:-1]] for line in told[1:]] == places


def test_a_search_stopped_in_its_midst_leaves_the_front_so_far_and_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    journal = copy / "evaluations.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:10]))
    measured, calls = SupernetEvaluator.__call__, 0

    def impatient(self: SupernetEvaluator, config: SubnetConfig) -> Evaluation:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return measured(self, config)

    with monkeypatch.context() as patch:
        patch.setattr(SupernetEvaluator, "__call__", impatient)
        assert run_command(["search", str(copy)]) == 130
    front, found = read_json(copy, "front.json"), results_of(copy)
    assert (front["state"], front["evaluations"], len(found)) == ("searching", 7, 7)
    objectives = [Objective(o["name"], o["goal"]) for o in front["objectives"]]
    configs = {key: SubnetConfig({"n": n}) for n, key, _ in found}
    values = [Evaluation(configs[key], tuple(v[o.name] for o in objectives)) for _, key, v in found]
    best = {member.config for member in ParetoFront.of(objectives, values)}
    assert {member["key"] for member in front["members"]} == {k for k, c in configs.items() if c in best}
    assert run_command(["search", str(copy)]) == 0
    assert (copy / "front.json").read_bytes() == (finished / "front.json").read_bytes()
