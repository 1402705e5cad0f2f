"""The search stage: its time, the front it leaves, and when it is over."""

from __future__ import annotations

import math
import socket
import time
from typing import Literal

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from search_spaces.costs import COST_NAMES
from subnet_search.choosing import named_values
from subnet_search.kit_boards import keep_for_search
from subnet_search.recipe import walks_a_path
from subnet_search.record import Evaluation, Objective, ParetoFront, Run, worst_values
from subnet_search.searchers import (
    Budget,
    Evaluator,
    EvaluatorFactory,
    Listed,
    Racing,
    SearchResult,
    StudyClaims,
    images_told,
    search,
    spread_out,
)
from subnet_search.searchers.feasible import Feasible
from subnet_search.settings import PREDICTED
from subnet_search.standing import chosen_keys
from subnet_search.subnet_sets import save_subnets
from subnet_search.workbench import Workbench

PATH_SUBNETS = "path.subnets.safetensors"

FrontState = Literal["searching", "cut short", "complete"]


def search_front(bench: Workbench) -> None:
    """The search, continued where its journal ends, and the front it found."""
    settings = bench.recipe.search
    if PREDICTED in settings.objectives:
        bench.check_board_limit(
            bench.limits(settings.limits)
        )  # before what is known is set down: more may come
        keep_for_search(bench.run, str(bench.recipe.device.board))
    racing = Racing() if settings.racing else None
    evaluator = _evaluator(bench)
    path = bench.path() if walks_a_path(bench.recipe) else []
    context = "" if bench.search_until_s is None else bench.evaluator.context
    context = racing.context(context) if racing else context
    budget = Budget(evaluations=bench.amount("search"), minutes=_search_minutes(bench, context))
    result = search(
        bench.space,
        evaluator,
        _along(bench, path) if path else settings.searcher,
        name=settings.searcher,
        budget=budget,
        limits=bench.limits(settings.limits),
        costs=bench.costs,
        seed=settings.seed,
        workers=bench.workers,
        run=bench.run,
        timeout_s=bench.recipe.evaluate.timeout_seconds,
        racing=racing,
        claims=bench.claims,
        keep=lambda found: write_front(bench.run, found, found.front.objectives, "searching"),
    )
    cut = bench.plan is not None and result.ended != "exhausted"
    complete = not cut or len(result.evaluations) >= settings.evaluations
    failed = [evaluation for evaluation in result.evaluations if not evaluation.ok]
    if len(failed) == len(result.evaluations):
        raise SubnetSearchError(f"all {len(failed)} evaluations failed, the last one: {failed[-1].reason}")
    if not len(result.front):
        longer = "Search longer or loosen the limits in a new run" if complete else "Give it more --minutes"
        raise SubnetSearchError(
            f"no evaluated sub-net meets the limits {dict(settings.limits)}; the nearest values are "
            f"{dict(result.nearest)}. {longer}"
        )
    if path:
        _save_path_subnets(bench, [member.config for member in result.front if member.config in path])
    write_front(bench.run, result, result.front.objectives, "complete" if complete else "cut short")
    told = f", {len(failed)} of them failed (the last one: {failed[-1].reason})" if failed else ""
    cost = f", {spent}" if (spent := images_told(result.evaluations)) else ""
    bench.say(
        f"  {len(result.evaluations)} evaluations{told}{cost}, {len(result.front)} sub-nets on the front"
    )


def _evaluator(bench: Workbench) -> Evaluator | EvaluatorFactory:
    """What measures sub-nets: here, or in each worker, which makes it from the run's folder."""
    if bench.workers.are_here:
        if bench.recipe.search.racing and not bench.evaluator.in_stages:
            bench.say("  no racing: the search-validation images are more than [evaluate] memory_mib holds")
        return bench.evaluator
    if bench.times_nets:
        if bench.workers.address is None and bench.workers.count > 1 and bench.workers.gpus_each < 1:
            raise InvalidInput(
                f"latency is measured, and {bench.workers.count} workers on one machine slow each other down; search "
                "with one worker, leave latency_ms out of the objectives, or give a cluster's --ray-address"
            )
        _ = bench.meter  # its reference goes into the run, where workers find it
    folder = str(bench.run.folder.resolve())
    return EvaluatorFactory("subnet_search.run_evaluator:evaluator_of", {"folder": folder})


def join_study(bench: Workbench, url: str) -> StudyClaims:
    """This run's part in the study that a storage keeps for its space, objectives, weights, data and protocol.

    Raises:
        InvalidInput: the storage cannot be opened.
    """
    driver = f"{socket.gethostname()}:{bench.run.folder.resolve()}"
    return StudyClaims(url, label=bench.recipe.model.name, driver=driver, say=bench.say)


def _along(bench: Workbench, path: list[SubnetConfig]) -> Listed:
    """Proposes the sub-nets of a path that meet the limits on costs; however few are looked at, from all over it."""
    limits = bench.limits(bench.recipe.search.limits)
    feasible = Feasible(
        bench.space, bench.costs, {n: limit for n, limit in limits.items() if n in COST_NAMES}
    )
    allowed = [config for config in path if feasible.allows(config)]
    if not allowed:
        bench.say("  no sub-net of the path meets the limits: only uniform and random ones are looked at")
    return Listed(spread_out(allowed))


def _save_path_subnets(bench: Workbench, configs: list[SubnetConfig]) -> None:
    """Writes the front's sub-nets of the path into one file, with batch-norm statistics for each."""
    if not configs:
        bench.run.delete(PATH_SUBNETS)
        return
    pairs = [(config, bench.evaluator.statistics_of(config)) for config in configs]
    with bench.run.writing(PATH_SUBNETS) as file:
        save_subnets(file, bench.supernet, pairs)


def _search_minutes(bench: Workbench, context: str) -> float | None:
    """The recipe's minutes, or fewer where the time planned for the search ends earlier.

    A search counts the time of evaluations on record too; to end at a moment, it is given that time besides.
    """
    minutes = bench.recipe.search.minutes
    if bench.search_until_s is None:
        return minutes
    journal = bench.run.journal
    recorded = (*journal.known(context).values(), *journal.stopped(context).values())
    recorded_s = sum(float(line["seconds"]) for line in recorded)
    left_s = max(bench.search_until_s - time.monotonic(), 1e-3)
    return min((recorded_s + left_s) / 60, math.inf if minutes is None else minutes)


def write_front(
    run: Run, result: SearchResult, objectives: tuple[Objective, ...], state: FrontState = "complete"
) -> None:
    """Writes front.json, if there is a front.

    Its reference point is 0 for what is to be high, else the worst value seen. A search that goes on is "searching",
    one that ended with the time of a plan, before the recipe's budget was spent, "cut short".
    """
    if not len(result.front):
        return
    worst = worst_values(objectives, result.evaluations)
    reference = {o.name: worst[o.name] if o.goal == "min" else min(0.0, worst[o.name]) for o in objectives}
    run.write_json(
        "front.json",
        {
            "objectives": [{"name": o.name, "goal": o.goal} for o in objectives],
            "members": [
                {"key": e.config.key, "config": dict(e.config), "values": named_values(objectives, e)}
                for e in result.front
            ],
            "evaluations": len(result.evaluations),
            "state": state,
            "reference": reference,
            "hypervolume": result.front.hypervolume(reference),
        },
    )


def read_front(run: Run) -> ParetoFront:
    """The front that `write_front` wrote."""
    stored = run.read_json("front.json")
    objectives = tuple(Objective(o["name"], o["goal"]) for o in stored["objectives"])
    members = [
        Evaluation(SubnetConfig(m["config"]), tuple(m["values"][o.name] for o in objectives))
        for m in stored["members"]
    ]
    return ParetoFront.of(objectives, members)


def is_searched(run: Run) -> bool:
    """Whether there is a front, and the journal still holds as many evaluations as it was taken from.

    A search that was cut short is over once sub-nets are chosen from its front.
    """
    if not run.has("front.json"):
        return False
    if PATH_SUBNETS in run.missing():
        return False
    front = run.read_json("front.json")
    state = front.get("state", "complete")  # runs of earlier versions do not tell
    if state == "searching" or (state == "cut short" and not chosen_keys(run)):
        return False
    answered = {line["key"] for line in run.journal.lines() if line["kind"] != "ask"}
    return len(answered) >= int(front["evaluations"])
