"""Reads a run folder into the records of `view`, finished or not, without changing or locking it."""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reports.view import Chosen, RunView, Seen
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
from subnet_search.record.images import Images
from subnet_search.record.objective import Objective
from subnet_search.record.run import Run, open_run

if TYPE_CHECKING:
    from subnet_search.searchers.path import PathElement

RANKING = ("ranker", "curve")  # what is shown of ranking.json
PATH, JOINED = "path.json", "joined.safetensors"  # of a progressive search; their own modules import torch
AGAIN = "latency_again.json"  # as above


def read_run(folder: str | Path) -> RunView:
    """Reads a run folder, finished or not, without changing or locking it.

    Raises:
        InvalidInput: not a run folder, or a file of it is corrupt.
    """
    with open_run(folder, write=False) as run:
        toml = run.read("settings.toml").decode()
        settings, front = tomllib.loads(toml), _json(run, "front.json")
        space = space_from_json(run.read_json("space.json")) if run.has("space.json") else None
        costs = costs_from_json(run.read_json("costs.json")) if run.has("costs.json") else None
        coverage = _json(run, "coverage.json")
        lines, left_out = _answers(run)
        seen, failures = _evaluations(lines, space, costs)
        counted = [Images.from_json(line["images"]) for line in lines if line.get("images")]
        chosen, walked = _chosen(run, space, costs, seen), _json(run, PATH)
        return RunView(
            name=run.folder.resolve().name,
            settings_toml=toml,
            settings=settings,
            space=space,
            costs=costs,
            coverage=coverage,
            device=_json(run, "device.json"),
            splits=_json(run, "splits.json"),
            plan=_json(run, "plan.json"),
            ranking={key: found for key, found in _json(run, "ranking.json").items() if key in RANKING},
            path=_path(run, walked),
            path_complete=bool(walked.get("complete")),
            joined=run.has(JOINED),
            objectives=_objectives(front, settings, seen),
            seen=seen,
            failures=failures,
            stopped=sum(not images.in_full for images in counted),
            images=(sum(i.spent for i in counted), sum(i.in_full_spent for i in counted)),
            left_out=left_out,
            front_state=front.get("state", "complete"),
            front=tuple(member["key"] for member in front.get("members", ())),
            reference=front.get("reference") or {},
            full={**_latency(run), **_full(coverage, seen, space, costs)},
            full_test=_json(run, "metrics.json").get("test", {}),
            chosen=chosen,
            ties=tuple(map(tuple, _json(run, AGAIN).get("ties", ()))),
            dynamic=_json(run, "dynamic/dynamic.json"),
            examples=_examples(run),
            aligned=_json(run, "aligned.json"),
            damaged=tuple(name for one in chosen for name, _ in one.files if not _is_sound(run, name)),
            events=tuple(run.events()),
        )


def _examples(run: Run) -> dict[str, np.ndarray]:
    name = "dynamic/examples.npz"
    if not run.has(name):
        return {}
    with np.load(run.verify(name), allow_pickle=False) as file:
        return dict(file)


def _is_sound(run: Run, name: str) -> bool:
    try:
        run.verify(name)
    except InvalidInput:
        return False
    return True


def _json(run: Run, name: str) -> dict[str, Any]:
    content = run.read_json(name) if run.has(name) else {}
    if not isinstance(content, dict):
        raise InvalidInput(f"{name} of run {run.folder} must hold an object, got {type(content).__name__}")
    return content


def _path(run: Run, walked: Mapping[str, Any]) -> tuple[PathElement, ...]:
    if not walked:
        return ()
    from subnet_search.searchers.path import path_from_json  # Optuna comes with it

    try:
        return tuple(path_from_json(walked.get("elements")))
    except InvalidInput as error:
        raise InvalidInput(f"{PATH} of run {run.folder}: {error}") from None


def _latency(run: Run) -> dict[str, float]:
    """The whole network's latency, which is measured also where the search never looks at it."""
    reference = _json(run, "latency.json").get("reference")
    return {} if reference is None else {"latency_ms": float(reference["median_ms"])}


def _costs_of(config: SubnetConfig, space: SearchSpace | None, costs: CostTable | None) -> dict[str, float]:
    if space is None or costs is None:
        return {}
    found = costs.evaluate(space.encode([config]), COST_NAMES)
    return {name: float(values[0]) for name, values in found.items()}


def _full(
    coverage: Mapping[str, Any], seen: Sequence[Seen], space: SearchSpace | None, costs: CostTable | None
) -> dict[str, float]:
    """What is known of the largest net: its costs, and its measured values if it was evaluated."""
    found: dict[str, float] = dict(coverage.get("largest", {}))
    if space is not None:
        found |= _costs_of(space.largest(), space, costs)
        for evaluation in seen:
            if evaluation.config == space.largest():
                found |= evaluation.values
    return found


def _answers(run: Run) -> tuple[list[Mapping[str, Any]], int]:
    """The journal's answers under the last one's context, and how many others there are."""
    lines = [line for line in run.journal.lines() if line["kind"] != "ask"]
    mine: list[Mapping[str, Any]] = [line for line in lines if line["context"] == lines[-1]["context"]]
    return mine, len(lines) - len(mine)


def _evaluations(
    lines: Sequence[Mapping[str, Any]], space: SearchSpace | None, costs: CostTable | None
) -> tuple[tuple[Seen, ...], tuple[str, ...]]:
    """What was measured on all images, and why evaluations failed."""
    good = [line for line in lines if line["kind"] == "result" and line["source"] != "predicted"]
    configs = [SubnetConfig(line["config"]) for line in good]
    exact: dict[str, Any] = {}
    if space is not None and costs is not None and configs:
        exact = costs.evaluate(space.encode(configs), COST_NAMES)
    seen = tuple(
        Seen(
            line["key"],
            config,
            line["searcher"],
            {**{name: float(exact[name][row]) for name in exact}, **line["values"]},
            line["spread"] or {},
        )
        for row, (line, config) in enumerate(zip(good, configs, strict=True))
    )
    return seen, tuple(str(line["reason"]) for line in lines if line["kind"] == "failed")


def _objectives(
    front: Mapping[str, Any], settings: Mapping[str, Any], seen: Sequence[Seen]
) -> tuple[Objective, ...]:
    """As the front names them; before there is one, as the recipe does."""
    given = front.get("objectives")
    if given is None:
        names = settings.get("search", {}).get("objectives", ())
        metrics = settings.get("evaluate", {}).get("metrics", {})
        goals = {"top1_percent": "max"} | {name: table.get("goal", "max") for name, table in metrics.items()}
        given = [{"name": name, "goal": goals.get(name, "min")} for name in names]
    return tuple(Objective(o["name"], o["goal"]) for o in given if all(o["name"] in s.values for s in seen))


def _chosen(
    run: Run, space: SearchSpace | None, costs: CostTable | None, seen: Sequence[Seen]
) -> tuple[Chosen, ...]:
    configs = [name for name in run.names() if re.fullmatch(r"subnets/[^/]+/config\.json", name)]
    by_key = {evaluation.key: evaluation for evaluation in seen}
    found = [_subnet(run, name.removesuffix("/config.json"), space, costs) for name in configs]
    found = [
        replace(chosen, searched=by_key[chosen.key].values, spread=by_key[chosen.key].spread)
        if chosen.key in by_key
        else chosen
        for chosen in found
    ]
    found.sort(key=lambda chosen: (chosen.costs.get("macs", 0), chosen.key))
    return tuple(replace(chosen, label=_letter(place)) for place, chosen in enumerate(found))


def _subnet(run: Run, place: str, space: SearchSpace | None, costs: CostTable | None) -> Chosen:
    config = config_from_json(run.read_json(f"{place}/config.json"))
    proof, metrics = _json(run, f"{place}/proof.json"), _json(run, f"{place}/metrics.json")
    counted = {name: float(proof[name]) for name in COST_NAMES if name in proof}
    files = [name for name in run.names() if name.startswith(f"{place}/")]
    return Chosen(
        label="",
        key=config.key,
        config=config,
        costs={**_costs_of(config, space, costs), **counted},
        before=metrics.get("before", {}),
        after=metrics.get("after", {}),
        test=metrics.get("test", {}),
        seeds=tuple(metrics.get("seeds", ())),
        proof=proof,
        failed=metrics.get("failed", {}),
        files=tuple((name, run.path(name).stat().st_size) for name in files),
    )


def _letter(place: int) -> str:
    """A to Z, then A1 to Z1 and so on."""
    turn, letter = divmod(place, 26)
    return string.ascii_uppercase[letter] + (str(turn) if turn else "")
