"""The whole road of one run: begin or reopen its folder, then do the stages that are not done yet."""

from __future__ import annotations

import shutil
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError, config_to_json, nearest_names
from subnet_search.elastic import make_elastic
from subnet_search.models import load_model
from subnet_search.recipe import Recipe, differences, parse_recipe, recipe_to_toml
from subnet_search.record import Run, create_run, open_run
from subnet_search.record.lock import lock_folder
from subnet_search.record.run import CHECKSUMS, EVENTS, SETTINGS
from subnet_search.stages import PREPARED, STAGES, export_one, tune
from subnet_search.workbench import Say, Workbench


def begin(recipe: Recipe, out: str | Path = "runs", *, overwrite: bool = False) -> Run:
    """The run of this recipe in the folder `out`: a new one, or the existing one if its settings are equal.

    Raises:
        InvalidInput: a run of that name has other settings, is in use, or its folder holds something else.
    """
    folder = Path(out, recipe.name)
    is_run = folder.is_dir() and (folder / SETTINGS).is_file()
    if is_run and (overwrite or _nothing_computed(folder)):
        _delete(folder)  # nothing is lost, and the recipe may have been mended
        is_run = False
    if not is_run:
        return create_run(folder, recipe_to_toml(recipe))
    run = open_run(folder)
    try:
        changed = differences(read_settings(run), recipe)
        if changed:
            raise InvalidInput(
                f"run {folder} exists with other settings ({'; '.join(changed[:5])}). "
                "Choose another --name, or delete the old run with --overwrite"
            )
    except BaseException:
        run.close()
        raise
    return run


def read_settings(run: Run) -> Recipe:
    """The recipe a run was begun with."""
    return parse_recipe(run.read("settings.toml").decode("utf-8"), f"{run.folder}/settings.toml")


def advance(run: Run, last: str = "export", *, say: Say = lambda message: None) -> None:
    """Does the stages of a run up to `last` that are not done yet.

    Raises:
        InvalidInput, SubnetSearchError, KeyboardInterrupt: with a note that says how to go on.
    """
    bench = Workbench(run, read_settings(run), say)
    if bench.recipe.device.threads is not None:
        torch.set_num_threads(bench.recipe.device.threads)
    names = [stage.name for stage in STAGES]
    if last not in names:
        raise InvalidInput(f"a stage must be one of {', '.join(names)}, got {last!r}")
    for stage in STAGES[: names.index(last) + 1]:
        if stage.done(run):
            continue
        say(f"{run.folder}: {stage.name}")
        run.event("begin", stage=stage.name)
        start_s = time.monotonic()
        try:
            stage.work(bench)
        except BaseException as error:
            if stage is not STAGES[0]:
                error.add_note(_how_to_go_on(error, run))
            raise
        run.event("end", stage=stage.name, seconds=round(time.monotonic() - start_s, 3))
    if damaged := run.damaged():
        raise InvalidInput(
            f"corrupt: {', '.join(f'{run.folder}/{name}' for name in damaged)} changed after being written; "
            "do not use. Restore them from a copy, or delete them: the run makes again what it needs"
        )
    say(f"{run.folder}: {last} is done")


def _how_to_go_on(error: BaseException, run: Run) -> str:
    stopped = isinstance(error, KeyboardInterrupt)
    return (
        f"everything computed so far is kept; {'go' if stopped else 'once that is mended, go'} on with: "
        f"subnet-search resume {run.folder}"
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


def inspect_model(name: str, shape: tuple[int, ...]) -> tuple[dict[str, Any], str]:
    """Coverage of a model for an input `[1, *shape]`: as in coverage.json, and as a table for people."""
    supernet = make_elastic(load_model(name, None, {}), torch.zeros(1, *shape))
    return dict(supernet.coverage), coverage_table(supernet.coverage, supernet.space.size)


def coverage_table(coverage: Any, num_subnets: int) -> str:
    """What is elastic, what is not and why, and the range of costs, as lines of text."""
    lines = ["width groups (knob, units, step; modules that write and read the channels):"]
    for group in coverage["groups"]:
        lines.append(
            f"  {group['knob']:<40} {group['units']:>5} units, step {group['step']}; "
            f"{len(group['writers'])} writers, {len(group['readers'])} readers"
        )
    lines += ["blocks that can be skipped:", *(f"  {block['path']}" for block in coverage["blocks"])]
    lines += ["of full width:", *(f"  {fixed['path']}: {fixed['reason']}" for fixed in coverage["fixed"])]
    for end in ("smallest", "largest"):
        lines.append(f"{end}: {coverage[end]['macs']:,} MACs, {coverage[end]['params']:,} parameters")
    share = 100 * coverage["reachable_macs_share"]
    lines.append(f"{Decimal(num_subnets):.3g} sub-nets; {share:.1f} % of the MACs are elastic")
    return "\n".join(lines)


def _nothing_computed(folder: Path) -> bool:
    """Whether the run never came to the end of its first stage."""
    begun = {SETTINGS, CHECKSUMS, EVENTS, "teacher.safetensors", *PREPARED[:-1]}
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
