"""A run folder as plain records: all that figures and pages show, and nothing about how they look."""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search_spaces import (
    COST_NAMES,
    CostTable,
    InvalidInput,
    SearchSpace,
    SubnetConfig,
    config_from_json,
    costs_from_json,
    space_from_json,
)
from subnet_search.record.objective import Evaluation, Objective
from subnet_search.record.pareto import ParetoFront
from subnet_search.record.run import Run, open_run

BASELINES = ("uniform", "random")  # the controls every search evaluates first


@dataclass(frozen=True, slots=True)
class Seen:
    """One successful evaluation of the journal; `values` holds the objectives and the exact costs."""

    key: str
    config: SubnetConfig
    searcher: str
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Chosen:
    """One folder of `subnets/`; what has not been made yet is empty."""

    label: str  # "A", "B", ... by rising cost
    key: str
    config: SubnetConfig
    costs: Mapping[str, float]
    before: Mapping[str, float]  # on `split`, before and after fine-tuning
    after: Mapping[str, float]
    test: Mapping[str, float]
    split: str
    seeds: tuple[int, ...]
    proof: Mapping[str, Any]
    files: tuple[tuple[str, int], ...]  # name within the run folder, bytes


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
    ranking: Mapping[str, Any]
    objectives: tuple[Objective, ...] = ()
    seen: tuple[Seen, ...] = ()
    failures: tuple[str, ...] = ()  # reasons
    left_out: int = 0  # evaluations of other weights, data or protocol than the last one's
    front: tuple[str, ...] = ()  # keys
    reference: Mapping[str, float] = field(default_factory=dict)
    full: Mapping[str, float] = field(default_factory=dict)  # what is known of the largest net
    full_test: Mapping[str, float] = field(default_factory=dict)
    chosen: tuple[Chosen, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()

    def searchers(self) -> tuple[str, ...]:
        """Names of those who asked for sub-nets: the baselines first, then by first appearance."""
        names = dict.fromkeys(seen.searcher for seen in self.seen)
        return (*(name for name in BASELINES if name in names), *(n for n in names if n not in BASELINES))

    def goal(self, name: str) -> str:
        """ "min" or "max" for an objective or a cost.

        Raises:
            InvalidInput: the run knows no such value.
        """
        goals = {
            **dict.fromkeys(COST_NAMES if self.costs else (), "min"),
            **{o.name: o.goal for o in self.objectives},
        }
        if name not in goals:
            raise InvalidInput(
                f"run {self.name!r} has no values of {name!r}; it has {', '.join(goals) or 'none'}"
            )
        return goals[name]

    def limits(self) -> Mapping[str, float]:
        """The search's limits as numbers; percentages are of the largest net."""
        bounds: dict[str, float] = {}
        for name, bound in self.settings.get("search", {}).get("limits", {}).items():
            if not isinstance(bound, str):
                bounds[name] = float(bound)
            elif name in self.full:
                bounds[name] = float(bound.rstrip(" %")) / 100 * self.full[name]
        return bounds


def read_run(folder: str | Path) -> RunView:
    """Reads a run folder, finished or not, without changing or locking it.

    Raises:
        InvalidInput: not a run folder, or a file of it is corrupt.
    """
    with open_run(folder, write=False) as run:
        toml = run.read("settings.toml").decode() if run.has("settings.toml") else ""
        settings, front = tomllib.loads(toml), _json(run, "front.json")
        space = space_from_json(run.read_json("space.json")) if run.has("space.json") else None
        costs = costs_from_json(run.read_json("costs.json")) if run.has("costs.json") else None
        coverage = _json(run, "coverage.json")
        seen, failures, left_out = _evaluations(run, space, costs)
        full = {**coverage.get("largest", {}), **_costs_of(space.largest(), space, costs)} if space else {}
        for evaluation in seen:
            if space and evaluation.config == space.largest():
                full |= evaluation.values
        return RunView(
            name=Path(run.folder).name,
            settings_toml=toml,
            settings=settings,
            space=space,
            costs=costs,
            coverage=coverage,
            device=_json(run, "device.json"),
            splits=_json(run, "splits.json"),
            ranking=_json(run, "ranking.json"),
            objectives=_objectives(front, settings, seen),
            seen=seen,
            failures=failures,
            left_out=left_out,
            front=tuple(member["key"] for member in front.get("members", ())),
            reference=front.get("reference") or {},
            full=full,
            full_test=_json(run, "metrics.json").get("test", {}),
            chosen=_chosen(run, space, costs),
            events=tuple(run.events()),
        )


def front_of(objectives: Sequence[Objective], seen: Sequence[Seen]) -> tuple[ParetoFront, tuple[Seen, ...]]:
    """The Pareto front of evaluations in some of their values, as a front and as the evaluations in it."""
    names = [objective.name for objective in objectives]
    front = ParetoFront.of(
        tuple(objectives), [Evaluation(s.config, tuple(float(s.values[n]) for n in names)) for s in seen]
    )
    members = {evaluation.config for evaluation in front}
    return front, tuple({s.key: s for s in seen if s.config in members}.values())


def _json(run: Run, name: str) -> dict[str, Any]:
    content = run.read_json(name) if run.has(name) else {}
    if not isinstance(content, dict):
        raise InvalidInput(f"{name} of run {run.folder} must hold an object, got {type(content).__name__}")
    return content


def _costs_of(config: SubnetConfig, space: SearchSpace | None, costs: CostTable | None) -> dict[str, float]:
    if space is None or costs is None:
        return {}
    return {name: values[0] for name, values in costs.evaluate(space.encode([config]), COST_NAMES).items()}


def _evaluations(
    run: Run, space: SearchSpace | None, costs: CostTable | None
) -> tuple[tuple[Seen, ...], tuple[str, ...], int]:
    lines = [line for line in run.journal.lines() if line["kind"] != "ask"]
    context = lines[-1]["context"] if lines else ""
    good = [line for line in lines if line["kind"] == "result" and line["context"] == context]
    configs = [SubnetConfig(line["config"]) for line in good]
    exact: dict[str, Any] = {}
    if space is not None and costs is not None and configs:
        exact = costs.evaluate(space.encode(configs), COST_NAMES)
    seen = tuple(
        Seen(
            line["key"],
            config,
            line.get("searcher") or "unknown",
            {**{name: float(exact[name][row]) for name in exact}, **line["values"]},
        )
        for row, (line, config) in enumerate(zip(good, configs, strict=True))
    )
    failures = tuple(str(line.get("reason", "")) for line in lines if line["kind"] == "failed")
    return seen, failures, sum(line["context"] != context for line in lines)


def _objectives(
    front: Mapping[str, Any], settings: Mapping[str, Any], seen: Sequence[Seen]
) -> tuple[Objective, ...]:
    """As the front names them; before there is one, as the recipe does, where percentages are to be high."""
    given = front.get("objectives")
    if given is None:
        names = settings.get("search", {}).get("objectives", ())
        given = [{"name": name, "goal": "max" if name.endswith("_percent") else "min"} for name in names]
    return tuple(Objective(o["name"], o["goal"]) for o in given if all(o["name"] in s.values for s in seen))


def _chosen(run: Run, space: SearchSpace | None, costs: CostTable | None) -> tuple[Chosen, ...]:
    found = []
    names = run.names()
    for place in (
        name.removesuffix("/config.json")
        for name in names
        if re.fullmatch(r"subnets/[^/]+/config\.json", name)
    ):
        config = config_from_json(run.read_json(f"{place}/config.json"))
        proof, metrics = _json(run, f"{place}/proof.json"), _json(run, f"{place}/metrics.json")
        exact = {name: proof[name] for name in ("macs", "params") if name in proof}
        found.append(
            Chosen(
                label="",
                key=config.key,
                config=config,
                costs={**_costs_of(config, space, costs), **exact},
                before=metrics.get("before", {}),
                after=metrics.get("after", {}),
                test=metrics.get("test", {}),
                split=str(metrics.get("split", "")),
                seeds=tuple(metrics.get("seeds", ())),
                proof=proof,
                files=tuple(
                    (name, run.path(name).stat().st_size) for name in names if name.startswith(f"{place}/")
                ),
            )
        )
    found.sort(key=lambda chosen: (chosen.costs.get("macs", 0), chosen.key))
    return tuple(replace(chosen, label=_letter(place)) for place, chosen in enumerate(found))


def _letter(place: int) -> str:
    letters = string.ascii_uppercase
    return (
        letters[place] if place < len(letters) else f"{letters[place % len(letters)]}{place // len(letters)}"
    )
