"""The road of a progressive search, small: what it leaves, that it can be stopped anywhere, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from search_spaces import SubnetConfig, costs_from_json, space_from_json
from search_spaces.presets import ladders, steps_down
from subnet_search import estimating, load_subnets, pipeline
from subnet_search.cli import run_command
from subnet_search.elastic.supernet import Supernet
from subnet_search.fronts import PATH_SUBNETS
from subnet_search.measure import Latency, LatencyMeter, SupernetEvaluator, count_params, top1_percent
from subnet_search.path_files import PATH, read_path
from subnet_search.paths import foresee_path
from subnet_search.recipe import ProgressiveTable, parse_recipe
from subnet_search.record import Evaluation, Run, open_run
from subnet_search.searchers import reselect
from subnet_search.training import Among, SandwichStep, UniformWidths
from subnet_search.workbench import Workbench
from tests.small import small_splits, small_supernet
from tests.test_pipeline import killed_run

pytestmark = pytest.mark.slow

RECIPE = """
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 4 }
epochs = 3
[device]
threads = 1
[elastic]
groups_per_layer = 4
min_share = 0.25
step = 1
[train]
epochs = 1
lr = 0.05
[rank]
ranker = "l1"
curve = false
[evaluate]
calibration_images = 64
[progressive]
groups = 4
calibration_images = 48
first_images = 32
final_images = 64
smallest_macs_share = 0.5
finalists = 1
epochs = 2
lr = 0.02
[search]
searcher = "progressive"
evaluations = 40
choose = 1
[finetune]
epochs = 0
[export]
formats = ["safetensors"]
"""
ROAD = ["prepare", "teacher", "rank", "train", "path", "join", "search", "finetune", "test", "export"]


def write_recipe(folder: Path, text: str = RECIPE) -> str:
    path = folder / "small.toml"
    path.write_text(text)
    return str(path)


def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the supernet."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_command(["train", write_recipe(folder), "--out", str(folder)]) == 0
    return folder / "small"


@pytest.fixture(scope="module")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("road") / "small")
    assert run_command(["resume", str(folder)]) == 0
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "result"]


def test_the_path_and_joint_training_stand_between_the_supernet_and_the_search(finished: Path) -> None:
    with open_run(finished, write=False) as run:
        assert [event["stage"] for event in run.events() if event["kind"] == "end"] == ROAD
        path = [element.config for element in reselect(read_path(run))]
    assert read_json(finished, PATH)["complete"] is True
    assert read_json(finished, "checkpoint-join.json")["epochs"] == 2
    assert read_json(finished, "checkpoint.json")["epochs"] == 1
    searchers: dict[str, set[SubnetConfig]] = {}
    for line in lines_of(finished):
        searchers.setdefault(line["searcher"], set()).add(SubnetConfig(line["config"]))
    assert set(searchers) == {"uniform", "random", "progressive"}
    assert set(path) <= set.union(*searchers.values())
    assert searchers["progressive"] <= set(path)
    report = (finished / "report.html").read_text("utf-8")
    assert "Joint training epochs" in report
    assert "[progressive]" in report


def test_the_supernets_weights_stay_and_the_joined_ones_are_searched(trained: Path, finished: Path) -> None:
    name = "supernet.safetensors"
    assert (finished / name).read_bytes() == (trained / name).read_bytes()
    before, after = load_file(finished / name), load_file(finished / "joined.safetensors")
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[key], after[key]) for key in before)
    with open_run(finished) as run:
        bench = Workbench(run, pipeline.read_settings(run), lambda _: None)
        assert all(
            torch.equal(tensor, after[key]) for key, tensor in bench.supernet.model.state_dict().items()
        )


def test_the_fronts_subnets_of_the_path_lie_in_one_file_with_their_statistics(finished: Path) -> None:
    with open_run(finished) as run:
        bench = Workbench(run, pipeline.read_settings(run), lambda _: None)
        members = {member["key"]: member["values"] for member in read_json(finished, "front.json")["members"]}
        on_path = [element.config for element in read_path(run) if element.config.key in members]
        assert on_path
        found = load_subnets(run.verify(PATH_SUBNETS), bench.trained_supernet())
        assert set(found.configs) == set(on_path)
        for config in found.configs:
            top1 = top1_percent(found.extract(config).eval(), bench.splits.search_val)
            assert top1 == pytest.approx(
                members[config.key]["top1_percent"], abs=1.0
            )  # bf16 may answer there


def killed_at_path(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json, left = Run.write_json, [3]

    def impatient(self: Run, name: str, content: Any) -> None:
        write_json(self, name, content)
        left[0] -= name == PATH
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "write_json", impatient)


def killed_at_join(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, left = SandwichStep.__call__, [25]  # in the second epoch

    def impatient(self: SandwichStep, supernet: Supernet, *rest: Any) -> float:
        assert isinstance(self.sampling, Among)
        assert self.teacher is not None
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return step(self, supernet, *rest)

    monkeypatch.setattr(SandwichStep, "__call__", impatient)


def killed_at_search(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, left = SupernetEvaluator.__call__, [16]

    def impatient(self: SupernetEvaluator, config: SubnetConfig) -> Evaluation:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return measured(self, config)

    monkeypatch.setattr(SupernetEvaluator, "__call__", impatient)


@pytest.mark.parametrize(
    ("kill", "there", "not_there"),
    [
        pytest.param(killed_at_path, PATH, "checkpoint-join.json", marks=pytest.mark.slow),
        (killed_at_join, "checkpoint-join.json", "joined.safetensors"),
        pytest.param(killed_at_search, "joined.safetensors", PATH_SUBNETS, marks=pytest.mark.slow),
    ],
)
def test_stopped_anywhere_and_resumed_it_equals_the_unbroken_road(
    kill: Callable[[Path, pytest.MonkeyPatch], None],
    there: str,
    not_there: str,
    trained: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copytree(trained, tmp_path / "small")
    with monkeypatch.context() as patch:
        kill(copy, patch)
        assert run_command(["search", str(copy)]) == 130
    assert (copy / there).is_file()
    assert not (copy / not_there).exists()
    assert run_command(["search", str(copy)]) == 0
    assert (copy / "front.json").read_bytes() == (finished / "front.json").read_bytes()
    assert (copy / "joined.safetensors").read_bytes() == (finished / "joined.safetensors").read_bytes()
    assert (copy / PATH_SUBNETS).read_bytes() == (finished / PATH_SUBNETS).read_bytes()
    mine, theirs = read_json(copy, PATH)["elements"], read_json(finished, PATH)["elements"]
    assert [element | {"images": 0} for element in mine] == [element | {"images": 0} for element in theirs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "code"),
    [(PATH, signal.SIGKILL, -9), ("checkpoint-join.json", signal.SIGTERM, 143)],
)
def test_a_process_that_is_killed_and_resumed_equals_the_unbroken_road(
    name: str, number: int, code: int, finished: Path, tmp_path: Path
) -> None:
    assert killed_run(tmp_path, write_recipe(tmp_path), tmp_path / "small" / name, number) == code
    assert run_command(["resume", str(tmp_path / "small")]) == 0
    for same in ("front.json", "joined.safetensors", PATH_SUBNETS):
        assert (tmp_path / "small" / same).read_bytes() == (finished / same).read_bytes()


def test_a_damaged_path_is_named_and_deleting_it_is_a_way_out(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "small")
    file, content = copy / PATH, (copy / PATH).read_bytes()
    file.write_bytes(content.replace(b"true", b"false", 1))
    assert run_command(["resume", str(copy)]) == 2
    told = capsys.readouterr().err
    assert str(file) in told
    assert "Traceback" not in told
    assert len(told.splitlines()) == 1
    file.unlink()
    assert run_command(["resume", str(copy)]) == 0
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("groups = 4\ncal", "groups = 3\ncal", "every layer must fall into 3 equal groups"),
        ("groups = 4\ncal", "groups = 4\nfloor = 0.1\ncal", "at least one of its 4 groups"),
        ("smallest_macs_share = 0.5", "smallest_macs_share = 0.999", "no drop of the ladders leaves"),
        ("choose = 1", 'choose = 1\nlimits = { macs = "40%" }', "no sub-net of the path meets macs <="),
        ("finalists = 1", 'finalists = 1\ndevice = "cuda"', 'device "cuda" is not there'),
    ],
)
def test_a_path_that_cannot_be_is_refused_before_anything_is_computed(
    old: str,
    new: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert RECIPE.count(old) == 1
    recipe = write_recipe(tmp_path, RECIPE.replace(old, new))
    assert run_command(["run", recipe, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "small" / "teacher.safetensors").exists()


def test_a_ranking_or_a_path_of_another_network_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "small")
    with open_run(copy) as run:
        run.delete("joined.safetensors")
        run.write_json(PATH, {**run.read_json(PATH), "context": "0" * 16})
    assert run_command(["search", str(copy)]) == 2
    assert f"{copy}/{PATH} was begun with other weights or settings" in capsys.readouterr().err
    with open_run(copy) as run:
        run.delete("supernet.safetensors")
        ranking = run.read_json("ranking.json")
        run.write_json("ranking.json", {**ranking, "order": {"elsewhere": [1, 0], **ranking["order"]}})
    assert run_command(["search", str(copy)]) == 2
    told = capsys.readouterr().err
    assert "ranking names the unknown group 'elsewhere'" in told
    assert "Traceback" not in told


def with_settings(trained: Path, folder: Path, old: str, new: str) -> Path:
    """A copy of the trained run with another recipe."""
    copy = shutil.copytree(trained, folder / "small")
    with open_run(copy) as run:
        text = run.read("settings.toml").decode()
        assert text.count(old) == 1
        run.write("settings.toml", text.replace(old, new))
    return copy


def test_a_threshold_above_the_whole_net_is_refused_when_that_is_known(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = with_settings(trained, tmp_path, "finalists = 1\n", "finalists = 1\nthreshold = 99.99\n")
    assert run_command(["search", str(copy)]) == 2
    told = capsys.readouterr().err
    assert "no sub-net can be tuned to threshold=99.99 % top-1: the whole net has" in told
    assert "Traceback" not in told


def test_a_threshold_above_a_network_that_comes_trained_is_refused_before_anything_is_trained(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(threshold: float, weights: str, name: str) -> str:
        text = RECIPE.replace("finalists = 1", f"finalists = 1\nthreshold = {threshold}")
        recipe = write_recipe(tmp_path, text.replace("epochs = 3\n", weights, 1))
        assert run_command(["run", recipe, "--out", str(tmp_path), "--name", name]) == 2
        return capsys.readouterr().err

    weights = f'weights = "{trained}/teacher.safetensors"\n'
    assert "to threshold=99.99 % top-1: the whole net has" in told(99.99, weights, "above")
    assert not (tmp_path / "above" / "coverage.json").exists()
    assert not (tmp_path / "above" / "ranking.json").exists()
    never_trained = "epochs = 0\n"  # the supernet's training may get there, so that only the walk can tell
    assert "to threshold=99.99 % top-1: the whole net has" in told(99.99, never_trained, "random")
    assert (tmp_path / "random" / "supernet.safetensors").exists()


def timed_by_size(self: LatencyMeter, net: torch.nn.Module, seed: int = 0) -> Latency:
    """A clock that can be held still: a microsecond for each parameter, and a little by chance."""
    return Latency(count_params(net) / 1000 * (1 + seed % 1000 / 1e5), 0.9, 1.1, 12)


@pytest.mark.slow
def test_loss_for_each_millisecond_saved_is_a_criterion_of_recipes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LatencyMeter, "__call__", timed_by_size)
    change = ('criterion = "loss_per_mac"', 'criterion = "loss_per_ms"')
    unbroken = with_settings(trained, tmp_path / "unbroken", *change)
    assert run_command(["search", str(unbroken)]) == 0
    copy = with_settings(trained, tmp_path / "killed", *change)
    with open_run(copy) as run:
        run.write_json("latency.json", read_json(unbroken, "latency.json"))
    with monkeypatch.context() as patch:
        killed_at_path(copy, patch)
        assert run_command(["search", str(copy)]) == 130
    assert read_json(copy, PATH)["complete"] is False
    assert run_command(["search", str(copy)]) == 0
    mine, theirs = read_json(copy, PATH), read_json(unbroken, PATH)
    assert [one | {"images": 0} for one in mine["elements"]] == [
        one | {"images": 0} for one in theirs["elements"]
    ]
    assert all(one["latencies_ms"][one["dropped"]] > 0 for one in mine["elements"])
    assert mine["timing"] == theirs["timing"] == read_json(unbroken, "latency.json")
    other = shutil.copytree(copy, tmp_path / "other")
    with open_run(other) as run:
        run.delete("joined.safetensors")
        moved = {**mine["timing"], "profile": {**mine["timing"]["profile"], "threads": 99}}
        run.write_json(PATH, {**mine, "timing": moved})
    assert run_command(["search", str(other)]) == 0  # a path that is over can be trained anywhere
    with open_run(other) as run:
        run.delete("joined.safetensors")
        run.write_json(PATH, {**mine, "timing": moved, "complete": False})
    assert run_command(["search", str(other)]) == 2
    told = capsys.readouterr().err
    assert "path.json were measured by other means, on another machine" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_noise_levels_of_another_ranking_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RECIPE.replace('ranker = "l1"', 'ranker = "noise"\nimages = 64\nsteps = 5')
    assert run_command(["search", write_recipe(tmp_path, text), "--out", str(tmp_path)]) == 0
    with open_run(tmp_path / "small") as run:
        run.delete("joined.safetensors")
        ranking = run.read_json("ranking.json")
        levels = {**ranking["levels"], "reward": 2 * ranking["levels"]["reward"]}
        run.write_json("ranking.json", {**ranking, "levels": levels})
    assert run_command(["search", str(tmp_path / "small")]) == 2
    assert (
        "path.json was begun with other weights or settings, those of its ranking" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_weights_tuned_on_the_path_are_those_that_are_trained_jointly(trained: Path, tmp_path: Path) -> None:
    change = "finalists = 1\nrelative_threshold = 0.999\n"
    copy = with_settings(trained, tmp_path, "finalists = 1\n", change)
    with open_run(copy) as run:
        text = run.read("settings.toml").decode()
        head, tail = text.split("[progressive]")
        tail = tail.replace("epochs = 2\n", "epochs = 0\n", 1).replace("tune_steps = 100", "tune_steps = 5")
        run.write("settings.toml", f"{head}[progressive]{tail}")
    assert run_command(["search", str(copy)]) == 0
    tuned = [place for place, e in enumerate(read_json(copy, PATH)["elements"]) if e["tuned"]]
    assert tuned
    last, joined = (
        load_file(copy / f"path-weights-{tuned[-1]}.safetensors"),
        load_file(copy / "joined.safetensors"),
    )
    assert all(torch.equal(joined[name], tensor) for name, tensor in last.items())


@pytest.mark.slow
def test_limits_hold_on_the_path(trained: Path, tmp_path: Path) -> None:
    copy = with_settings(trained, tmp_path, "[search.limits]\n", '[search.limits]\nmacs = "70%"\n')
    assert run_command(["search", str(copy)]) == 0
    space, costs = (
        read(read_json(copy, name))
        for read, name in ((space_from_json, "space.json"), (costs_from_json, "costs.json"))
    )
    bound = 0.7 * costs.macs(space.encode([space.largest()]))[0]  # type: ignore[attr-defined]
    assert all(line["values"]["macs"] <= bound for line in lines_of(copy))
    assert any(line["searcher"] == "progressive" for line in lines_of(copy))


def test_the_searcher_of_a_run_can_be_changed_until_its_search_begins(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(trained, tmp_path / "small")
    assert run_command(["search", str(copy), "--searcher", "quick"]) == 2
    assert "searcher should be 'guided', 'random', 'nsga2'" in capsys.readouterr().err
    assert run_command(["search", str(copy), "--searcher", "uniform"]) == 0
    with open_run(copy, write=False) as run:
        assert pipeline.read_settings(run).search.searcher == "uniform"
        assert run.damaged() == []
    assert {line["searcher"] for line in lines_of(copy)} == {"uniform"}
    assert not (copy / PATH).exists()
    before = (copy / "evaluations.jsonl").read_bytes()
    assert run_command(["search", str(copy), "--searcher", "uniform"]) == 0
    assert run_command(["search", str(copy), "--searcher", "progressive"]) == 2
    told = capsys.readouterr().err
    assert f"run {copy} was searched with uniform, not progressive" in told
    assert "--name" in told
    assert (copy / "evaluations.jsonl").read_bytes() == before


def test_a_path_that_has_begun_keeps_its_searcher(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(finished, tmp_path / "small")
    (copy / "evaluations.jsonl").unlink()
    assert run_command(["search", str(copy), "--searcher", "tpe"]) == 2
    assert "was searched with progressive" in capsys.readouterr().err


def test_a_searcher_on_the_command_line_replaces_the_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RECIPE.replace("groups = 4\ncal", "groups = 3\ncal").replace('"progressive"', '"tpe"')
    recipe = write_recipe(tmp_path, text)
    assert run_command(["search", recipe, "--out", str(tmp_path), "--searcher", "progressive"]) == 2
    assert "every layer must fall into 3 equal groups" in capsys.readouterr().err
    assert run_command(["search", recipe, "--out", str(tmp_path), "--searcher", "nsga9"]) == 2
    assert run_command(["search", str(tmp_path / "small"), "--searcher", "uniform"]) == 0
    settings = parse_recipe((tmp_path / "small" / "settings.toml").read_text())
    assert settings.search.searcher == "uniform"


def test_a_path_that_cannot_be_is_refused_where_a_run_is_given_another_searcher(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = with_settings(trained, tmp_path, 'searcher = "progressive"', 'searcher = "nsga2"')
    with open_run(copy) as run:
        text = run.read("settings.toml").decode()
        run.write("settings.toml", text.replace("\ngroups = 4\n", "\ngroups = 3\n"))
    assert run_command(["search", str(copy), "--searcher", "progressive"]) == 2
    assert "every layer must fall into 3 equal groups" in capsys.readouterr().err
    with open_run(copy, write=False) as run:
        assert pipeline.read_settings(run).search.searcher == "nsga2"


@pytest.mark.slow
def test_us_net_trains_uniform_widths_in_the_order_that_channels_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[SandwichStep] = []
    step = SandwichStep.__call__

    def noted(self: SandwichStep, supernet: Supernet, *rest: Any) -> float:
        seen.append(self)
        return step(self, supernet, *rest)

    monkeypatch.setattr(SandwichStep, "__call__", noted)
    text = RECIPE.replace('"progressive"', '"uniform"').replace('"l1"', '"natural"')
    text = text.replace("[train]\n", '[train]\nsampling = "uniform"\nleast_width = 0.5\ndistill = false\n')
    assert run_command(["search", write_recipe(tmp_path, text), "--out", str(tmp_path)]) == 0
    assert {(one.sampling, one.distill) for one in seen} == {(UniformWidths(0.5), False)}
    orders = read_json(tmp_path / "small", "ranking.json")["order"].values()
    assert all(order == sorted(order) for order in orders)
    assert {line["searcher"] for line in lines_of(tmp_path / "small")} == {"uniform"}


@pytest.mark.slow
def test_a_dry_run_tells_of_the_path_and_of_joint_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run", write_recipe(tmp_path), "--out", str(tmp_path / "runs"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "a path of about" in told
    assert [line.split()[0] for line in told.splitlines() if line[2:6] in ("path", "join")] == [
        "path",
        "join",
    ]
    assert "2 epochs of " in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_dry_run_counts_the_timing_of_a_path(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_s = 0.0

    def slow(self: LatencyMeter, net: torch.nn.Module, seed: int = 0) -> Latency:
        nonlocal passed_s
        passed_s += 100
        return timed_by_size(self, net, seed)

    monkeypatch.setattr(LatencyMeter, "__call__", slow)
    monkeypatch.setattr(estimating, "clock_s", lambda: time.perf_counter() + passed_s)
    text = RECIPE.replace("finalists = 1", 'finalists = 1\ncriterion = "loss_per_ms"')
    recipe = parse_recipe(text)
    rates = estimating.rehearse(recipe, tmp_path, lambda folder: None).rates
    space, costs = (
        read(read_json(trained, name))
        for read, name in ((space_from_json, "space.json"), (costs_from_json, "costs.json"))
    )
    looks = foresee_path(space, costs, recipe.progressive).final_looks  # type: ignore[arg-type]
    assert looks > 5
    assert 100 * looks < rates["path"].start_s < 200 * looks


GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "progressive.md").read_text("utf-8")


def test_the_guides_recipes_are_accepted_and_every_setting_is_told_of() -> None:
    recipes = [parse_recipe(block) for block in re.findall(r"```toml\n(.*?)```", GUIDE, flags=re.DOTALL)]
    assert [recipe.search.searcher for recipe in recipes] == ["progressive", "uniform"]
    common = {"memory_mib", "device", "seed"}
    missing = [
        name for name in ProgressiveTable.model_fields if name not in common and f"`{name}`" not in GUIDE
    ]
    assert missing == []


def test_the_guides_lines_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"supernet": small_supernet(), "splits": small_splits()}
    exec(compile(code.replace("epochs=10", "epochs=1"), "progressive.md", "exec"), names)
    row = names["supernet"].space.encode([names["path"][-1]])
    assert sum(p.numel() for p in names["smallest"].parameters()) == names["supernet"].costs.params(row)[0]


def test_an_impossible_path_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_recipe(tmp_path, RECIPE.replace("groups = 4\ncalibration", "groups = 7\ncalibration"))
    assert run_command(["run", bad, "--out", str(tmp_path)]) == 2
    assert "7 equal groups" in capsys.readouterr().err
    assert run_command(["resume", str(tmp_path / "small")]) == 2
    assert "7 equal groups" in capsys.readouterr().err
    assert (
        run_command(["rank", write_recipe(tmp_path), "--out", str(tmp_path)]) == 0
    )  # the mended recipe replaces it


def test_deleted_subnets_of_the_path_are_written_again(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy")
    front = (copy / "front.json").read_bytes()
    before = (copy / PATH_SUBNETS).read_bytes()
    (copy / PATH_SUBNETS).unlink()
    assert run_command(["resume", str(copy)]) == 0
    assert (copy / PATH_SUBNETS).read_bytes() == before
    assert (copy / "front.json").read_bytes() == front


def test_subnets_that_a_smaller_one_beats_are_left_out(finished: Path) -> None:
    with open_run(finished, write=False) as run:
        walked = read_path(run)
        chosen = Workbench(run, parse_recipe(RECIPE), print).path()
        everything = Workbench(
            run, parse_recipe(RECIPE.replace("finalists = 1", "finalists = 1\nreselect = false")), print
        ).path()
    assert everything == [element.config for element in walked]
    assert chosen == [element.config for element in reselect(walked)]


@pytest.mark.slow
def test_noise_levels_say_which_drops_to_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def find(
        supernet: Supernet, *rest: object, predict: Callable[[SubnetConfig], float], latency: None
    ) -> None:
        space = supernet.space
        drops = steps_down(space, space.largest(), ladders(space))
        seen.extend(predict(config) for _, config in [("", space.largest()), *drops])
        raise KeyboardInterrupt

    monkeypatch.setattr("subnet_search.stages.find_path", find)
    text = RECIPE.replace('ranker = "l1"', 'ranker = "noise"\nimages = 64\nsteps = 20')
    assert run_command(["search", write_recipe(tmp_path, text), "--out", str(tmp_path)]) == 130
    levels = json.loads((tmp_path / "small" / "ranking.json").read_text())["levels"]
    assert seen[0] == 0
    assert all(increase > 0 for increase in seen[1:])
    largest = max(*levels["blocks"].values(), *(max(units) for units in levels["units"].values()))
    assert min(seen[1:]) >= levels["reward"] / (2 * largest**2) * (1 - 1e-9)
