"""What a run folder holds as plain records: all that figures and pages show, and nothing about their looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from search_spaces import COST_NAMES, CostTable, InvalidInput, SearchSpace, SubnetConfig
from subnet_search.record.objective import Evaluation, Goal, Objective
from subnet_search.record.pareto import ParetoFront

if TYPE_CHECKING:
    from subnet_search.searchers.path import PathElement

BASELINES = ("uniform", "random")  # the controls every search evaluates first


@dataclass(frozen=True, slots=True)
class Seen:
    """One successful evaluation of the journal; `values` holds the objectives and the exact costs."""

    key: str
    config: SubnetConfig
    searcher: str
    values: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)  # of the measured values that have one


@dataclass(frozen=True, slots=True)
class Chosen:
    """One folder of `subnets/`; what has not been made yet is empty."""

    label: str  # "A", "B", ... by rising cost
    key: str
    config: SubnetConfig
    costs: Mapping[str, float]
    before: Mapping[str, float]  # on search-validation, before and after fine-tuning
    after: Mapping[str, float]
    test: Mapping[str, float]
    seeds: tuple[int, ...]
    proof: Mapping[str, Any]
    files: tuple[tuple[str, int], ...]  # name within the run folder, bytes
    searched: Mapping[str, float] = field(default_factory=dict)  # what the search measured
    failed: Mapping[str, str] = field(
        default_factory=dict
    )  # why a value is missing after fine-tuning, by its name
    spread: Mapping[str, float] = field(default_factory=dict)

    def inherited(self) -> dict[str, float]:
        """All that is known with the supernet's weights."""
        return {**self.searched, **self.costs, **self.before}

    def tuned(self) -> dict[str, float]:
        """All that is known after fine-tuning, what tuning leaves as it is included; empty before it."""
        return {**self.searched, **self.costs, **self.after} if self.after else {}


@dataclass(frozen=True, slots=True)
class RunView:
    """Everything a report says about one run."""

    name: str
    settings_toml: str
    settings: Mapping[str, Any]
    space: SearchSpace | None
    costs: CostTable | None
    coverage: Mapping[str, Any]
    device: Mapping[str, Any]
    splits: Mapping[str, Any]
    plan: Mapping[str, Any] = field(default_factory=dict)  # of a run with a time budget
    ranking: Mapping[str, Any] = field(
        default_factory=dict
    )  # the ranker, and its slice curve if there is one
    path: tuple[PathElement, ...] = ()  # of a progressive search, as far as it was walked
    path_complete: bool = True
    joined: bool = False  # whether the path's sub-nets were trained jointly before they were evaluated
    objectives: tuple[Objective, ...] = ()
    seen: tuple[Seen, ...] = ()
    failures: tuple[str, ...] = ()  # reasons
    stopped: int = 0  # evaluations that ended early, as others were better; none of them is among those seen
    images: tuple[int, int] = (
        0,
        0,
    )  # that all evaluations cost, and would cost in full; where they are counted
    left_out: int = 0  # evaluations of other weights, data or protocol than the last one's
    front: tuple[str, ...] = ()  # keys
    front_state: str = "complete"  # or "searching", "cut short"
    reference: Mapping[str, float] = field(default_factory=dict)
    full: Mapping[str, float] = field(default_factory=dict)  # what is known of the largest net
    full_test: Mapping[str, float] = field(default_factory=dict)
    chosen: tuple[Chosen, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()  # keys of chosen ones whose latencies the noise did not tell apart
    dynamic: Mapping[str, Any] = field(
        default_factory=dict
    )  # the net that decides for each input, if there is one
    examples: Mapping[str, Any] = field(
        default_factory=dict
    )  # uint8 [n, H, W, C] by "easiest_<route>" and so on
    aligned: Mapping[str, Any] = field(
        default_factory=dict
    )  # members of the front with widths in channel steps
    damaged: tuple[str, ...] = ()  # files of chosen sub-nets that are no longer what was written
    events: tuple[Mapping[str, Any], ...] = ()

    def setting(self, table: str, key: str) -> Any:
        """One setting of the recipe, None where it is not given."""
        content = self.settings.get(table)
        return content.get(key) if isinstance(content, Mapping) else None

    def searchers(self) -> tuple[str, ...]:
        """Names of those who asked for sub-nets: the baselines first, then by first appearance."""
        names = dict.fromkeys(seen.searcher for seen in self.seen)
        return (*(name for name in BASELINES if name in names), *(n for n in names if n not in BASELINES))

    def goal(self, name: str) -> Goal:
        """ "min" or "max" for an objective or a cost.

        Raises:
            InvalidInput: the run knows no such value.
        """
        goals: dict[str, Goal] = {}
        if self.costs is not None:
            goals |= dict.fromkeys(COST_NAMES, "min")
        goals |= {objective.name: objective.goal for objective in self.objectives}
        if name not in goals:
            raise InvalidInput(
                f"run {self.name!r} has no values of {name!r}; known are {', '.join(goals) or 'none'}"
            )
        return goals[name]

    def limits(self) -> Mapping[str, float]:
        """The search's limits as numbers; percentages are of the largest net."""
        bounds: dict[str, float] = {}
        for name, bound in (self.setting("search", "limits") or {}).items():
            if not isinstance(bound, str):
                bounds[name] = float(bound)
            elif name in self.full:
                bounds[name] = float(bound.rstrip(" %")) / 100 * self.full[name]
        return bounds


def front_of(objectives: Sequence[Objective], seen: Sequence[Seen]) -> tuple[ParetoFront, tuple[Seen, ...]]:
    """The Pareto front of evaluations in some of their values, as a front and as the evaluations in it."""
    names = [objective.name for objective in objectives]
    front = ParetoFront.of(
        tuple(objectives), [Evaluation(s.config, tuple(float(s.values[n]) for n in names)) for s in seen]
    )
    members = {evaluation.config for evaluation in front}
    return front, tuple({s.key: s for s in seen if s.config in members}.values())
