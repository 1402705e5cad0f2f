"""The dynamic stage of a run and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from search_spaces import InvalidInput
from subnet_search.cli import run_command
from subnet_search.data import load_splits
from subnet_search.deciding import change_dynamic, make_dynamic
from subnet_search.dynamic.layer_channel import LayerChannelNet
from subnet_search.dynamic.slimming import SlimmingNet
from subnet_search.dynamic.storing import load_slimming
from subnet_search.dynamic.storing_layers import load_layer_channel
from subnet_search.measure import top1_percent
from subnet_search.pipeline import advance, begin, read_settings
from subnet_search.recipe import parse_recipe
from subnet_search.record import open_run
from subnet_search.settings import DynamicSettings

RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
epochs = 4
options = { width = 8 }
[data]
source = "digits"
gate_share = 0.2
[elastic]
step = 2
[rank]
ranker = "l1"
curve = false
[train]
epochs = 4
lr = 0.05
[device]
threads = 1
[search]
searcher = "random"
evaluations = 4
[export]
formats = ["safetensors", "onnx"]
[dynamic]
epochs = 6
points = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    recipe = parse_recipe(RECIPE).model_copy(update={"name": "digits"})
    with begin(recipe, out) as run:
        advance(run, "search")
        make_dynamic(run)
    return out / "digits"


@pytest.mark.slow
def test_the_stored_points_are_what_the_net_read_back_does(folder: Path) -> None:
    with open_run(folder, write=False) as run:
        recipe, told = read_settings(run), run.read_json("dynamic/dynamic.json")
        assert not any("checkpoint" in name for name in run.names() if name.startswith("dynamic/"))
    splits = load_splits(recipe.data, recipe.model)
    assert len(told["points"]) == 2
    ways = json.loads((folder / "dynamic" / "onnx" / "ways.json").read_text("utf-8"))
    assert ways["price"] == pytest.approx(told["points"][0]["price"])
    for number, point in enumerate(told["points"]):
        net = load_slimming(folder / "dynamic", number).net
        assert isinstance(net, SlimmingNet)
        assert top1_percent(net, splits.search_val) == pytest.approx(point["top1_percent"], abs=0.3)
        assert top1_percent(net, splits.test) == pytest.approx(point["test"]["top1_percent"], abs=0.3)
        with torch.inference_mode():
            ways = torch.cat([net.run(images)[1] for images, _ in splits.search_val])
        assert point["mean_macs"] == pytest.approx(np.mean([net.macs[way] for way in ways]), rel=0.01)
    with np.load(folder / "dynamic" / "examples.npz", allow_pickle=False) as images:
        assert images["easiest_0"].dtype == np.uint8


@pytest.mark.slow
def test_a_net_that_is_there_is_not_made_again_and_other_settings_replace_it(folder: Path) -> None:
    place = folder / "dynamic" / "dynamic.json"
    before = place.stat().st_mtime_ns
    with open_run(folder) as run:
        make_dynamic(run)
        assert place.stat().st_mtime_ns == before
        make_dynamic(run, {"method": "lc", "epochs": 2})
        assert not run.has("dynamic/gates.safetensors")
        points = run.read_json("dynamic/dynamic.json")["points"]
    net = load_layer_channel(folder / "dynamic").net
    assert isinstance(net, LayerChannelNet)
    splits = load_splits(parse_recipe(RECIPE).data, parse_recipe(RECIPE).model)
    assert top1_percent(net, splits.search_val) == pytest.approx(points[0]["top1_percent"], abs=0.3)


@pytest.mark.slow
def test_the_command_refuses_what_cannot_be_and_says_the_way_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, place = str(folder), folder / "dynamic" / "dynamic.json"
    before = place.read_bytes()
    assert run_command(["dynamic", run, "--method", "ds", "--share", "0.01"]) == 2
    assert "cannot be reached: the routes cost" in capsys.readouterr().err
    assert run_command(["dynamic", run, "--method", "ds", "--place", "linear"]) == 2
    assert "It can stand after" in capsys.readouterr().err
    assert run_command(["dynamic", run, "--method", "dss"]) == 2
    assert "method" in capsys.readouterr().err
    assert run_command(["dynamic", run, "--method", "lc", "--share", "0.01"]) == 2
    told = capsys.readouterr().err
    assert "cannot be reached: without any block it is" in told
    assert "layers and channels" not in told  # the bar of a training that is never begun
    assert place.read_bytes() == before  # the net that is there stays


def test_settings_of_a_gate_are_checked_at_birth() -> None:
    for wrong in ({"count": 1}, {"targets": (0.0,)}, {"least_share": 1.0}, {"hard": "try"}, {"points": 0}):
        with pytest.raises(InvalidInput):
            DynamicSettings(**wrong)


def test_another_method_takes_no_places_and_milliseconds_of_the_recipe() -> None:
    gates = DynamicSettings(places=("layer1",), targets=(0.5,))
    assert change_dynamic(gates, {"method": "lc"}) == DynamicSettings(method="lc", targets=(0.5,))
    assert change_dynamic(gates, {"method": "ds", "epochs": 3}).places == ("layer1",)
    assert change_dynamic(gates, {"method": "lc", "places": ["x"]}).places == ("x",)
    timed = DynamicSettings(method="lc", unit="latency_ms", targets=(5.0,))
    assert change_dynamic(timed, {"method": "ds"}) == DynamicSettings()


@pytest.mark.parametrize("given", [["--method", "foo"], ["--epochs", "0"], ["--share", "nan"]])
def test_options_that_cannot_be_are_refused_before_any_stage(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digits.toml").write_text(RECIPE)
    code = run_command(["dynamic", str(tmp_path / "digits.toml"), "--out", str(tmp_path / "runs"), *given])
    assert code == 2
    assert not (tmp_path / "runs").exists()
    assert given[0].removeprefix("--") in capsys.readouterr().err or given[0] == "--share"
