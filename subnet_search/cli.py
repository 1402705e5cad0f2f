"""The command line: a table of functions that translate and decide nothing.

Exit codes: 0 done, 1 failed while working, 2 refused, 130 Ctrl-C, 143 SIGTERM. No traceback without --debug.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import InvalidInput
from subnet_search import exits
from subnet_search.deadline import Deadline
from subnet_search.exits import guarded
from subnet_search.recipe import Recipe, quickstart_recipe, read_recipe, with_searcher

if TYPE_CHECKING:
    from subnet_search.timed import Ending

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)

Out = Annotated[Path, typer.Option(help="The folder that holds the runs.")]
Name = Annotated[str | None, typer.Option(help="The run's name (default: the recipe's).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete an existing run of that name first.")]
Target = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a recipe to begin one.")]
Minutes = Annotated[
    float | None,
    typer.Option(help="Budget of this command for the whole road; epochs and evaluations shrink to fit."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def _say(message: str) -> None:
    typer.echo(message, err=True)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Turns a trained vision network into a set of smaller, faster, proved sub-networks."""


@app.command()
@guarded
def quickstart(
    name: Name = None,
    out: Out = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    overwrite: Overwrite = False,
    minutes: Minutes = None,
) -> None:
    """Run the whole road on handwritten digits: two minutes on one core, ends with a report."""
    deadline = _deadline(minutes)
    _walk(quickstart_recipe(seed, name), out, overwrite, deadline)


@app.command()
@guarded
def run(
    recipe: Annotated[Path, typer.Argument(help="A TOML file with one table per stage.")],
    name: Name = None,
    out: Out = Path("runs"),
    overwrite: Overwrite = False,
    minutes: Minutes = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, estimate the time of each stage, keep nothing."),
    ] = False,
) -> None:
    """Run the whole road of a recipe; an existing run with equal settings is continued.

    A recipe is a TOML file with a table for each stage. Only the model's name has no default:

    \b
    [model]
    name = "torchvision:resnet18"        # or "timm:NAME", "package.module:factory"; [model.options]
    weights = "IMAGENET1K_V1"            # or a .safetensors file; none: train epochs = N first
    [data]
    source = "my_package.data:splits"    # a function that returns subnet_search.Splits; or "digits"
    [device]
    threads = 1                          # small networks are often faster with one
    [search]
    evaluations = 500
    limits = { macs = "50%" }            # a number, or a share of the whole network's
    choose_under = [{ macs = "25%" }]    # or choose = 3: spread over the front

    Further tables: elastic, train, rank, progressive, evaluate, finetune, export, report. RUN/settings.toml shows
    every key.
    """
    deadline, settings = _deadline(minutes), read_recipe(recipe, name)
    if not dry_run:
        _walk(settings, out, overwrite, deadline)
        return
    from reports import write_report
    from subnet_search.timed import foresee

    typer.echo(foresee(settings, out, deadline, overwrite=overwrite, report=write_report))


@app.command()
@guarded
def resume(folder: RunFolder, minutes: Minutes = None) -> None:
    """Continue a run where it stopped; with --minutes also a search that its time has cut short."""
    deadline = _deadline(minutes)
    from reports import write_report
    from subnet_search.timed import go_on

    _end(go_on(folder, deadline, report=write_report, say=_say))


@app.command()
@guarded
def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the checks as JSON instead of a table.")
    ] = False,
) -> None:
    """Show what is installed and really works here, and what a missing extra would add."""
    from subnet_search.doctor import examine, table, to_json, works

    checks = examine()
    typer.echo(json.dumps(to_json(checks), indent=2) if as_json else table(checks))
    if not works(checks):
        raise typer.Exit(1)


@app.command()
@guarded
def inspect(
    model: Annotated[
        str, typer.Argument(help='"torchvision:NAME", "timm:NAME" or "package.module:factory".')
    ],
    input_shape: Annotated[
        str, typer.Option("--input", help="One example: channels x height x width.")
    ] = "3x224x224",
    resolution: Annotated[
        list[int] | None,
        typer.Option(help="A smaller height of images to try, in pixels; may be given several times."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print coverage.json instead of a table.")] = False,
) -> None:
    """Show what is elastic in a model, what is not and why, the smallest and largest cost, and which form runs."""
    if not re.fullmatch(r"\d+(x\d+)*", input_shape):
        raise InvalidInput(f"--input must look like 3x224x224, got {input_shape!r}")
    from subnet_search.pipeline import inspect_model

    shape = tuple(int(side) for side in input_shape.split("x"))
    coverage, table = inspect_model(model, shape, tuple(resolution or ()))
    typer.echo(json.dumps(coverage, indent=2) if as_json else table)


@app.command()
@guarded
def train(target: Target, out: Out = Path("runs")) -> None:
    """Train the supernet, after the stages before it."""
    _stage(target, out, "train")


@app.command()
@guarded
def rank(target: Target, out: Out = Path("runs")) -> None:
    """Rank the channels of the trained network, which is trained first if it has no weights yet."""
    _stage(target, out, "rank")


@app.command()
@guarded
def search(
    target: Target,
    out: Out = Path("runs"),
    searcher: Annotated[
        str | None,
        typer.Option(
            help="Search with this one instead of the recipe's: guided, random, nsga2, nsga3, tpe, gp, qmc, "
            "progressive or uniform. In a run folder only before its search has begun."
        ),
    ] = None,
) -> None:
    """Search for the Pareto front, and the stages before it.

    "progressive" finds a path of nested sub-nets first and trains them together; see docs/guides/progressive.md.
    """
    _stage(target, out, "search", searcher)


@app.command()
@guarded
def finetune(target: Target, out: Out = Path("runs")) -> None:
    """Choose sub-nets and fine-tune them, and the stages before it."""
    _stage(target, out, "finetune")


@app.command()
@guarded
def export(
    target: Target,
    out: Out = Path("runs"),
    key: Annotated[str | None, typer.Option(help="Make only this evaluated sub-net's files (again).")] = None,
) -> None:
    """Prove and export the chosen sub-nets, and the stages before it."""
    if key is None:
        _stage(target, out, "export")
    else:
        folder = _stage(target, out, "search")
        from subnet_search.pipeline import rebuild
        from subnet_search.record import open_run

        with open_run(folder) as opened:
            rebuild(opened, key, say=_say)


@app.command()
@guarded
def report(folder: RunFolder) -> None:
    """Write report.html and its figures from what is in a run folder."""
    _report(folder)


@app.command()
@guarded
def plot(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    x: Annotated[str, typer.Option(help="Objective or cost on the x axis.")] = "macs",
    y: Annotated[str, typer.Option(help="Objective on the y axis.")] = "top1_percent",
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path("front.png"),
) -> None:
    """Draw the Pareto fronts of runs into one picture."""
    from reports import plot_front

    plot_front(folders, x=x, y=y, out=out)
    typer.echo(out)


def _walk(recipe: Recipe, out: Path, overwrite: bool, deadline: Deadline | None) -> None:
    from reports import write_report
    from subnet_search.timed import walk

    _end(walk(recipe, out, deadline, overwrite=overwrite, report=write_report, say=_say))


def _deadline(minutes: float | None) -> Deadline | None:
    return None if minutes is None else Deadline(minutes)


def _end(ending: Ending) -> None:
    """The report; and where the time was up, what to do next, with exit code 0 if there is a front, else 1."""
    _report(ending.folder)
    if ending.stopped is not None:
        for line in (str(ending.stopped), *getattr(ending.stopped, "__notes__", ())):
            _say(line)
        if not ending.has_front:
            raise typer.Exit(1)


def _stage(target: Path, out: Path, last: str, searcher: str | None = None) -> Path:
    is_recipe = target.suffix == ".toml" and not target.is_dir()
    recipe = read_recipe(target) if is_recipe else None
    if recipe and searcher is not None:
        recipe = with_searcher(recipe, searcher)

    from subnet_search.pipeline import advance, begin, change_searcher
    from subnet_search.record import open_run

    with begin(recipe, out) if recipe else open_run(target) as opened:
        if searcher is not None:
            change_searcher(opened, searcher)
        advance(opened, last, say=_say)
        return Path(opened.folder)


def _report(folder: Path) -> None:
    from reports import write_report

    typer.echo(write_report(folder))


def run_command(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; `--debug` may stand anywhere in it."""
    exits.debugging = "--debug" in arguments
    previous = signal.signal(signal.SIGTERM, exits.terminate)
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="subnet-search")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def main() -> None:
    """The console script."""
    code = run_command(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done: a late Ctrl-C changes nothing
    sys.exit(code)
