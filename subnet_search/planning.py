"""What a road costs and what of it fits into the time there is: arithmetic on measured seconds, no torch.

Every stage takes `times x (start + units x unit)` seconds: epochs of training, evaluations of the search, epochs
of each chosen sub-net. Where time is short, the amounts that the recipe asks for are all scaled by one factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from subnet_search.deadline import Deadline
from subnet_search.recipe import Recipe, walks_a_path
from subnet_search.settings import FinetuneSettings, TrainSettings

ROAD = (
    "prepare",
    "teacher",
    "rank",
    "train",
    "path",
    "join",
    "search",
    "finetune",
    "test",
    "export",
    "report",
)
OF_A_PATH = ("path", "join")  # stages of a progressive search only
UNITS = {
    "teacher": "epochs",
    "train": "epochs",
    "join": "epochs",
    "search": "evaluations",
    "finetune": "epochs",
}
FEWEST_EVALUATIONS = 10
MARGIN = 1.1  # of all planned seconds: measured ones vary
PATIENCE = 1.3  # of the smallest plan, for the minutes that a refusal recommends
TRUSTED_S = 1.0  # shorter stages tell nothing about the machine's speed
MOST_SLOWER = 10.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds that a stage takes however little it does, and for each epoch or evaluation; of one sub-net at a time.

    There are no more than `most` units, however many are asked for.
    """

    start_s: float
    unit_s: float = 0.0
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run is.

    Attributes:
        done: stages that are behind it.
        begun: epochs of stages that have a checkpoint or a result; these stages keep them.
        finished: units that need not be done again, of stages that are not done.
        tuned: chosen sub-nets that are fine-tuned.
        exported: chosen sub-nets that are proved.
    """

    done: frozenset[str] = frozenset()
    begun: Mapping[str, int] = field(default_factory=dict)
    finished: Mapping[str, int] = field(default_factory=dict)
    tuned: int = 0
    exported: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each stage is done, and the seconds that takes.

    Attributes:
        amounts: epochs or evaluations by stage.
        seconds: what is left to do, by stage, in the order of the road; 0 for what is done.
        fits: whether that is within the time there is.
    """

    amounts: Mapping[str, int]
    seconds: Mapping[str, float]
    fits: bool = True

    @property
    def total_s(self) -> float:
        """Seconds of all that is left."""
        return sum(self.seconds.values())

    def after_s(self, stage: str) -> float:
        """Seconds of the stages after this one."""
        return sum(self.seconds.get(later, 0.0) for later in ROAD[ROAD.index(stage) + 1 :])


def road_of(recipe: Recipe) -> tuple[str, ...]:
    """The stages of a recipe's road, the report included."""
    return ROAD if walks_a_path(recipe) else tuple(stage for stage in ROAD if stage not in OF_A_PATH)


def wanted(recipe: Recipe) -> dict[str, int]:
    """The amounts that a recipe asks for."""
    return {
        "teacher": recipe.model.epochs,
        "train": recipe.train.epochs,
        **({"join": recipe.progressive.epochs} if walks_a_path(recipe) else {}),
        "search": recipe.search.evaluations,
        "finetune": recipe.finetune.epochs,
    }


def num_chosen(recipe: Recipe) -> int:
    """How many sub-nets a recipe chooses, at most."""
    search = recipe.search
    return (len(search.choose_under) or search.choose) + search.choose_knee


def shortened(settings: TrainSettings | FinetuneSettings, epochs: int, of: int) -> dict[str, float]:
    """What to change in settings to train `epochs` instead of `of`: the warm-up keeps its share."""
    if epochs == of:
        return {"epochs": epochs}
    return {"epochs": epochs, "warmup_epochs": settings.warmup_epochs * epochs / of}


def make_plan(
    recipe: Recipe, rates: Mapping[str, Rate], standing: Standing, left_s: float = math.inf
) -> Plan:
    """The most of the recipe that fits into `left_s`.

    Epochs and evaluations of stages that have not begun are scaled by one common factor, to no less than one epoch
    and ten evaluations; zeros stay zeros. If not even that fits, it is the plan all the same, and `fits` is false.

    Args:
        recipe: what is wanted at most.
        rates: measured seconds of every stage of the road.
        standing: how far the run is.
        left_s: seconds from now to the end of the report.
    """
    asked = wanted(recipe)

    def scaled(share: float) -> Plan:
        amounts = {}
        for stage, amount in asked.items():
            least = min(amount, FEWEST_EVALUATIONS if stage == "search" else 1)
            amounts[stage] = standing.begun.get(stage, max(least, math.floor(share * amount + 1e-9)))
        seconds = seconds_left(recipe, rates, standing, amounts)
        return Plan(amounts, seconds, sum(seconds.values()) * MARGIN <= left_s)

    whole = scaled(1.0)
    if whole.fits:
        return whole
    low, high, best = 0.0, 1.0, scaled(0.0)
    for _ in range(30):
        middle = (low + high) / 2
        plan = scaled(middle)
        if plan.fits:
            low, best = middle, plan
        else:
            high = middle
    return best


def seconds_left(
    recipe: Recipe, rates: Mapping[str, Rate], standing: Standing, amounts: Mapping[str, int]
) -> dict[str, float]:
    """Seconds of what is left of each stage, in the order of the road."""
    chosen = num_chosen(recipe)
    times = {
        "finetune": max(chosen - standing.tuned, 0),
        "test": chosen + 1,
        "export": max(chosen - standing.exported, 0),
    }
    found = {}
    for stage in road_of(recipe):
        rate = rates[stage]
        amount = amounts.get(stage, 0)
        amount = amount if rate.most is None else min(amount, rate.most)
        units = max(amount - standing.finished.get(stage, 0), 0)
        skipped = stage in standing.done or (stage == "teacher" and not amounts["teacher"])
        found[stage] = 0.0 if skipped else times.get(stage, 1) * (rate.start_s + units * rate.unit_s)
    if recipe.search.minutes is not None:
        found["search"] = min(found["search"], rates["search"].start_s + 60 * recipe.search.minutes)
    return found


def table(recipe: Recipe, plan: Plan, rates: Mapping[str, Rate], standing: Standing) -> str:
    """The plan for people: a line for each stage, and the sum."""
    asked, chosen, lines = wanted(recipe), num_chosen(recipe), []
    for stage in road_of(recipe):
        amount, whole, what = plan.amounts.get(stage, 0), asked.get(stage, 0), ""
        if stage in UNITS:
            of = f"{amount} of {whole} {UNITS[stage]}" if amount != whole else counted(amount, UNITS[stage])
            what = f"{of} of {in_seconds(rates[stage].unit_s)}" if amount else f"no {UNITS[stage]}"
        if stage in ("finetune", "export"):
            what = counted(chosen, "sub-nets") + (f", {what} each" if what else "")
        time = "done" if stage in standing.done else in_seconds(plan.seconds[stage])
        lines.append(f"  {stage:<9} {time:>9}  {what}".rstrip())
    return "\n".join([*lines, f"  {'in all':<9} {in_seconds(plan.total_s):>9}"])


def counted(number: int, what: str) -> str:
    """ "3 epochs", "1 epoch"."""
    return f"{number:,} {what if number != 1 else what.removesuffix('s')}"


def in_seconds(seconds: float) -> str:
    """A duration for people, with two or three digits: "12 ms", "3.4 s", "5.1 min", "2.3 h"."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= (1 if unit == "s" else 1.5) * size:
            amount = seconds / size
            return f"{amount:.0f} {unit}" if amount >= 20 else f"{amount:.1f} {unit}"
    return f"{1e3 * seconds:.0f} ms"


class Planner:
    """Plans again at every stage from the time that is left, and from how fast the machine turned out to be.

    Args:
        recipe: what is wanted at most.
        rates: measured seconds of every stage.
        deadline: the time of this command.
    """

    def __init__(self, recipe: Recipe, rates: Mapping[str, Rate], deadline: Deadline) -> None:
        self.recipe, self.rates, self.deadline = recipe, rates, deadline
        self.slower = 1.0
        self._planned_s = self._taken_s = 0.0

    def plan(self, standing: Standing) -> Plan:
        """The plan from here on."""
        rates = {
            stage: replace(rate, start_s=self.slower * rate.start_s, unit_s=self.slower * rate.unit_s)
            for stage, rate in self.rates.items()
        }
        return make_plan(self.recipe, rates, standing, self.deadline.left_s())

    @property
    def reserve_s(self) -> float:
        """What is kept for the report, whatever happens before."""
        return PATIENCE * self.slower * self.rates["report"].start_s

    def smallest_minutes(self, standing: Standing) -> float:
        """The fewest minutes to ask for, starting and measuring (what is spent now) included."""
        least = make_plan(self.recipe, self.rates, standing, 0.0)
        return math.ceil(10 * PATIENCE * (self.deadline.spent_s() + least.total_s) / 60) / 10

    def note(self, plan: Plan, stage: str, taken_s: float, share: float = 1.0) -> None:
        """Learns from a stage how much slower the machine is than it was when measured; it is never taken for faster.

        Args:
            plan: the last plan, which the stage began with.
            stage: what was done.
            taken_s: what it took.
            share: of the planned amount that was done in that time.
        """
        if stage == ROAD[0]:  # quicker the second time: the rehearsal has loaded all that it needs
            return
        self._planned_s += share * plan.seconds[stage] / self.slower
        self._taken_s += taken_s
        if self._planned_s >= TRUSTED_S:
            self.slower = min(max(self._taken_s / self._planned_s, 1.0), MOST_SLOWER)


def plan_to_json(
    recipe: Recipe,
    amounts: Mapping[str, int],
    standing: Standing,
    *,
    plan: Plan | None = None,
    minutes: float | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """plan.json: what each stage does and what the recipe asked for; seconds where they were estimated.

    What the plan `before` said of stages that are done stays.
    """
    asked = wanted(recipe)
    known = {row["stage"]: row for row in (before or {"stages": []})["stages"]}
    stages = []
    for stage in road_of(recipe):
        done = stage in standing.done
        seconds = None if plan is None or done else round(plan.seconds[stage], 3)
        row: dict[str, Any] = {"stage": stage, "seconds": seconds}
        if stage in UNITS:
            row |= {"amount": amounts[stage], "asked": asked[stage], "unit": UNITS[stage]}
        stages.append({**(known.get(stage, row) if done else row), "done": done})
    return {"minutes": minutes, "stages": stages}
