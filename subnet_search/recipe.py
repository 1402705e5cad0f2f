"""A recipe: one TOML file with a table for each stage, or what is wrong in it and on which line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, ValidationInfo, field_validator

from search_spaces.costs import COST_NAMES
from search_spaces.errors import InvalidInput, nearest_names
from subnet_search.settings import (
    OBJECTIVES,
    PREDICTED,
    Count,
    DataSettings,
    DeviceSettings,
    DynamicSettings,
    ElasticSettings,
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    Flag,
    InvalidSettings,
    ModelSettings,
    NotNegative,
    Positive,
    ProgressiveSettings,
    RankSettings,
    SearchSettings,
    Seed,
    Settings,
    Share,
    TrainSettings,
    Whole,
)

QUICKSTART = """
[model]
name = "subnet_search.small_models:digits_cnn"
epochs = 20

[data]
source = "digits"
batch_size = 64

[elastic]
step = 4

[rank]
steps = 100

[train]
epochs = 40
lr = 0.05

[device]
threads = 1

[search]
searcher = "guided"
evaluations = 300
choose = 3

[finetune]
epochs = 10
"""

MOST_PROBLEMS = 20  # of one recipe that are told


class TrainTable(TrainSettings):
    """The [train] table: `TrainSettings` and the options of the step.

    `sampling` "each" draws every width and depth on its own, "uniform" one multiplier from `least_width` to 1 for all
    widths and keeps all blocks (US-Net). `distill = false`: all nets learn from the labels, as in the settings
    that US-Net's authors released.

    `method` "sandwich": smaller nets follow the largest one as it is now; "bootstrap": an average of its weights that
    moves by 1 - `decay` each step. There `ensemble` lets the smallest net follow the mean of all larger ones of the
    step, and `views` shows each smaller net images that are shifted ("crop") or mirrored, too. Branches and adaptive
    depth ([elastic]) are trained in ways of their own, by method "sandwich" with its `distill` and `num_random`.
    """

    method: Literal["sandwich", "bootstrap"] = "sandwich"
    num_random: Count = 2
    distill: Flag = True
    sampling: Literal["each", "uniform"] = "each"
    least_width: Share = 0.25
    decay: Annotated[NotNegative, Field(lt=1)] = 0.997
    ensemble: Flag = False
    views: Literal["none", "crop", "crop+flip"] = "none"

    @field_validator("distill")
    @classmethod
    def _average_teaches(cls, distill: bool, info: ValidationInfo) -> bool:
        if not distill and info.data.get("method") == "bootstrap":
            raise ValueError(
                'must be true for method = "bootstrap", whose smaller nets learn from an average'
            )
        return distill

    @field_validator("ensemble", "views")
    @classmethod
    def _of_bootstrapping(cls, value: bool | str, info: ValidationInfo) -> bool | str:
        if value not in (False, "none") and info.data.get("method") != "bootstrap":
            raise ValueError('is an option of method = "bootstrap"')
        return value


class ProgressiveTable(ProgressiveSettings):
    """The [progressive] table, read where [search] searcher = "progressive".

    Beside the path's settings: with `reselect` sub-nets that a smaller one of the path beats are left out. The others
    are trained jointly for `epochs`, with the [train] table's other values and `lr` if given. They follow the soft
    answers of `teacher`: "full", the whole network as it was before the supernet was trained, or "in-place", the
    largest sub-net as it is at the moment (no teacher where [train] distill = false).
    """

    reselect: Flag = True
    epochs: Whole = 10
    lr: Positive | None = None
    teacher: Literal["full", "in-place"] = "full"


class ReportTable(Settings):
    """The [report] table: the heading of the page (default: the run's name)."""

    title: str = ""


class Recipe(Settings):
    """Everything one run is made of; every table but [model] has working defaults."""

    name: str = ""
    seed: Seed = 0
    device: DeviceSettings = DeviceSettings()
    model: ModelSettings
    data: DataSettings = DataSettings()
    elastic: ElasticSettings = ElasticSettings()
    train: TrainTable = TrainTable()
    rank: RankSettings = RankSettings()
    progressive: ProgressiveTable = ProgressiveTable()
    evaluate: EvaluateSettings = EvaluateSettings()
    search: SearchSettings = SearchSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    dynamic: DynamicSettings = DynamicSettings()
    export: ExportSettings = ExportSettings()
    report: ReportTable = ReportTable()


TABLES: dict[str, type[Settings]] = {
    "device": DeviceSettings,
    "model": ModelSettings,
    "data": DataSettings,
    "elastic": ElasticSettings,
    "train": TrainTable,
    "rank": RankSettings,
    "progressive": ProgressiveTable,
    "evaluate": EvaluateSettings,
    "search": SearchSettings,
    "finetune": FinetuneSettings,
    "dynamic": DynamicSettings,
    "export": ExportSettings,
    "report": ReportTable,
}


def walks_a_path(recipe: Recipe) -> bool:
    """Whether the search is along a path of nested sub-nets, which is found and trained before it."""
    return recipe.search.searcher == "progressive"


def with_searcher(recipe: Recipe, searcher: str) -> Recipe:
    """The recipe with another searcher; `InvalidInput` for an unknown one."""
    search = SearchSettings(**{**recipe.search.model_dump(), "searcher": searcher})
    return recipe.model_copy(update={"search": search})


def quickstart_recipe(seed: int = 0, name: str | None = None) -> Recipe:
    """The recipe of `subnet-search quickstart`."""
    recipe = parse_recipe(f"seed = {seed}\n{QUICKSTART}", "the quickstart's recipe")
    return recipe.model_copy(update={"name": _run_name("quickstart" if name is None else name)})


def read_recipe(path: str | Path, name: str | None = None) -> Recipe:
    """Reads a recipe file; its run is named `name`, else as the recipe says, else after the file.

    Relative paths of weights and data start at the recipe's folder; ~ and $NAME stand for what they do in a shell.

    Raises:
        InvalidInput: an unreadable file, or an unknown key or wrong value, with its line.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")  # some editors put a byte-order mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"recipe {path} cannot be read: {error}") from None
    recipe = parse_recipe(text, str(path))
    from_file = re.sub(r"[^\w.+-]+", "-", path.stem).lstrip(".+-")[:60]
    name = recipe.name or from_file if name is None else name
    return _located(recipe, path.parent).model_copy(update={"name": _run_name(name)})


def _located(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with absolute paths: those of weights and data start at its folder."""
    model, data = recipe.model, recipe.data
    if model.weights is not None and model.weights.endswith((".safetensors", ".npz")):
        model = model.model_copy(update={"weights": _absolute(model.weights, folder)})
    kind, _, place = data.source.partition(":")
    if kind in ("npz", "imagefolder") and place:
        data = data.model_copy(update={"source": f"{kind}:{_absolute(place, folder)}"})
    elif kind == "torchvision":
        root = _absolute(str(data.options.get("root", "data")), folder)
        data = data.model_copy(update={"options": {**data.options, "root": root}})
    return recipe.model_copy(update={"model": model, "data": data})


def _absolute(path: str, folder: Path) -> str:
    """`path` from `folder` on, with ~ and $NAME filled in."""
    try:
        return str((folder / os.path.expandvars(os.path.expanduser(path))).resolve())
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, links in a circle
        raise InvalidInput(f"the path {path!r} cannot be followed: {error}") from None


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w.+-]{0,59}", name):
        raise InvalidInput(
            f"a run's name may hold up to 60 letters, digits and . _ + -, got {name!r}; choose another --name"
        )
    return name


def parse_recipe(text: str, source: str = "recipe") -> Recipe:
    """Builds a recipe from TOML text; `source` is named in messages."""
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # also a number of more digits than Python reads
        raise InvalidInput(f"{source} is not valid TOML: {error}") from None
    except RecursionError:
        raise InvalidInput(f"{source} is not valid TOML: brackets are nested too deeply") from None
    built: dict[str, Any] = {}
    problems: list[str] = []
    shared = _shared(document)
    for table, kind in TABLES.items():
        given = document.pop(table, {})
        if not isinstance(given, dict):
            problems.append(_at(text, "", table, f"{table!r} must be a table [{table}]"))
            continue
        inherited = {key: value for key, value in shared.items() if key in kind.model_fields}
        try:
            built[table] = kind(**{**inherited, **given})
        except InvalidSettings as error:
            problems += [
                _at(text, table, field, f"[{table}] {sentence}")
                for field, sentence in error.problems
                if field in given or field not in inherited
            ]
    problems += [_at(text, table, key, said) for table, key, said in _disagreements(built)]
    if "search" in built and "evaluate" in built:
        unknown = _unknown_names(built["search"], built["evaluate"].metrics)
        problems += [_at(text, "search", field, f"[search] {sentence}") for field, sentence in unknown]
    try:
        recipe = Recipe(**document, **built)
    except InvalidSettings as error:
        missed = TABLES.keys() - built.keys()
        problems += [_at(text, "", name, said) for name, said in error.problems if name not in missed]
    if problems:
        more = (
            [f"and {len(problems) - MOST_PROBLEMS:,} problems more"] if len(problems) > MOST_PROBLEMS else []
        )
        raise InvalidInput(f"{source} is refused: " + "\n".join([*problems[:MOST_PROBLEMS], *more]))
    return recipe


def _disagreements(built: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What two tables cannot both say: table, key and a sentence."""
    elastic, train, search, device = (built.get(name) for name in ("elastic", "train", "search", "device"))
    if search is not None and PREDICTED in search.objectives and device is not None and device.board is None:
        yield (
            "search",
            "objectives",
            f'[search] objectives name {PREDICTED}, which needs a board; add [device] board = "NAME", the --device of '
            "subnet-search kit",
        )
    if elastic is None or not elastic.is_structured:
        return
    asked = "adaptive_depth" if elastic.adaptive_depth else "branches"
    if train is not None and (train.method, train.sampling) != ("sandwich", "each"):
        key = "method" if train.method != "sandwich" else "sampling"
        yield (
            "train",
            key,
            f"[train] {key} = {getattr(train, key)!r} cannot stand beside [elastic] {asked}, which is trained in a way "
            "of its own; leave it out",
        )
    if search is not None and search.searcher == "progressive":
        yield (
            "search",
            "searcher",
            f"[search] searcher = 'progressive' walks down widths one by one, and [elastic] {asked} has no such "
            "widths; use 'guided', or another one",
        )


def _unknown_names(search: SearchSettings, metrics: Iterable[str]) -> list[tuple[str, str]]:
    """What a search names and nobody can measure: pairs of a field of [search] and a sentence."""
    known = (*OBJECTIVES, *metrics)
    problems = [
        (
            "objectives",
            f"unknown objective {name!r}{nearest_names(name, known)}; known are {', '.join(known)}, "
            "and what [evaluate.metrics] names",
        )
        for name in search.objectives
        if name not in known
    ]
    bounded = dict.fromkeys((*COST_NAMES, *search.objectives))
    for field, limits in (("limits", search.limits), *(("choose_under", one) for one in search.choose_under)):
        for name in (name for name in limits if name not in bounded):
            hint = "; add it to the objectives" if name in known else nearest_names(name, known)
            problems.append((field, f"a limit must be on one of {', '.join(bounded)}, got {name!r}{hint}"))
    return problems


def _shared(document: dict[str, Any]) -> dict[str, Any]:
    """What holds for every stage that does not set its own: the seed, and the device's name."""
    device = document.get("device")
    named = {"device": device["name"]} if isinstance(device, dict) and "name" in device else {}
    return named | ({"seed": document["seed"]} if "seed" in document else {})


def recipe_to_toml(recipe: Recipe) -> str:
    """The complete recipe, defaults included, as TOML that `parse_recipe` reads back to an equal one."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The settings in which two recipes differ, as "[table] key: old -> new"."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    found = [
        f"{key}: {before[key]} -> {after[key]}"
        for key in before.keys() - TABLES.keys()
        if before[key] != after[key]
    ]
    for table in TABLES:
        for key, value in before[table].items():
            if value != after[table][key]:
                found.append(f"[{table}] {key}: {value} -> {after[table][key]}")
    return found


def _at(text: str, table: str, key: str, sentence: str) -> str:
    """Prefixes `sentence` with the line of `key` in `table`, or else of the table, if it is found."""
    current, header = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if opened := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            current = opened[1].strip("\"' ")
            if current in (table, f"{table}.{key}", key) or current.startswith(f"{table}.{key}."):
                header = number
            if current == f"{table}.{key}" or (not table and current == key):
                break
        elif (current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line)) or (
            not current and table and re.match(rf"\s*{re.escape(table)}\s*(=|\.\s*{re.escape(key)}\b)", line)
        ):
            return f"line {number}: {sentence}"
    return f"line {header}: {sentence}" if header else sentence
