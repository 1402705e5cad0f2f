"""A kit goes to a board and its times come back."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictors import LatencyPredictor
from search_spaces import InvalidInput, config_from_json
from search_spaces.files import config_to_json, costs_to_json, space_to_json
from subnet_search import Budget, make_evaluator, search
from subnet_search.cli import run_command
from subnet_search.elastic import make_elastic
from subnet_search.kit import choose_nets, kit_of
from subnet_search.kit_boards import board_predictor
from subnet_search.kit_results import read_results
from subnet_search.record import create_run, open_run
from subnet_search.settings import ElasticSettings, EvaluateSettings
from tests.small import EXAMPLE, small_net, small_splits

COUNT = 4
RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 4 }
[data]
source = "digits"
[elastic]
step = 2
[device]
threads = 1
"""
BOARD_RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 4 }
epochs = 1
[data]
source = "digits"
[elastic]
step = 2
[rank]
ranker = "l1"
curve = false
[train]
epochs = 1
[device]
threads = 1
board = "phone"
[search]
objectives = ["top1_percent", "predicted_latency_ms"]
limits = { predicted_latency_ms = "50%" }
evaluations = 14
choose = 1
[finetune]
epochs = 1
[export]
formats = ["safetensors"]
"""
# stands in for a board's own program: prints a millisecond for every ten thousand bytes of the file
BENCH = "import os, sys; print('warming up'); print(os.path.getsize(sys.argv[1]) / 1e4)"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def measure(board: Path, *options: str, expected: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "measure.py", *options], cwd=board, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done.stderr
    return done.stdout + done.stderr


def fake_kit(folder: Path) -> Path:
    """A kit whose files are of known sizes, in a folder with its runner."""
    nets = [{"net": f"n{i:02d}", "files": {"onnx": f"nets/n{i:02d}.onnx"}} for i in range(3)]
    (folder / "nets").mkdir(parents=True)
    for i, net in enumerate(nets):
        (folder / str(net["files"]["onnx"])).write_bytes(b"x" * 10_000 * (3 - i))  # type: ignore[index]
    (folder / "kit.json").write_text(json.dumps({"checksum": "abc", "formats": ["onnx"], "nets": nets}))
    (folder / "measure.py").write_text(
        files("subnet_search").joinpath("kit_runner.py.txt").read_text("utf-8")
    )
    (folder / "bench.py").write_text(BENCH)
    return folder


def test_the_runner_needs_nothing_but_python_where_a_program_measures(tmp_path: Path) -> None:
    board = fake_kit(tmp_path / "board")
    command = f"{sys.executable} -S bench.py {{file}}"
    measure(
        board,
        "--command",
        command,
        "--nets",
        "n00",
        "n02",
        "--rounds",
        "3",
        "--seconds",
        "0",
        "--device",
        "pi",
    )
    rows = read(board / "results.csv")
    assert [(row["net"], float(row["latency_ms"]), row["kit"], row["device"]) for row in rows] == [
        ("n00", 3.0, "abc", "pi"),
        ("n02", 1.0, "abc", "pi"),
    ]
    broken = f"{sys.executable} -S missing.py {{file}}"
    shutil.copy(board / "bench.py", board / "missing.py")
    (board / "missing.py").write_text("import sys; sys.exit(4) if 'n01' in sys.argv[1] else print(2)")
    out = measure(board, "--command", broken, "--unit", "us", "--rounds", "3", "--seconds", "0")
    assert "1/1 n01: exit code 4" in out  # the others are there already
    assert read(board / "results.csv")[2]["reason"].startswith("exit code 4")
    assert "no net n99" in measure(board, "--nets", "n99", expected=1)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    (folder / "tiny.toml").write_text(RECIPE)
    assert run_command(["kit", str(folder / "tiny.toml"), "--out", str(folder), "--count", str(COUNT)]) == 0
    return folder / "tiny"


@pytest.mark.slow
def test_a_kits_nets_are_measured_in_another_process_and_learnt_from(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "board"
    shutil.copytree(run_folder / "kits" / "1", board)
    measure(board, "--rounds", "5", "--seconds", "0")
    rows = read(board / "results.csv")
    assert [row["net"] for row in rows] == [f"n{i:02d}" for i in range(COUNT)]
    assert all(float(row["low_ms"]) <= float(row["latency_ms"]) <= float(row["high_ms"]) for row in rows)
    with open_run(run_folder, write=False) as run:
        kit = kit_of(run)
    space_ends = [config_from_json(net["config"]) for net in kit["nets"][:2]]
    assert kit["nets"][0]["macs"] == max(net["macs"] for net in kit["nets"])
    assert space_ends[0] != space_ends[1]
    assert (
        run_command(["kit", str(run_folder), "--import", str(board / "results.csv"), "--device", "pi"]) == 0
    )
    assert "board pi: 4 measurements" in capsys.readouterr().out
    with open_run(run_folder, write=False) as run, pytest.raises(InvalidInput, match="has 4 measurements"):
        board_predictor(run, "pi")


@pytest.mark.slow
def test_a_recipe_searches_for_a_board_by_what_a_kit_brought_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run_folder = tmp_path / "phone.toml", tmp_path / "phone"
    recipe.write_text(BOARD_RECIPE)
    command = ["run", str(recipe), "--out", str(tmp_path)]
    assert run_command(command) == 2
    told = " ".join("".join(capsys.readouterr()).split())
    assert "nothing is known of board 'phone' yet, and the search needs it" in told
    assert "knows no board 'phone'" in told
    assert run_command([*command, "--dry-run"]) == 0
    assert run_command([*command, "--dry-run", "--minutes", "9"]) == 0
    assert run_command(["kit", str(recipe), "--out", str(tmp_path), "--count", "16"]) == 0
    nets = json.loads((run_folder / "kits" / "1" / "kit.json").read_text())["nets"]
    lines = [f"{net['net']},{1 + net['macs'] / 1e4}" for net in nets]
    (tmp_path / "results.csv").write_text("net,latency_ms\n" + "\n".join(lines) + "\n")
    assert run_command(["kit", str(run_folder), "--import", str(tmp_path / "results.csv")]) == 0
    assert "board phone: 16 measurements" in capsys.readouterr().out
    assert run_command(command) == 0
    front = json.loads((run_folder / "front.json").read_text())
    whole_ms = 1 + nets[0]["macs"] / 1e4
    for member in front["members"]:
        assert member["values"]["predicted_latency_ms"] <= 0.5 * whole_ms * 1.02
    assert "Predicted latency" in (run_folder / "report.html").read_text()
    assert run_command(["kit", str(run_folder), "--front"]) == 0  # what was predicted goes to the board


@pytest.mark.slow
def test_a_limit_that_no_sub_net_is_expected_to_meet_on_a_board_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "phone.toml"
    recipe.write_text(BOARD_RECIPE.replace('"50%"', "1e-6"))
    assert run_command(["kit", str(recipe), "--out", str(tmp_path), "--count", "10"]) == 0
    nets = json.loads((tmp_path / "phone" / "kits" / "1" / "kit.json").read_text())["nets"]
    table = "\n".join(["net,ms", *(f"{net['net']},{1 + net['macs'] / 1e4}" for net in nets)])
    (tmp_path / "results.csv").write_text(table + "\n")
    assert run_command(["kit", str(tmp_path / "phone"), "--import", str(tmp_path / "results.csv")]) == 0
    assert run_command(["run", str(recipe), "--out", str(tmp_path)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "no sub-net has predicted_latency_ms <= 1e-06; the fastest is expected to take" in told
    assert not (tmp_path / "phone" / "board.json").exists()  # no search began


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--count", "1"), "a kit has at least 2 nets"),
        (("--formats", "onx"), "a kit's format is one of onnx, pt2, pte, got 'onx'; did you mean 'onnx'"),
        (("--front",), "has no front yet"),
        (("--import", "nothing.csv"), "nothing.csv cannot be read"),
        (("--import", "nothing.csv", "--number", "7"), "has no kit 7, only 1"),
    ],
)
def test_what_a_kit_cannot_be_is_refused(
    run_folder: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["kit", str(run_folder), *options]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_kit_holds_both_ends_and_nets_that_tell_much() -> None:
    supernet = make_elastic(small_net(), EXAMPLE, ElasticSettings(step=2))
    space = supernet.space
    chosen = choose_nets(supernet, 8)
    assert chosen[:2] == [space.largest(), space.smallest()]
    assert len(set(chosen)) == 8
    macs = supernet.costs.macs(space.encode(chosen))
    fitted = LatencyPredictor(space, supernet.costs).fit(chosen, (1 + macs / 1e4).tolist())
    assert not set(choose_nets(supernet, 8, fitted)[2:]) & set(chosen)


def test_the_runner_is_plain_python_of_any_version_3() -> None:
    """No annotations, f-strings or walrus: boards have old Pythons."""
    import ast

    text = files("subnet_search").joinpath("kit_runner.py.txt").read_text("utf-8")
    tree: Any = ast.parse(text, feature_version=(3, 5))
    assert not any(isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.NamedExpr) for node in ast.walk(tree))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert top <= set(sys.stdlib_module_names)


def test_the_guides_table_and_functions_work(tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "guides" / "kit.md").read_text("utf-8")
    table, *_ = re.findall(r"```csv\n(.*?)```", guide, flags=re.DOTALL)
    supernet = make_elastic(small_net(), EXAMPLE, ElasticSettings(step=2))
    space, costs = supernet.space, supernet.costs
    configs = choose_nets(supernet, 16)
    macs = costs.macs(space.encode(configs))
    nets = [
        {"net": f"n{i:02d}", "key": c.key, "config": config_to_json(c), "macs": int(m), "files": {}}
        for i, (c, m) in enumerate(zip(configs, macs, strict=True))
    ]
    kit = {"checksum": "one", "formats": ["onnx"], "nets": nets}
    assert [
        one.ms
        for one in read_results(table, {**kit, "nets": [{**n, "macs": 1e8} for n in nets]}).measurements
    ]
    ms = 1e-2 + macs / 1e6
    with create_run(tmp_path / "run", "") as run:
        run.write_json("space.json", space_to_json(space))
        run.write_json("costs.json", costs_to_json(costs))
        found = [{"kit": "one", "net": n["net"], "config": n["config"], "noise_ms": None} for n in nets]
        measured = [{**one, "latency_ms": float(value)} for one, value in zip(found, ms, strict=True)]
        run.write_json("boards/pi4.json", {"device": "pi4", "about": {}, "measurements": measured})
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL):
        exec(code, names)
    names["Budget"] = lambda evaluations: Budget(evaluations=4)
    names["make_evaluator"] = lambda net, splits, objectives: make_evaluator(
        net, splits, objectives, EvaluateSettings(calibration_images=32)
    )
    limit = float(np.median(ms))
    names["search"] = lambda *args, limits, **kwargs: search(
        *args, limits=dict.fromkeys(limits, limit), **kwargs
    )
    result = names["search_for"]("pi4", tmp_path / "run", supernet, small_splits())
    assert all(e.values[1] <= limit for e in result.front)
    assert len(result.evaluations) == 4
    moved = names["from_others"](
        space, costs, {"pi4": (configs, ms.tolist())}, configs[:10], (2 * ms[:10]).tolist()
    )
    assert np.abs(moved.predict(configs[10:]) / (2 * ms[10:]) - 1).mean() < 0.05
