"""A road under a time budget, and one that is only looked at: both begin with a rehearsal."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from search_spaces import InvalidInput
from subnet_search.deadline import Deadline, TimeIsUp
from subnet_search.estimating import Rehearsal, Report, place_for, rehearse
from subnet_search.pipeline import advance, begin, look, read_settings, searched_again, standing_of
from subnet_search.planning import Planner, Standing, in_seconds, make_plan, table
from subnet_search.recipe import Recipe
from subnet_search.record import Run, open_run
from subnet_search.searchers import Workers
from subnet_search.stages import STAGES
from subnet_search.workbench import Say


@dataclass(frozen=True, slots=True)
class Ending:
    """Where a road ended: the run, the stop if the time was up, and whether there is a front by then."""

    folder: Path
    stopped: TimeIsUp | None
    has_front: bool


def walk(
    recipe: Recipe,
    out: Path,
    deadline: Deadline | None,
    *,
    overwrite: bool,
    report: Report,
    say: Say,
    workers: Workers | None = None,
) -> Ending:
    """Begins the run of a recipe or goes on with it, within the deadline if there is one.

    Whether a new run fits into its time is found out before anything is written.

    Args:
        recipe: the whole road.
        out: the folder of the runs.
        deadline: its minutes are for everything, planning and the report included; None: as long as it takes.
        overwrite: delete an existing run first.
        report: writes the report of a run folder; here it is only timed.
        say: is told what happens.
        workers: who evaluate and fine-tune; a plan does not count on more than one.
    """
    planner = None
    if deadline is not None and look(recipe, out, overwrite=overwrite) is None:
        planner = _planner(recipe, None, out, deadline, report, say)
    with begin(recipe, out, overwrite=overwrite) as run:
        if deadline is not None and planner is None:
            planner = _planner(recipe, run, out, deadline, report, say)
        return _advance(run, planner, say, workers)


def go_on(
    folder: Path, deadline: Deadline | None, *, report: Report, say: Say, workers: Workers | None = None
) -> Ending:
    """Goes on with an existing run; otherwise as `walk`."""
    with open_run(folder) as run:
        planner = None
        if deadline is not None:
            planner = _planner(read_settings(run), run, folder.parent, deadline, report, say)
        return _advance(run, planner, say, workers)


def foresee(recipe: Recipe, out: Path, deadline: Deadline | None, *, overwrite: bool, report: Report) -> str:
    """Checks what `walk` would refuse, and tells what it would do and how long that takes; keeps nothing.

    Raises:
        InvalidInput, SubnetSearchError: what the run itself would raise.
    """
    run = look(recipe, out, overwrite=overwrite)
    rehearsal = rehearse(recipe, out, report)
    free = _free_bytes(rehearsal, out)
    planner = None if deadline is None else Planner(recipe, rehearsal.rates, deadline)
    standing = _standing(run, recipe, more_time=planner is not None)
    plan = make_plan(recipe, rehearsal.rates, standing) if planner is None else planner.plan(standing)
    lines = [
        f"the run {Path(out, recipe.name)} would {'begin' if run is None else 'go on'}:",
        *rehearsal.lines,
        table(recipe, plan, rehearsal.rates, standing),
    ]
    if planner is not None and not plan.fits:
        least = planner.smallest_minutes(standing)
        lines.append(
            f"  too much for {planner.deadline.minutes:g} min: it needs --minutes {least:g} at least"
        )
    lines.append(f"  up to {rehearsal.bytes / 1e6:,.0f} MB on the disk, where {free / 1e6:,.0f} MB are free")
    lines.append(f"all of it was tried in small, in {in_seconds(rehearsal.seconds)}; nothing was kept")
    return "\n".join(lines)


def _planner(
    recipe: Recipe, run: Run | None, out: Path, deadline: Deadline, report: Report, say: Say
) -> Planner | None:
    """Measures the stages and plans the road within the deadline; writes nothing. None where all is done.

    Raises:
        InvalidInput: not even the smallest plan fits; the message names the minutes that it needs.
    """
    standing = _standing(run, recipe, more_time=True)
    if len(standing.done) == len(STAGES):
        return None
    say(f"measuring a few steps of every stage, to plan {deadline.minutes:g} min")
    try:
        with deadline.enforced():
            rehearsal = rehearse(recipe, out, report)
    except TimeIsUp:
        raise InvalidInput(
            f"--minutes {deadline.minutes:g} is too little even to time a few steps of every stage; "
            "run --dry-run tells how long the whole road takes"
        ) from None
    _free_bytes(rehearsal, out)
    planner = Planner(recipe, rehearsal.rates, deadline)
    plan = planner.plan(standing)
    if not plan.fits:
        begun = {stage: amount for stage, amount in standing.begun.items() if stage not in standing.done}
        kept = "".join(
            f"; {stage} has begun and keeps its {amount} epochs" for stage, amount in begun.items()
        )
        raise InvalidInput(
            f"--minutes {deadline.minutes:g} is too little for what is left of the road{kept}. "
            f"The smallest plan needs --minutes {planner.smallest_minutes(standing):g}"
        )
    say(table(recipe, plan, planner.rates, standing))
    return planner


def _advance(run: Run, planner: Planner | None, say: Say, workers: Workers | None) -> Ending:
    stopped = None
    try:
        advance(run, say=say, planner=planner, workers=workers)
    except TimeIsUp as stop:
        front = (
            f"the front so far is in {run.folder}/front.json"
            if run.has("front.json")
            else "there is no front yet"
        )
        stop.__notes__ = [front, *getattr(stop, "__notes__", ())]
        stopped = stop
    return Ending(Path(run.folder), stopped, run.has("front.json"))


def _standing(run: Run | None, recipe: Recipe, *, more_time: bool) -> Standing:
    if run is None:
        return Standing()
    return standing_of(run, recipe, searched_again(run, recipe, more_time=more_time))


def _free_bytes(rehearsal: Rehearsal, out: Path) -> int:
    """The free bytes where the run will be; raises `InvalidInput` when they are too few."""
    place = place_for(out)
    free = shutil.disk_usage(place).free
    if free < rehearsal.bytes:
        raise InvalidInput(
            f"the run needs about {rehearsal.bytes / 1e6:,.0f} MB, but {place} has {free / 1e6:,.0f} MB free; "
            "make room, or choose another --out"
        )
    return free
