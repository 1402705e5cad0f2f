"""Settings are checked at birth, and a recipe's errors say line, rule and nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from search_spaces.errors import InvalidInput
from subnet_search.recipe import (
    TABLES,
    Recipe,
    differences,
    parse_recipe,
    quickstart_recipe,
    read_recipe,
    recipe_to_toml,
)
from subnet_search.searchers.searcher import SEARCHERS
from subnet_search.settings import (
    OBJECTIVES,
    DataSettings,
    ElasticSettings,
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    ModelSettings,
    ProgressiveSettings,
    SearchSettings,
    Settings,
    TrainSettings,
)

MINIMAL = '[model]\nname = "torchvision:resnet18"\n'
METRIC = '[evaluate.metrics.worst_class]\nfunction = "mine:worst"\ngoal = "max"\n'


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainSettings, {"epochs": -1}, "epochs should be greater than or equal to 0, got -1"),
        (TrainSettings, {"epochs": "3"}, "epochs should be a valid integer, got '3'"),
        (TrainSettings, {"epochs": True}, "epochs should be a valid integer, got True"),
        (TrainSettings, {"lr": float("nan")}, "lr should be a finite number, got nan"),
        (TrainSettings, {"lr": 0}, "lr should be greater than 0, got 0"),
        (TrainSettings, {"epoch": 3}, "'epoch' is not a setting; did you mean 'epochs'"),
        (TrainSettings, {"zzz": 3}, "'zzz' is not a setting; known are epochs, lr"),
        (TrainSettings, {"precision": "fp16"}, "precision should be 'fp32' or 'bf16', got 'fp16'"),
        (TrainSettings, {"device": "gpu"}, "device must be \"auto\", .* got 'gpu'"),
        (ElasticSettings, {"min_share": 1.5}, "min_share should be less than or equal to 1, got 1.5"),
        (ElasticSettings, {"step": 0}, "step should be greater than or equal to 1, got 0"),
        (ModelSettings, {}, "'name' is required"),
        (DataSettings, {"gate_share": 1.0}, "gate_share should be less than 1, got 1.0"),
        (
            SearchSettings,
            {"limits": {"macs": "a"}},
            "must be a number or a percentage such as \"25%\", got 'a'",
        ),
        (SearchSettings, {"limits": {"macs": True}}, "must be a number or a percentage"),
        (
            ProgressiveSettings,
            {"groups": 4, "step": 8},
            "step may not stand beside groups = 4; give one of the two",
        ),
        (
            ProgressiveSettings,
            {"threshold": 70.0, "relative_threshold": 0.9},
            "relative_threshold may not stand beside threshold = 70",
        ),
        (
            ProgressiveSettings,
            {"criterion": "speed"},
            "criterion should be 'accuracy', 'loss', 'loss_per_mac' or 'loss_per_ms'",
        ),
        (SearchSettings, {"objectives": ("macs", "macs")}, "may name an objective only once"),
        (SearchSettings, {"objectives": ()}, "at least 1 item"),
        (
            SearchSettings,
            {"objectives": ("macs", "params"), "racing": True},
            "racing compares sub-nets by top1_percent, which must be an objective",
        ),
        (
            SearchSettings,
            {"objectives": ("top1_percent", "f1_percent"), "racing": True},
            "can have no metric of your own beside it",
        ),
        (SearchSettings, {"searcher": "nsga"}, "searcher should be 'guided', 'random', 'nsga2'.* got 'nsga'"),
        (SearchSettings, {"seed": 2**32}, "seed should be less than 4294967296"),
        (FinetuneSettings, {"teacher_share": 2.0}, "teacher_share should be less than or equal to 1"),
        (
            EvaluateSettings,
            {"metrics": {"f1": {"function": "mine:f1", "goal": "up"}}},
            "metrics.f1: goal should be 'max' or 'min', got 'up'",
        ),
        (EvaluateSettings, {"metrics": {"f1": {"function": "mine:f1"}}}, "metrics.f1: 'goal' is required"),
        (
            EvaluateSettings,
            {"metrics": {"f1": {"function": "mine.f1", "goal": "max"}}},
            "metrics.f1: function must be \"package.module:function\", got 'mine.f1'",
        ),
        (
            EvaluateSettings,
            {"metrics": {"macs": {"function": "mine:f1", "goal": "min"}}},
            "metrics may not be named 'macs': that is measured already",
        ),
        (
            EvaluateSettings,
            {"metrics": {"a b": {"function": "mine:f1", "goal": "min"}}},
            "metrics: a name must be up to 60 letters, digits and _, a letter first, got 'a b'",
        ),
        (
            ExportSettings,
            {"formats": ("tflite",)},
            "formats.0 should be 'safetensors', 'pt2' or 'onnx', got 'tflite'",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_the_rule_and_the_value(
    kind: type[Settings], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        kind(**values)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidInput, match=r"lr should .*; epochs|epochs should .*; lr"):
        TrainSettings(epochs=-1, lr=-1)


def test_a_recipe_may_name_every_searcher_and_every_objective_that_there_is() -> None:
    assert get_args(SearchSettings.model_fields["searcher"].annotation) == tuple(SEARCHERS)
    for name in OBJECTIVES:
        parse_recipe(MINIMAL + f'[device]\nboard = "pi"\n[search]\nobjectives = ["{name}"]\n')


def test_objectives_and_limits_may_name_metrics_of_ones_own() -> None:
    search = "[search]\nobjectives = ['worst_class', 'latency_ms']\nlimits = { worst_class = 50, latency_ms = '50%' }\n"
    recipe = parse_recipe(MINIMAL + METRIC + search)
    assert recipe.evaluate.metrics["worst_class"].goal == "max"


def test_a_wrong_item_is_not_told_as_a_missing_one_besides() -> None:
    with pytest.raises(InvalidInput) as refusal:
        DataSettings(std=[0.0])
    assert str(refusal.value) == "DataSettings: std.0 should be greater than 0, got 0.0"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainSettings().epochs = 3  # type: ignore[misc]


def test_a_percentage_is_a_limit() -> None:
    assert SearchSettings(limits={"macs": "25%", "params": 10}).limits == {"macs": "25%", "params": 10}


def test_the_seed_and_the_device_hold_for_stages_without_their_own() -> None:
    recipe = parse_recipe("seed = 7\n" + MINIMAL + '[device]\nname = "cpu"\n[search]\nseed = 3\n')
    assert (recipe.train.seed, recipe.search.seed, recipe.finetune.device) == (7, 3, "cpu")


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (MINIMAL + "[trian]\nlr = 1\n", ["line 3: 'trian' is not a setting; did you mean 'train'?"]),
        (
            MINIMAL + "[train]\n\nepocs = 1\n",
            ["line 5: [train] 'epocs' is not", "'epochs'?"],
        ),
        (MINIMAL + "[train]\nepochs = 1\nlr = -1\n", ["line 5: [train] lr should be greater than 0, got -1"]),
        (MINIMAL + "train = 3\n", ["line 3: [model] 'train' is not a setting"]),
        ("train = 3\n" + MINIMAL, ["line 1: 'train' must be a table [train]"]),
        ("train.epochs = -3\n" + MINIMAL, ["line 1: [train] epochs should"]),
        ("train = {epochs = -3}\n" + MINIMAL, ["line 1: [train] epochs should"]),
        (MINIMAL + "[search.limits]\nmacs = 'x'\n", ["line 3: [search] limits.macs must be a number"]),
        ("[train]\nlr = 1.0\n", ["[model]", "'name' is required"]),
        ("seed = -1\n" + MINIMAL, ["line 1: seed should be greater than or equal to 0, got -1"]),
        (MINIMAL + "[train]\nepochs = 'x'\n[rank]\nimages = 0\n", ["line 4: [train]", "line 6: [rank]"]),
        ("[model\n", ["not valid TOML", "line 1"]),
        (MINIMAL + "lr = 1" + "0" * 5000, ["not valid TOML", "digits"]),
        ("name = " + "[" * 100_000, ["not valid TOML", "nested too deeply"]),
        (
            MINIMAL + f"[elastic]\ninclude = {[1] * 99}\n",
            ["line 4: [elastic] include.19", "and 79 problems more"],
        ),
        (
            MINIMAL + "[search]\nevaluations = 9\nobjectives = ['top1', 'macs']\n",
            ["line 5: [search] unknown objective 'top1'; did you mean 'top1_percent'?", "known are"],
        ),
        (
            MINIMAL + METRIC + "[search]\nobjectives = ['worst_clas']\n",
            ["line 7: [search] unknown objective 'worst_clas'; did you mean 'worst_class'?"],
        ),
        (
            MINIMAL + "[search]\nlimits = { latency_ms = 3.0 }\n",
            ["line 4: [search] a limit must be on one of", "got 'latency_ms'; add it to the objectives"],
        ),
        (
            MINIMAL + "[search]\nchoose_under = [{ mcas = 3.0 }]\n",
            ["line 4: [search] a limit must be on one of", "did you mean 'macs'?"],
        ),
        (
            MINIMAL + "[search]\nobjectives = ['top1_percent', 'predicted_latency_ms']\n",
            [
                "line 4: [search] objectives name predicted_latency_ms, which needs a board; add [device] board"
            ],
        ),
        (
            MINIMAL + "[device]\nboard = '../pi'\n",
            [
                "line 4: [device] board must be up to 60 letters, digits, _, - and ., no . in front, got '../pi'"
            ],
        ),
        (
            MINIMAL + "[evaluate.metrics.f1]\nfunction = 'mine:f1'\ngoal = 'up'\n",
            ["line 3: [evaluate] metrics.f1: goal should be 'max' or 'min', got 'up'"],
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_line(text: str, messages: list[str]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_recipe(text, "a.toml")
    for message in ("a.toml", *messages):
        assert message in str(refusal.value)


@pytest.mark.parametrize(
    "recipe", [parse_recipe(MINIMAL), parse_recipe(MINIMAL + METRIC), quickstart_recipe(seed=5)]
)
def test_a_recipe_survives_the_way_through_its_file(recipe: Recipe) -> None:
    assert parse_recipe(recipe_to_toml(recipe)) == recipe


def test_every_table_of_a_recipe_is_read_by_its_own_kind() -> None:
    fields = {name: field.annotation for name, field in Recipe.model_fields.items()}
    assert {name: kind for name, kind in fields.items() if name not in ("name", "seed")} == TABLES


def test_a_run_is_named_after_the_option_the_recipe_or_the_file(tmp_path: Path) -> None:
    plain, named = tmp_path / "small.toml", tmp_path / "other.toml"
    plain.write_text(MINIMAL)
    named.write_text('name = "mine"\n' + MINIMAL)
    assert [read_recipe(plain).name, read_recipe(named).name, read_recipe(named, "x").name] == [
        "small",
        "mine",
        "x",
    ]
    plain = plain.rename(tmp_path / "my first récipe.toml")
    assert read_recipe(plain).name == "my-first-récipe"
    for name in ("../x", "a" * 61):
        with pytest.raises(InvalidInput, match="--name"):
            read_recipe(plain, name)


def test_a_relative_path_of_weights_starts_at_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(MINIMAL + 'weights = "w.safetensors"\n')
    assert read_recipe(tmp_path / "r.toml").model.weights == str(tmp_path / "w.safetensors")


def test_an_unreadable_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    for name in ("a.toml", "b.toml"):
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_recipe(tmp_path / name)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert read_recipe(tmp_path / "r.toml").model.name == "torchvision:resnet18"


def test_an_empty_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(MINIMAL)
    with pytest.raises(InvalidInput, match="--name"):
        read_recipe(tmp_path / "r.toml", "")
    with pytest.raises(InvalidInput, match="--name"):
        quickstart_recipe(name="")


def test_differences_name_table_key_and_both_values() -> None:
    changed = parse_recipe("seed = 1\n" + MINIMAL + "[search]\nevaluations = 9\nseed = 0\n")
    told = differences(parse_recipe(MINIMAL), changed)
    assert "seed: 0 -> 1" in told
    assert "[search] evaluations: 300 -> 9" in told
    assert not [line for line in told if line.startswith("[search] seed")]
