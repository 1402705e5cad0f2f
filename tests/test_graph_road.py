"""The whole road for a transformer, whose sub-nets are sources of their own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from subnet_search import stages
from subnet_search.cli import run_command
from subnet_search.measure import SupernetEvaluator
from subnet_search.rebuilding import load_subnet
from subnet_search.training import SandwichStep
from tests.test_pipeline import killed_run

pytestmark = pytest.mark.slow

RECIPE = """
[model]
name = "tests.vit:tiny_vit"
epochs = 1
[data]
source = "tests.small:small_splits"
[device]
threads = 1
[elastic]
min_share = 0.25
step = 4
[train]
epochs = 2
[rank]
ranker = "taylor"
curve = false
[search]
evaluations = 8
limits = { macs = "80%" }
choose = 1
[finetune]
epochs = 1
[export]
formats = ["safetensors"]
"""
FORMATS = ["safetensors", "pt2"]
if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
    FORMATS.append("onnx")


def write_recipe(folder: Path, text: str = RECIPE) -> str:
    path = folder / "vit.toml"
    path.write_text(text)
    return str(path)


def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("road")
    assert run_command(["run", write_recipe(folder), "--out", str(folder)]) == 0
    return folder / "vit"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in all formats."""
    folder = tmp_path_factory.mktemp("exported")
    recipe = write_recipe(folder, RECIPE.replace('["safetensors"]', json.dumps(FORMATS)))
    assert run_command(["run", recipe, "--out", str(folder)]) == 0
    return folder / "vit"


def subnet_of(folder: Path) -> Path:
    """The folder of the one sub-net that is chosen."""
    (found,) = folder.glob("subnets/*")
    return found


def test_the_road_leaves_a_proved_subnet_with_its_source(exported: Path) -> None:
    assert (exported / "report.html").is_file()
    coverage = read_json(exported, "coverage.json")
    assert coverage["form"] == "graph"
    assert coverage["freedoms"] == ["MLP width", "depth", "heads", "stream width"]
    folder = subnet_of(exported)
    proof = read_json(folder, "proof.json")
    assert (proof["form"], proof["passed"]) == ("graph", True)
    assert f"subnets/{folder.name}/model.py" in read_json(exported, "checksums.json")
    told = {"config.json", "metrics.json", "model.py", "network.json", "proof.json"}
    assert {path.name for path in folder.iterdir()} == told | {f"net.{name}" for name in FORMATS}


def test_the_files_of_a_subnet_answer_alike(exported: Path) -> None:
    folder, x = subnet_of(exported), torch.randn(3, 1, 8, 8)
    net = load_subnet(folder)
    assert torch.equal(net(x), torch.export.load(folder / "net.pt2").module()(x))


@pytest.mark.parametrize("name", ["changed", "deleted"])
def test_a_source_that_is_damaged_is_named_and_deleting_it_is_a_way_out(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "vit")
    file = subnet_of(copy) / "model.py"
    content = file.read_bytes()
    if name == "changed":
        file.write_bytes(content + b"import nowhere\n")
        assert run_command(["resume", str(copy)]) == 2
        assert f"corrupt: {file} changed after being written" in capsys.readouterr().err
    file.unlink()
    assert run_command(["export", str(copy)]) == 0
    assert file.read_bytes() == content


def test_the_files_of_any_evaluated_subnet_can_be_made(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "vit")
    lines = [json.loads(line) for line in (copy / "evaluations.jsonl").read_text().splitlines()]
    key = next(line["key"] for line in lines if not (copy / "subnets" / line["key"]).exists())
    assert run_command(["export", str(copy), "--key", key]) == 0
    assert read_json(copy / "subnets" / key, "proof.json")["passed"] is True
    assert load_subnet(copy / "subnets" / key)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def stopping(place: Any, name: str, calls: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Presses Ctrl-C when something is called for the so-manieth time."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        function, left = getattr(place, name), [calls]

        def impatient(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        monkeypatch.setattr(place, name, impatient)

    return patch


@pytest.mark.parametrize(
    ("stop", "there", "not_there"),
    [
        pytest.param(
            stopping(SupernetEvaluator, "__call__", 5),
            "evaluations.jsonl",
            "subnets",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            stopping(SandwichStep, "__call__", 5),
            "checkpoint.json",
            "supernet.safetensors",
            marks=pytest.mark.slow,
        ),
        pytest.param(stopping(stages, "prove", 1), "subnets", "subnets/*/proof.json", marks=pytest.mark.slow),
    ],
)
def test_stopped_anywhere_and_resumed_it_equals_the_unbroken_road(
    stop: Callable[[pytest.MonkeyPatch], None],
    there: str,
    not_there: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        stop(patch)
        assert run_command(["run", write_recipe(tmp_path), "--out", str(tmp_path)]) == 130
    folder = tmp_path / "vit"
    assert (folder / there).exists()
    assert not list(folder.glob(not_there))
    assert run_command(["resume", str(folder)]) == 0
    same_road(folder, finished)


def same_road(folder: Path, finished: Path) -> None:
    key = subnet_of(finished).name
    names = ["supernet.safetensors", "front.json"]
    names += [f"subnets/{key}/{name}" for name in ("model.py", "net.safetensors", "proof.json")]
    assert [name for name in names if (folder / name).read_bytes() != (finished / name).read_bytes()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "code"),
    [("checkpoint.json", signal.SIGTERM, 143), ("subnets", signal.SIGKILL, -9)],
)
def test_a_process_that_is_killed_and_resumed_equals_the_unbroken_road(
    name: str, number: int, code: int, finished: Path, tmp_path: Path
) -> None:
    assert killed_run(tmp_path, write_recipe(tmp_path), tmp_path / "vit" / name, number) == code
    assert run_command(["resume", str(tmp_path / "vit")]) == 0
    same_road(tmp_path / "vit", finished)


def test_inspect_says_which_form_runs_and_what_training_goes_without(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(["inspect", "tests.vit:tiny_vit", "--input", "1x8x8"]) == 0
    table = capsys.readouterr().out
    assert "elastic: MLP width, depth, heads, stream width" in table
    assert (
        "sub-nets run the graph of its operations; training runs the graph of evaluation: dropout stays, but without "
        "StochasticDepth (2x)"
    ) in table
    assert "blocks.0.attention.qkv" in table
    assert "heads; 1 writers" in table


@pytest.mark.slow
def test_inspect_of_a_published_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", "torchvision:vit_b_32", "--json"]) == 0
    coverage = json.loads(capsys.readouterr().out)
    assert coverage["form"] == "graph"
    kinds = [group["freedom"] for group in coverage["groups"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {"stream width": 1, "heads": 12, "MLP width": 12}
    assert len(coverage["blocks"]) == 12
    assert coverage["reachable_macs_share"] > 0.99
    assert coverage["smallest"]["macs"] < 0.01 * coverage["largest"]["macs"]
    assert [entry["path"] for entry in coverage["fixed"]] == ["heads.head"]
