"""The whole road of one run: begin or reopen its folder, then do the stages that are not done yet."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError, config_to_json, nearest_names
from subnet_search.deadline import TimeIsUp
from subnet_search.elastic import make_elastic
from subnet_search.fronts import join_study
from subnet_search.measuring import LATENCIES
from subnet_search.models import load_model
from subnet_search.path_files import PATH
from subnet_search.planning import (
    MARGIN,
    UNITS,
    Planner,
    Standing,
    counted,
    in_seconds,
    plan_to_json,
    wanted,
)
from subnet_search.recipe import (
    Recipe,
    differences,
    parse_recipe,
    recipe_to_toml,
    walks_a_path,
    with_searcher,
)
from subnet_search.record import Run, create_run, open_run
from subnet_search.record.lock import lock_folder
from subnet_search.record.run import CHECKSUMS, EVENTS, SETTINGS, check_free, restore_settings
from subnet_search.searchers import Workers
from subnet_search.settings import ElasticSettings
from subnet_search.stages import (
    PREPARED,
    STAGES,
    Stage,
    check_path,
    export_one,
    is_proved,
)
from subnet_search.standing import JOINED, JOINING, begun_epochs, chosen_keys, num_evaluated
from subnet_search.training.orders import Order, together
from subnet_search.tuning import is_tuned, tune
from subnet_search.workbench import Say, Workbench, set_up_process

PLAN = "plan.json"
BY_ALL_RANKS = ("teacher", "train", "join")


def begin(recipe: Recipe, out: str | Path = "runs", *, overwrite: bool = False) -> Run:
    """The run of this recipe in the folder `out`: a new one, or the existing one if its settings are equal.

    A run whose settings.toml was damaged gets it back, if this is the recipe that it was begun with.

    Raises:
        InvalidInput: a run of that name has other settings, is in use, or its folder holds something else.
    """
    folder = Path(out, recipe.name)
    if _is_replaced(folder, overwrite):
        _delete(folder)  # nothing is lost, and the recipe may have been mended
    restore_settings(folder, recipe_to_toml(recipe))
    if not _is_run(folder):
        return create_run(folder, recipe_to_toml(recipe))
    run = open_run(folder)
    try:
        _refuse_others(run, recipe)
    except BaseException:
        run.close()
        raise
    return run


def look(recipe: Recipe, out: str | Path = "runs", *, overwrite: bool = False) -> Run | None:
    """The run that `begin` would go on with, opened for reading; None if it would make a new one; raises like it."""
    folder = Path(out, recipe.name)
    if _is_replaced(folder, overwrite):
        return None
    if not _is_run(folder):
        check_free(folder)
        return None
    run = open_run(folder, write=False)
    _refuse_others(run, recipe)
    return run


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and (folder / SETTINGS).is_file()


def _is_replaced(folder: Path, overwrite: bool) -> bool:
    return _is_run(folder) and (overwrite or _nothing_computed(folder))


def _refuse_others(run: Run, recipe: Recipe) -> None:
    if changed := differences(read_settings(run), recipe):
        raise InvalidInput(
            f"run {run.folder} exists with other settings ({'; '.join(changed[:5])}). "
            "Choose another --name, or delete the old run with --overwrite"
        )


def read_settings(run: Run) -> Recipe:
    """The recipe a run was begun with."""
    return parse_recipe(run.read("settings.toml").decode("utf-8"), f"{run.folder}/settings.toml")


def change_searcher(run: Run, searcher: str) -> None:
    """Writes another searcher into the settings of a run whose search, or the path before it, has not begun.

    Raises:
        InvalidInput: the searcher is unknown or cannot do with the run's settings, or the search has begun.
    """
    recipe = read_settings(run)
    changed, before = with_searcher(recipe, searcher), recipe.search.searcher
    if before == searcher:
        return
    if run.journal.lines() or any(run.has(name) for name in (PATH, f"{JOINING}.safetensors", JOINED)):
        raise InvalidInput(
            f"run {run.folder} was searched with {before}, not {searcher}; what it found stays. Begin a new run: "
            "subnet-search run RECIPE --name NAME, with the other searcher in the recipe"
        )
    if walks_a_path(changed) and run.has(PREPARED[-1]):
        check_path(Workbench(run, changed, lambda message: None))
    run.write(SETTINGS, recipe_to_toml(changed))


def advance(
    run: Run,
    last: str = "export",
    *,
    say: Say = lambda message: None,
    planner: Planner | None = None,
    storage: str | None = None,
    workers: Workers | None = None,
    trials: int = 0,
) -> None:
    """Does the stages of a run up to `last` that are not done yet.

    With a storage (a URL) the search shares a study with other drivers. Workers evaluate and fine-tune. With a planner,
    every stage begins with a plan from the time that is left, and `TimeIsUp` ends it all in time.

    Raises:
        InvalidInput, SubnetSearchError, KeyboardInterrupt: with a note that says how to go on.
    """
    bench = Workbench(run, read_settings(run), say)
    bench.workers, bench.trials = workers or Workers(), trials
    if trials and (keys := chosen_keys(run)) and all(is_tuned(run, key) for key in keys):
        raise InvalidInput(
            f"the sub-nets of run {run.folder} are fine-tuned already, and trials of settings come before that; begin "
            "a new run with --name, or search on without --trials"
        )
    bench.claims = None if storage is None else join_study(bench, storage)
    set_up_process(bench.recipe)
    names = [stage.name for stage in STAGES]
    if last not in names:
        raise InvalidInput(f"a stage must be one of {', '.join(names)}, got {last!r}")
    again = searched_again(run, bench.recipe, more_time=planner is not None)
    with nullcontext() if planner is None else planner.deadline.enforced(planner.reserve_s):
        for stage in STAGES[: names.index(last) + 1]:
            if not stage.done(run) or stage.name in again:
                _do(stage, bench, planner, standing_of(run, bench.recipe, again, stage.name))
    if damaged := run.damaged():
        raise InvalidInput(
            f"corrupt: {', '.join(f'{run.folder}/{name}' for name in damaged)} changed after being written; "
            "do not use. Restore them from a copy, or delete them: the run makes again what it needs"
        )
    say(f"{run.folder}: {last} is done")


def _do(stage: Stage, bench: Workbench, planner: Planner | None, standing: Standing) -> None:
    run, before = bench.run, num_evaluated(bench.run)
    try:
        timing = plan_stage(stage.name, bench, planner, standing)
        bench.say(f"{run.folder}: {stage.name}{timing}")
        run.event("begin", stage=stage.name)
        start_s = time.monotonic()
        with together(_order(stage, bench)) if stage.name in BY_ALL_RANKS else nullcontext():
            stage.work(bench)
    except BaseException as error:
        if stage is not STAGES[0]:
            error.add_note(_how_to_go_on(error, run))
        raise
    seconds = time.monotonic() - start_s
    run.event("end", stage=stage.name, seconds=round(seconds, 3))
    if planner is not None and bench.plan is not None:
        planned = bench.plan.amounts["search"] - before
        share = (num_evaluated(run) - before) / max(planned, 1) if stage.name == "search" else 1.0
        planner.note(bench.plan, stage.name, seconds, share)


def _order(stage: Stage, bench: Workbench) -> Order:
    """What other ranks are told so that they train along."""
    folder, settings = str(bench.run.folder.resolve()), bench.run.read(SETTINGS).decode()
    return {"stage": stage.name, "folder": folder, "settings": settings, "amount": bench.amount(stage.name)}


def standing_of(
    run: Run, recipe: Recipe, again: frozenset[str] = frozenset(), at: str = STAGES[0].name
) -> Standing:
    """How far a run is that stands at the stage `at`: those before are done, those in `again` are not."""
    begun, keys, names = begun_epochs(run, recipe), chosen_keys(run), [stage.name for stage in STAGES]
    done = frozenset(stage.name for stage in STAGES if stage.done(run)) - again
    done |= frozenset(names[: names.index(at)])
    epochs = {stage: finished for stage, (_, finished) in begun.items() if stage != "finetune"}
    return Standing(
        done,
        {stage: amount for stage, (amount, _) in begun.items()},
        {**epochs, "search": num_evaluated(run)},
        tuned=0 if again else sum(is_tuned(run, key) for key in keys),
        exported=0 if again else sum(is_proved(run, key) for key in keys),
    )


def searched_again(run: Run, recipe: Recipe, *, more_time: bool) -> frozenset[str]:
    """The stages to do again where sub-nets are chosen already: of a search that was stopped, or has more time."""
    if not run.has("front.json") or not chosen_keys(run):
        return frozenset()
    state = run.read_json("front.json").get("state")
    longer = more_time and state == "cut short" and num_evaluated(run) < recipe.search.evaluations
    return frozenset({"search", "finetune"}) if longer or state == "searching" else frozenset()


def plan_stage(stage: str, bench: Workbench, planner: Planner | None, standing: Standing) -> str:
    """Plans the road from this stage on, in plan.json and for the stages; what is said of it beside the stage's name.

    Without a planner the recipe's amounts hold again, and a plan.json that is there tells that.
    """
    run, recipe = bench.run, bench.recipe
    before = run.read_json(PLAN) if run.has(PLAN) else None
    if planner is None:
        if before is not None:
            amounts = {name: bench.amount(name) for name in wanted(recipe)}
            run.write_json(PLAN, plan_to_json(recipe, amounts, standing, before=before))
        return ""
    bench.plan = plan = planner.plan(standing)
    left_s = planner.deadline.left_s()
    if stage == "search":
        spare_s = max(left_s - MARGIN * plan.after_s(stage), min(plan.seconds[stage], left_s))
        bench.search_until_s = time.monotonic() + spare_s
    minutes = planner.deadline.minutes
    told = plan_to_json(recipe, plan.amounts, standing, plan=plan, minutes=minutes, before=before)
    run.write_json(PLAN, told)
    amount = f", {counted(plan.amounts[stage], UNITS[stage])}" if stage in UNITS else ""
    about, left = in_seconds(plan.seconds[stage]), in_seconds(max(left_s, 0.0))
    return f"{amount}, about {about}; {left} of {minutes:g} min left"


def _how_to_go_on(error: BaseException, run: Run) -> str:
    stopped = isinstance(error, KeyboardInterrupt)
    minutes = " --minutes N" if isinstance(error, TimeIsUp) else ""
    return (
        f"everything computed so far is kept; {'go' if stopped else 'once that is mended, go'} on with: "
        f"subnet-search resume {run.folder}{minutes}"
    )


def rebuild(run: Run, key: str, *, say: Say = lambda message: None) -> None:
    """Makes the files of one evaluated sub-net, chosen or not, again: fine-tuned, proved and exported.

    Raises:
        InvalidInput: no sub-net of that key was evaluated.
    """
    configs = {line["key"]: line["config"] for line in run.journal.lines() if line["kind"] == "result"}
    if key not in configs:
        raise InvalidInput(
            f"run {run.folder} has evaluated no sub-net {key!r}{nearest_names(key, configs)}; "
            "the keys are in evaluations.jsonl and in the report"
        )
    bench, config = Workbench(run, read_settings(run), say), SubnetConfig(configs[key])
    run.write_json(f"subnets/{key}/config.json", config_to_json(config))
    if not run.has(f"subnets/{key}/metrics.json"):
        tune(bench, config)
    export_one(bench, config)


def inspect_model(
    name: str, shape: tuple[int, ...], resolution: tuple[int, ...] = ()
) -> tuple[dict[str, Any], str]:
    """Coverage of a model for an input `[1, *shape]`: as in coverage.json, and as a table for people.

    Args:
        name: of the model.
        shape: of one input.
        resolution: further heights of images to try, in pixels.
    """
    settings = ElasticSettings(resolution=resolution)
    supernet = make_elastic(load_model(name, None, {}), torch.zeros(1, *shape), settings)
    return dict(supernet.coverage), coverage_table(supernet.coverage, supernet.space.size)


def coverage_table(coverage: Any, num_subnets: int) -> str:
    """What is elastic, what is not and why, and the range of costs, as lines of text."""
    lines = ["width groups (knob, units, step; kind; modules that write and read the channels):"]
    for group in coverage["groups"]:
        lines.append(
            f"  {group['knob']:<40} {group['units']:>5} units, step {group['step']}; {group['freedom']}; "
            f"{len(group['writers'])} writers, {len(group['readers'])} readers"
            + "".join(f"; {rule}" for rule in group.get("rules", ()))
        )
    lines += ["blocks that can be skipped:", *(f"  {block['path']}" for block in coverage["blocks"])]
    if heights := coverage.get("resolution"):
        lines.append(f"images of {', '.join(map(str, heights))} pixels (height)")
    lines += ["of full width:", *(f"  {fixed['path']}: {fixed['reason']}" for fixed in coverage["fixed"])]
    for end in ("smallest", "largest"):
        lines.append(f"{end}: {coverage[end]['macs']:,} MACs, {coverage[end]['params']:,} parameters")
    share = 100 * coverage["reachable_macs_share"]
    lines.append(f"{Decimal(num_subnets):.3g} sub-nets; {share:.1f} % of the MACs are elastic")
    lines.append(f"elastic: {', '.join(coverage['freedoms'])}")
    what = "its own classes" if coverage["form"] == "own classes" else "the graph of its operations"
    lines.append(f"sub-nets run {what}; {coverage['training']}")
    return "\n".join(lines)


def _nothing_computed(folder: Path) -> bool:
    """Whether the run never came to the end of its first stage."""
    begun = {SETTINGS, CHECKSUMS, EVENTS, PLAN, "teacher.safetensors", LATENCIES, *PREPARED[:-1]}
    return all(path.name in begun or path.name.startswith(".") for path in folder.iterdir())


def _delete(folder: Path) -> None:
    """Deletes a run folder, sound or not, unless another process works on it."""
    lock = lock_folder(folder)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise SubnetSearchError(f"run {folder} cannot be deleted: {error}; choose another --name") from error
    finally:
        lock.release()
