"""The command line: a table of functions that translate and decide nothing.

Exit codes: 0 done, 1 failed while working, 2 refused, 130 Ctrl-C, 143 SIGTERM. No traceback without --debug.
"""

from __future__ import annotations

import json
import os
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
    from subnet_search.searchers import Workers
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
RuntimeOption = Annotated[
    str | None,
    typer.Option(help="torch, compile, onnxruntime, openvino, executorch or command (default: as [device])."),
]
Threads = Annotated[int | None, typer.Option(help="Of the runtime.")]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16 or int8, where the runtime has it.")]
BatchSize = Annotated[int | None, typer.Option("--batch", help="Images in a call.")]
Command = Annotated[str | None, typer.Option(help="For any board: a command with {file} and {runs} in it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Count = Annotated[
    int, typer.Option("--workers", min=1, help="Processes that evaluate and fine-tune; several need Ray.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help='Of a Ray cluster: "auto", HOST:PORT or ray://HOST:PORT (default: this machine).',
    ),
]
GpusEach = Annotated[
    float, typer.Option("--gpus-per-worker", min=0, help="GPUs of each worker, such as 1 or 0.5.")
]


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
    workers: Count = 1,
    ray_address: Address = None,
    gpus_per_worker: GpusEach = 0.0,
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

    Further tables: elastic, train, rank, progressive, evaluate, finetune, dynamic, export, report. RUN/settings.toml
    shows every key.
    """
    deadline, settings = _deadline(minutes), read_recipe(recipe, name)
    if not dry_run:
        _walk(settings, out, overwrite, deadline, _workers(workers, ray_address, gpus_per_worker))
        return
    from reports import write_report
    from subnet_search.timed import foresee

    typer.echo(foresee(settings, out, deadline, overwrite=overwrite, report=write_report))


@app.command()
@guarded
def resume(
    folder: RunFolder,
    minutes: Minutes = None,
    workers: Count = 1,
    ray_address: Address = None,
    gpus_per_worker: GpusEach = 0.0,
) -> None:
    """Continue a run where it stopped; with --minutes also a search that its time has cut short."""
    deadline = _deadline(minutes)
    from reports import write_report
    from subnet_search.timed import go_on

    chosen = _workers(workers, ray_address, gpus_per_worker)
    _end(go_on(folder, deadline, report=write_report, say=_say, workers=chosen))


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
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="SUBNET_SEARCH_STORAGE",
            help="An Optuna storage, such as sqlite:////shared/study.db or postgresql://USER@HOST/DATABASE, on which "
            "several searches share one study.",
        ),
    ] = None,
    workers: Count = 1,
    ray_address: Address = None,
    gpus_per_worker: GpusEach = 0.0,
) -> None:
    """Search for the Pareto front, and the stages before it.

    "progressive" finds a path of nested sub-nets first and trains them together; see docs/guides/progressive.md. What
    --storage does: docs/guides/shared-study.md; workers, here or on a Ray cluster: docs/guides/cluster.md.
    """
    chosen = _workers(workers, ray_address, gpus_per_worker)
    _stage(target, out, "search", searcher, storage=storage, workers=chosen)


@app.command()
@guarded
def finetune(
    target: Target,
    out: Out = Path("runs"),
    workers: Count = 1,
    ray_address: Address = None,
    gpus_per_worker: GpusEach = 0.0,
    trials: Annotated[
        int, typer.Option(min=0, help="Settings to try first, with Ray Tune; the best ones are used.")
    ] = 0,
) -> None:
    """Choose sub-nets and fine-tune them, and the stages before it."""
    chosen = _workers(workers, ray_address, gpus_per_worker)
    _stage(target, out, "finetune", workers=chosen, trials=trials)


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
def dynamic(
    target: Target,
    out: Out = Path("runs"),
    method: Annotated[str | None, typer.Option(help='"ds" (gates) or "lc" (layers and channels).')] = None,
    place: Annotated[
        list[str] | None, typer.Option(help="Module after which a gate stands; again for more.")
    ] = None,
    share: Annotated[list[float] | None, typer.Option(help="Mean cost to be met, again for more.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the gates' training.")] = None,
) -> None:
    """Make a net that decides for each input how much of it runs, after the stages up to the search.

    Options stand over the recipe's [dynamic] table; see docs/guides/dynamic.md.
    """
    from subnet_search.settings import DynamicSettings

    given = {"method": method, "places": place or None, "targets": share or None, "epochs": epochs}
    DynamicSettings(**{name: value for name, value in given.items() if value is not None})  # refused at once
    folder = _stage(target, out, "search")
    from subnet_search.deciding import make_dynamic
    from subnet_search.record import open_run

    with open_run(folder) as opened:
        make_dynamic(opened, given, say=_say)
    _report(folder)


@app.command()
@guarded
def kit(
    target: Target,
    out: Out = Path("runs"),
    count: Annotated[int, typer.Option(help="Nets in the kit.")] = 30,
    formats: Annotated[str, typer.Option(help="Of onnx, pt2, pte, with commas between.")] = "onnx",
    device: Annotated[
        str | None, typer.Option(help='A name for the board (default: [device] board, else "board").')
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Take the front's members, to measure what was predicted.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option("--import", metavar="CSV", help="Learn from what a board measured.")
    ] = None,
    number: Annotated[
        int | None, typer.Option(help="The kit of these results (default: the latest).")
    ] = None,
) -> None:
    """Write sub-nets and a runner for a board without this package; --import brings its times back.

    See docs/guides/kit.md.
    """
    folder = target if results else _stage(target, out, "prepare")
    from subnet_search.kit import import_into, kit_for
    from subnet_search.record import open_run

    with open_run(folder) as opened:
        if results:
            typer.echo(import_into(opened, results, device, number))
        else:
            typer.echo(kit_for(opened, count, formats, device, front, say=_say))


@app.command()
@guarded
def profile(
    target: Target,
    out: Out = Path("runs"),
    nets: Annotated[int, typer.Option(help="How many sub-nets, from the smallest to the largest.")] = 20,
    steps: Annotated[
        bool, typer.Option("--steps", help="Find the channel steps of each type of layer instead.")
    ] = False,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="Compare the front with widths rounded to these steps instead.")
    ] = False,
    runtime: RuntimeOption = None,
    threads: Threads = None,
    precision: Precision = None,
    batch: BatchSize = None,
    command: Command = None,
    as_json: AsJson = False,
) -> None:
    """Measure sub-nets on the target device: share of time against share of MACs. Ctrl-C keeps what is measured.

    The target is the run's [device] table, or what the options say; see docs/guides/device.md.
    """
    folder = _stage(target, out, "prepare")
    from subnet_search.profiling import profile_run
    from subnet_search.record import open_run

    given = _on_target(runtime, threads, precision, batch, command)
    with open_run(folder) as opened:
        typer.echo(profile_run(opened, nets, given, steps=steps, aligned=aligned, as_json=as_json, say=_say))


@app.command()
@guarded
def compare(
    first: Annotated[
        Path, typer.Argument(metavar="NET_A", help="RUN/subnets/KEY, a run folder or a model file.")
    ],
    second: Annotated[Path, typer.Argument(metavar="NET_B", help="The same.")],
    runtime: RuntimeOption = None,
    threads: Threads = None,
    precision: Precision = None,
    batch: BatchSize = None,
    command: Command = None,
    input_shape: Annotated[
        str | None,
        typer.Option("--input", help="One example: channels x height x width (default: the run's)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which of two nets is faster on a target device, or that nobody can tell."""
    from subnet_search.comparing import compare_nets

    given = _on_target(runtime, threads, precision, batch, command)
    typer.echo(compare_nets(first, second, given, input_shape, as_json=as_json))


def _on_target(
    runtime: str | None, threads: int | None, precision: str | None, batch: int | None, command: str | None
) -> dict[str, str | int | None]:
    given = {"runtime": runtime, "threads": threads, "precision": precision, "batch_size": batch}
    return {**given, "command": command}


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


def _workers(count: int, address: str | None, gpus_each: float) -> Workers:
    from subnet_search.searchers import Workers

    return Workers(count, address, gpus_each)


def _walk(
    recipe: Recipe, out: Path, overwrite: bool, deadline: Deadline | None, workers: Workers | None = None
) -> None:
    from reports import write_report
    from subnet_search.timed import walk

    _end(walk(recipe, out, deadline, overwrite=overwrite, report=write_report, say=_say, workers=workers))


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


def _stage(
    target: Path,
    out: Path,
    last: str,
    searcher: str | None = None,
    *,
    storage: str | None = None,
    workers: Workers | None = None,
    trials: int = 0,
) -> Path:
    is_recipe = target.suffix == ".toml" and not target.is_dir()
    recipe = read_recipe(target) if is_recipe else None
    if recipe and searcher is not None:
        recipe = with_searcher(recipe, searcher)

    from subnet_search.pipeline import advance, begin, change_searcher
    from subnet_search.record import open_run

    with begin(recipe, out) if recipe else open_run(target) as opened:
        if searcher is not None:
            change_searcher(opened, searcher)
        advance(opened, last, say=_say, storage=storage, workers=workers, trials=trials)
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


def _run_as_rank(arguments: list[str]) -> int:
    from subnet_search.ranks import run_as_rank

    return run_as_rank(arguments, run_command)


def main() -> None:
    """The console script."""
    code = _run_as_rank(sys.argv[1:]) if "TORCHELASTIC_RUN_ID" in os.environ else run_command(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done: a late Ctrl-C changes nothing
    sys.exit(code)
