"""The settings of every stage: frozen, checked when they are born, read from TOML; unknown keys are refused.

No torch here: a recipe is read and refused before anything slow is imported.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from search_spaces.costs import COST_NAMES
from search_spaces.errors import InvalidInput

Count = Annotated[int, Field(strict=True, ge=1)]
Whole = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # what every generator takes
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]
Share = Annotated[Real, Field(gt=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]


def _like(pattern: str, rule: str) -> AfterValidator:
    """A text that matches `pattern`; messages say the rule in words."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {rule}")
        return value

    return AfterValidator(check)


Device = Annotated[str, _like(r"auto|cpu|cuda(:\d+)?", '"auto", "cpu", "cuda" or "cuda:N"')]


def _limit(value: object) -> float | str:
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)? ?%", value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError('must be a number or a percentage such as "25%"')


RuntimeName = Literal["torch", "compile", "onnxruntime", "openvino", "executorch", "command"]
PRECISIONS = {
    "torch": ("fp32", "bf16"),
    "compile": ("fp32", "bf16"),
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16"),
    "executorch": ("fp32",),
    "command": ("fp32",),
}
LATENCY = "latency_ms"
PREDICTED = "predicted_latency_ms"  # of a board whose measurements came back from a kit
RESOLUTION = 0.005  # of a latency: along a path, times that differ by less are not told apart
# what can be measured, computed or foretold without a function of the user's
OBJECTIVES = ("top1_percent", LATENCY, PREDICTED, *COST_NAMES)
MetricName = Annotated[str, _like(r"[A-Za-z]\w{0,59}", "up to 60 letters, digits and _, a letter first")]
BoardName = Annotated[str, _like(r"[\w-][\w.-]{0,59}", "up to 60 letters, digits, _, - and ., no . in front")]
Limits = Mapping[str, Annotated[float | str, PlainValidator(_limit)]]


class InvalidSettings(InvalidInput):
    """Says what is wrong with one stage's settings; `problems` are pairs of a field and a sentence."""

    def __init__(self, stage: str, problems: list[tuple[str, str]]) -> None:
        super().__init__(f"{stage}: " + "; ".join(sentence for _, sentence in problems))
        self.problems = problems


class Settings(BaseModel):
    """The root of all settings: immutable, no unknown fields, a wrong value raises `InvalidInput`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            nested = {problem["loc"][0] for problem in error.errors() if len(problem["loc"]) > 1}
            counted = ("too_short", "too_long")  # without the items that are told of already
            problems = [
                _explain(type(self), problem)
                for problem in error.errors()
                if problem["type"] not in counted or problem["loc"][0] not in nested
            ]
            raise InvalidSettings(type(self).__name__, problems) from None


class DeviceSettings(Settings):
    """Where things run, and what `latency_ms` is the time of: the profile of the target device.

    `name` is torch's device: "auto" is CUDA where there is one. `threads` are those of torch and of the runtime (none:
    torch's own choice); small networks, and machines that others use too, are often far faster with one. A latency is
    the time of one call with `batch_size` images in the `runtime`: "torch" (eager), "compile", "onnxruntime",
    "openvino", "executorch", or "command", which hands a file to a `command` such as
    "adb shell bench {file} --runs {runs}" and reads the times that it prints, in `command_unit`. The file is of
    `command_format`; a command that is silent for `timeout_s` is stopped. `input_px` is the height of the images
    (none: that of the data). "bf16" and "int8" are for runtimes that have them.

    `board` names a board that a measuring kit was carried to; the objective `predicted_latency_ms` is the time that
    sub-nets are expected to take there.
    """

    name: Device = "auto"
    threads: Count | None = None
    batch_size: Count = 1
    runtime: RuntimeName = "torch"
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    input_px: Count | None = None
    command: Annotated[str | None, Field(validate_default=True)] = None
    command_format: Literal["onnx", "pt2", "pte"] = "onnx"
    command_unit: Literal["s", "ms", "us"] = "ms"
    timeout_s: Positive = 60.0
    board: BoardName | None = None

    @field_validator("runtime")
    @classmethod
    def _on_its_device(cls, runtime: str, info: ValidationInfo) -> str:
        if str(info.data.get("name")).startswith("cuda") and runtime not in ("torch", "compile"):
            raise ValueError('must be "torch" or "compile" on a CUDA device')
        return runtime

    @field_validator("precision")
    @classmethod
    def _runtime_has_it(cls, precision: str, info: ValidationInfo) -> str:
        runtime = info.data.get("runtime", "torch")
        if precision not in PRECISIONS[runtime]:
            has = ", ".join(PRECISIONS[runtime])
            raise ValueError(f'must be what the runtime "{runtime}" has, {has}')
        return precision

    @field_validator("command")
    @classmethod
    def _stands_with_its_runtime(cls, command: str | None, info: ValidationInfo) -> str | None:
        such = 'such as "adb shell bench {file} --runs {runs}"'
        if (command is None) == (info.data.get("runtime") == "command"):
            raise ValueError(f'must be given for runtime = "command", and only there, {such}')
        if command is not None and "{file}" not in command:
            raise ValueError(f"must say where the file goes, {such}")
        return command


class ModelSettings(Settings):
    """The network to start from.

    `name` is "torchvision:NAME", "timm:NAME" or "package.module:factory"; `weights` names weights of that source or
    is the path of a safetensors file (none: random); `options` go to the factory. `epochs` of ordinary training,
    with the [train] table's other values and `lr` if given, come first for a network that has no trained weights
    yet, or whose weights come from other data.
    """

    name: str
    weights: str | None = None
    options: Mapping[str, Any] = {}
    epochs: Whole = 0
    lr: Positive | None = None


class DataSettings(Settings):
    """Where images come from, how they are split and what is done to them.

    `source` is "digits", "npz:PATH", "imagefolder:PATH", "torchvision:NAME" or "package.module:factory" (called
    with `options`, it returns `Splits` and does all of this itself). The seeded, stratified shares are of all
    images for `test_share` and `search_val_share`, of the rest for `gate_share`; a split that the source has
    already is taken as it is.

    `size` resizes the shorter side and cuts out the middle; `channels` turns grey into colour or colour into
    grey. `mean` and `std` hold for pixels from 0 to 1, one value for all channels or one for each (none: 0.5;
    float arrays without them are taken as they are). `preprocess = "weights"` takes size, mean and std from the
    published weights of the [model] table instead, where they are not given here. `augment` is for training
    only: "crop" shifts by up to an eighth of the size. `classes` are the names of the classes, for sources that
    have none; `workers` are processes that read image files; `download` lets torchvision fetch a data set.
    """

    source: str = "digits"
    batch_size: Count = 64
    search_val_share: Annotated[Share, Field(lt=1)] = 0.2
    test_share: Annotated[Share, Field(lt=1)] = 0.2
    gate_share: Annotated[NotNegative, Field(lt=1)] = 0.05
    seed: Seed = 0
    preprocess: Literal["recipe", "weights"] = "recipe"
    size: Count | None = None
    channels: Literal[1, 3] | None = None
    mean: Annotated[tuple[Real, ...], Field(min_length=1)] | None = None
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    augment: Literal["none", "flip", "crop", "crop+flip"] = "none"
    classes: tuple[str, ...] = ()
    workers: Whole = 0
    download: Flag = False
    options: Mapping[str, Any] = {}


class ElasticSettings(Settings):
    """What conversion makes elastic.

    Width choices of a group run from `min_share` of its units upwards in multiples of `step` channels, by default 8,
    and 4 in layers narrower than 32 (`groups_per_layer`: at most so many choices, evenly spread). `include` and
    `exclude` are glob patterns on module paths, `tie` lists tuples of patterns whose groups share one knob. `form` says
    what runs: the model's "own classes", or the "graph" of its operations (transformers need it); by default whichever
    can shrink more. `steps` and `min_shares` say otherwise for the groups that a pattern names ({"layer4.*": 64}); the
    last one holds. "Only depth" is width=False. `resolution` lists heights of images in pixels; sub-nets then take
    images of one of these sizes or of the example's, where the network allows it.

    `adaptive_depth` and `branches` make other spaces, of the model's own classes. With `adaptive_depth` the second half
    of every residual stage is kept or skipped as one, norms before it have two sets of weights, and widths are whole.
    With `branches = K` the channels of every layer fall into K equal groups, of which sub-nets keep the first, and
    group j reads none after it; blocks may be skipped, too, unless `depth = false`.
    """

    min_share: Share = 0.1
    step: Count | None = None
    groups_per_layer: Count | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tie: tuple[tuple[str, ...], ...] = ()
    steps: dict[str, Count] = Field(default_factory=dict)
    min_shares: dict[str, Share] = Field(default_factory=dict)
    width: Flag = True
    depth: Flag = True
    resolution: tuple[Count, ...] = ()
    form: Literal["auto", "own classes", "graph"] = "auto"
    adaptive_depth: Flag = False
    branches: Annotated[Count, Field(ge=2, le=1024)] | None = None

    @field_validator("adaptive_depth", "branches")
    @classmethod
    def _has_its_own_space(cls, value: int | None, info: ValidationInfo) -> int | None:
        names = ("step", "groups_per_layer", "tie", "steps", "min_shares", "resolution")
        if value and (given := [name for name in names if info.data.get(name)]):
            raise ValueError(
                f"makes a space of its own and cannot stand beside {', '.join(given)}; leave them out"
            )
        if value and info.data.get("form") == "graph":
            raise ValueError('needs form = "own classes"')
        if value and info.field_name == "branches" and not info.data.get("width", True):
            raise ValueError("is about widths; leave width = false out")
        if value and info.field_name == "adaptive_depth" and not info.data.get("depth", True):
            raise ValueError("is about depth; leave depth = false out")
        return value

    @property
    def is_structured(self) -> bool:
        """Whether the space is one of sub-paths or branches, which are trained in ways of their own."""
        return self.adaptive_depth or self.branches is not None


class TrainSettings(Settings):
    """SGD with Nesterov momentum, cosine decay after a linear warm-up; decay acts on weights only."""

    epochs: Whole = 30
    lr: Positive = 0.1
    momentum: Annotated[NotNegative, Field(lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    warmup_epochs: NotNegative = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Device = "auto"
    checkpoint_seconds: Positive = 60.0
    seed: Seed = 0


class RankSettings(Settings):
    """Which ranking orders the units of every group, and on how many training images it looks.

    "best" is the one whose slice curve is best: the top-1, on a sample of `val_images` of search-validation, of nets of
    uniform width that keep the units ranked first. A ranking named is taken, and the curves are for looking at; with
    `curve = false` they are not drawn. Noise is learned in `steps` batches.
    """

    ranker: Literal["best", "noise", "weight_noise", "l1", "bn_scale", "taylor", "random", "natural"] = "best"
    images: Count = 1024
    steps: Count = 200
    curve: Flag = True
    val_images: Count = 2000
    seed: Seed = 0

    @field_validator("curve")
    @classmethod
    def _best_by_its_curve(cls, curve: bool, info: ValidationInfo) -> bool:
        if not curve and info.data.get("ranker") == "best":
            raise ValueError('may be false only where a ranker is named, such as ranker = "noise"')
        return curve


class MetricSettings(Settings):
    """A metric of your own: "package.module:callable" and whether it is to be high ("max") or low ("min").

    The function is called with all logits `[num_images, num_classes]` and targets `[num_images]` of a split,
    tensors on the CPU, and returns one number.
    """

    function: Annotated[str, _like(r"[^:]+:[^:]+", '"package.module:function"')]
    goal: Literal["max", "min"]


class EvaluateSettings(Settings):
    """How one sub-net is measured: images that set its batch-norm statistics, precision and the device.

    `precision` "auto" answers in bf16 where the hardware has it, in about half the time; what is chosen is measured
    again in fp32. Search-validation images, and what sub-nets have in common, are kept in `memory_mib` of memory.
    In a search, an evaluation that takes longer than `timeout_seconds` counts as failed (see `search`). `metrics`
    are measured beside top-1; their names may stand among a search's objectives.
    """

    calibration_images: Count = 512
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_mib: Whole = 2048
    timeout_seconds: Positive = 3600.0
    device: Device = "auto"
    seed: Seed = 0
    metrics: Mapping[MetricName, MetricSettings] = {}

    @field_validator("metrics")
    @classmethod
    def _names_of_their_own(cls, metrics: Mapping[str, MetricSettings]) -> Mapping[str, MetricSettings]:
        if taken := [name for name in metrics if name in OBJECTIVES]:
            raise ValueError(f"may not be named {taken[0]!r}: that is measured already; choose another name")
        return metrics


class SearchSettings(Settings):
    """The search, its budget and limits, and which members of the front are chosen.

    "guided" learns from what it evaluates; "progressive" searches a path of nested sub-nets, see `ProgressiveSettings`;
    "uniform" looks at uniform widths only.
    `objectives` are top1_percent, latency_ms, predicted_latency_ms, costs, and names of [evaluate.metrics]; limits
    are on objectives or costs. A limit is a number, or a percentage of the largest net's cost or latency such as
    "25%". `choose` members spread over the front are chosen, or, if `choose_under` lists limits, the best member
    under each of them; `choose_knee` adds the front's knee (in the first objective to be low and the first to be high).
    `racing` stops the evaluation of a sub-net once its images show, with 95 % confidence, that another one beats it.
    """

    searcher: Literal["guided", "random", "nsga2", "nsga3", "tpe", "gp", "qmc", "progressive", "uniform"] = (
        "guided"
    )
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = ("top1_percent", "macs", "params")
    evaluations: Count = 300
    minutes: Positive | None = None  # ends the search earlier
    limits: Limits = {}
    seed: Seed = 0
    choose: Count = 3
    choose_under: tuple[Limits, ...] = ()
    choose_knee: Flag = False
    racing: Flag = False

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("may name an objective only once")
        return names

    @field_validator("racing")
    @classmethod
    def _by_accuracy(cls, racing: bool, info: ValidationInfo) -> bool:
        names = info.data.get("objectives", OBJECTIVES)
        if racing and ("top1_percent" not in names or not set(names) <= set(OBJECTIVES)):
            raise ValueError(
                "compares sub-nets by top1_percent, which must be an objective, and can have no metric of your own "
                "beside it, as that needs all answers; leave it out"
            )
        return racing


class ProgressiveSettings(Settings):
    """The path of a progressive search: which drops it may take, how they are scored, and when weights are tuned.

    A drop is one of `groups` equal parts of a layer, or goes down to the next multiple of `step` channels, or to the
    next choice of the space where neither is given; `floor` is the share of its channels that a layer keeps at least.
    Each step gives the `screen` drops expected to hurt least a final look on `final_images` of search-validation
    (`screen = 0`: all drops), where `finalists` are fewer only to the best of them after a first look on
    `first_images`; every look sets batch-norm statistics on `calibration_images`. The path ends above
    `smallest_macs_share`. By the `criterion` "loss_per_ms" sub-nets with a final look are timed, too.

    Where an element's top-1 falls below `threshold` percent, or below the share `relative_threshold` of the whole
    net's, its weights are trained by themselves until it is back, up to `tune_steps` at `tune_lr`.
    """

    groups: Annotated[Count, Field(ge=2)] | None = None
    step: Count | None = None
    floor: Annotated[NotNegative, Field(le=1)] = 0.0
    criterion: Literal["accuracy", "loss", "loss_per_mac", "loss_per_ms"] = "loss_per_mac"
    smallest_macs_share: Annotated[Share, Field(lt=1)] = 0.12
    screen: Whole = 6
    finalists: Count = 6
    calibration_images: Count = 128
    first_images: Count = 256
    final_images: Count = 600
    threshold: Annotated[Positive, Field(lt=100)] | None = None
    relative_threshold: Annotated[Share, Field(lt=1)] | None = None
    tune_steps: Count = 100
    tune_lr: Positive = 0.01
    memory_mib: Whole = 2048
    device: Device = "auto"
    seed: Seed = 0

    @field_validator("step", "relative_threshold")
    @classmethod
    def _one_of_two(cls, value: float | None, info: ValidationInfo) -> float | None:
        other = {"step": "groups", "relative_threshold": "threshold"}[str(info.field_name)]
        if value is not None and info.data.get(other) is not None:
            raise ValueError(f"may not stand beside {other} = {info.data[other]:g}; give one of the two")
        return value


class FinetuneSettings(Settings):
    """Training of an extracted sub-net; `teacher_share` of the loss follows the teacher's soft answers."""

    epochs: Whole = 10
    lr: Positive = 0.02
    momentum: Annotated[NotNegative, Field(lt=1)] = 0.9
    weight_decay: NotNegative = 5e-4
    warmup_epochs: NotNegative = 0.5
    temperature: Positive = 2.0
    teacher_share: Annotated[NotNegative, Field(le=1)] = 0.5
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Device = "auto"
    checkpoint_seconds: Positive = 60.0
    seed: Seed = 0


class ExportSettings(Settings):
    """The file formats a chosen sub-net is written in."""

    formats: Annotated[tuple[Literal["safetensors", "pt2", "onnx"], ...], Field(min_length=1)] = (
        "safetensors",
        "pt2",
    )


def _explain(kind: type[BaseModel], problem: ErrorDetails) -> tuple[str, str]:
    """One pydantic problem: the top-level field, and a sentence of rule, what came and the nearest name."""
    path = [str(part) for part in problem["loc"]]
    field = ".".join(path) if path[-1] != "[key]" else f"{'.'.join(path[:-2])}: a name"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, kind.model_fields, n=1, cutoff=0.5)
        known = ", ".join(kind.model_fields)
        way_out = f"did you mean {near[0]!r}?" if near else f"known are {known}"
        return path[0], f"{field!r} is not a setting; {way_out}"
    if problem["type"] == "missing":
        return path[0], f"{field!r} is required"
    if isinstance(inner := problem.get("ctx", {}).get("error"), InvalidSettings):
        return path[0], f"{field}: " + "; ".join(sentence for _, sentence in inner.problems)
    rule = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return path[0], f"{field} {rule}, got {problem['input']!r}"


class DynamicSettings(Settings):
    """A network that decides for each input how much of it runs.

    `method` "ds": gates choose among sub-nets of the supernet. They stand after the modules `places` (none: a place is
    found), and the sub-nets are `routes` "uniform" widths behind them, `count` from `least_share` on, or members of the
    searched "front" that agree before the gate; `head_share` is the width before it. "lc": per input, blocks are
    skipped and groups of channels left out by scores.

    `targets` are mean costs to be met on average, as shares of the largest net's multiply-adds, or milliseconds for
    "lc" with `unit` "latency_ms" (none: `points` of them, spread over what is reachable). Gates learn on the gate split
    for `epochs`: with `loss` "values" how likely each sub-net is to be right, with "sandwich" as DS-Net's do. There a
    hard input, which the smallest sub-net gets wrong, is to take the largest one; with `hard` "give_up" only where that
    gets it right. `guide` is the weight of this aim, `macs_weight` that of the squared distance of the mean cost from
    `aim` (none: the middle of the targets), both as shares of the largest net's; "lc" is trained for `aim`, too.
    With `attention` the gate weighs the channels that it hands on, too. `channel_groups` are those of a block in "lc".
    """

    method: Literal["ds", "lc"] = "ds"
    places: tuple[str, ...] = ()
    routes: Literal["uniform", "front"] = "uniform"
    count: Annotated[Count, Field(ge=2)] = 4
    least_share: Annotated[Share, Field(lt=1)] = 0.25
    head_share: Share = 1.0
    targets: tuple[Positive, ...] = ()
    points: Count = 4
    unit: Literal["macs", "latency_ms"] = "macs"
    epochs: Count = 40
    lr: Positive = 0.05
    batch_size: Annotated[Count, Field(ge=2)] = 64
    hidden: Count = 32
    loss: Literal["values", "sandwich"] = "values"
    attention: Flag = False
    hard: Literal["try_best", "give_up"] = "try_best"
    guide: NotNegative = 1.0
    macs_weight: NotNegative = 1.0
    aim: Share | None = None
    temperature: Positive = 1.0
    channel_groups: Annotated[Count, Field(ge=2)] = 4
    calibration_images: Count = 2000
    device: Device = "auto"
    checkpoint_seconds: Positive = 60.0
    seed: Seed = 0
