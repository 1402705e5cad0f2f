"""Fine-tuning on workers, as trials of Ray Tune: each chosen sub-net, and settings to fine-tune with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from search_spaces import SubnetConfig, SubnetSearchError
from subnet_search.finetuning import finetune
from subnet_search.measure import correct
from subnet_search.planning import shortened
from subnet_search.record import Run, create_run, open_run
from subnet_search.run_evaluator import bench_of
from subnet_search.tuning import TRIED, is_tuned, tune
from subnet_search.workbench import Workbench
from subnet_search.workers.tuner import Asha, Trial, report, run_trials, trial_name

FOLDER = "trials"  # in the run: what trials keep while they are under way
NOT_WORSE = 0.1  # percentage points: of settings that are as good, those of the recipe stay
Values = dict[str, Any]


def tune_on_workers(bench: Workbench, configs: list[SubnetConfig]) -> None:
    """Fine-tunes sub-nets on the workers, one in a trial; what they find is that of one process.

    A trial writes checkpoints into a folder of its own, from which it goes on when its worker, or this process, dies.

    Raises:
        SubnetSearchError: a trial failed again and again.
    """
    for config in configs:
        bench.statistics(config)  # workers only read the run
    place = bench.run.folder.resolve() / FOLDER / "members"
    left = [config for config in configs if not _is_done(place, config)]
    shutil.rmtree(place / "tune", ignore_errors=True)  # the trials' own checkpoints say all
    if left:
        values: Values = {"key": ("each", [config.key for config in left])}
        values |= {"folder": str(bench.run.folder.resolve())}
        values |= {"configs": {config.key: dict(config) for config in left}}
        trials = run_trials(
            tune_member,
            values | {"epochs": bench.amount("finetune")},
            bench.workers,
            place / "tune",
            count=1,
            seed=bench.recipe.finetune.seed,
        )
        if failed := [trial for trial in trials if trial.problem]:
            raise SubnetSearchError(
                f"fine-tuning of {failed[0].values['key']} failed: {failed[0].problem[-300:]}; the others are kept"
            )
    for config in configs:
        _adopt(bench.run, place / config.key, f"subnets/{config.key}")
        metrics = bench.run.read_json(f"subnets/{config.key}/metrics.json")
        before, after = (metrics[when]["top1_percent"] for when in ("before", "after"))
        bench.say(f"  {config.key}: {before:.2f} -> {after:.2f} % on search-validation")
    shutil.rmtree(place, ignore_errors=True)


def tune_member(values: Values) -> None:
    """The trial that fine-tunes one sub-net."""
    config = SubnetConfig(values["configs"][values["key"]])
    bench = bench_of(values["folder"])
    place = Path(values["folder"], FOLDER, "members", config.key)
    with _opened(place) as own:
        if not is_tuned(own, config.key):
            own.write_json(f"subnets/{config.key}/config.json", {})
            tune(bench, config, into=own, epochs=values["epochs"])
        after = own.read_json(f"subnets/{config.key}/metrics.json")["after"]
    report({"top1_percent": after["top1_percent"]})


def find_settings(bench: Workbench, configs: list[SubnetConfig]) -> None:
    """Tries settings of fine-tuning on the sub-net of middle cost; the best ones go to trials.json, and are used.

    Learning rate, weight decay and the teacher's share are drawn around the recipe's, which are tried too. Trials that
    fall behind are stopped by successive halving. Settings are chosen by search-validation, so its accuracy after
    tuning flatters; the test split is not seen.
    """
    run, settings = bench.run, bench.recipe.finetune
    if run.has(TRIED):
        return
    configs = sorted(configs, key=lambda config: float(bench.costs.macs(bench.space.encode([config]))[0]))
    config, epochs = configs[len(configs) // 2], bench.amount("finetune")
    bench.statistics(config)
    low, high = settings.lr / 10, settings.lr * 10
    decay = settings.weight_decay or 1e-4
    fixed = {"folder": str(run.folder.resolve()), "config": dict(config), "epochs": epochs}
    drawn = {"lr": ("log", low, high), "weight_decay": ("log", decay / 10, decay * 10)}
    drawn |= {"teacher_share": ("between", 0.0, 0.9)}
    place = run.folder.resolve() / FOLDER / "settings" / "tune"
    trials = run_trials(
        try_settings,
        fixed | drawn,
        bench.workers,
        place,
        count=bench.trials,
        seed=settings.seed,
        asha=Asha("top1_percent", epochs),
    )
    own = {name: getattr(settings, name) for name in drawn}
    [control] = run_trials(
        try_settings, fixed | own, bench.workers, place.with_name("control"), count=1
    )  # to its end
    ended = [t for t in trials if not t.problem and t.reported.get("epoch") == epochs]
    best = max([control, *ended], key=_score)
    chosen = own if _score(best) < _score(control) + NOT_WORSE else {n: best.values[n] for n in drawn}
    told = [_told(trial, drawn) for trial in trials]
    run.write_json(
        TRIED,
        {
            "config": config.key,
            "split": "search_val",
            "best": chosen,
            "recipe": _told(control, drawn),
            "trials": told,
        },
    )
    stopped = len(trials) - len(ended)
    bench.say(
        f"  {len(trials)} trials of fine-tuning settings on {config.key}, {stopped} of them stopped early or failed: "
        f"{_score(best):.2f} %, the recipe's {_score(control):.2f} %; using "
        + ", ".join(f"{name} = {value:.3g}" for name, value in chosen.items())
    )
    shutil.rmtree(place.parent, ignore_errors=True)


def try_settings(values: Values) -> None:
    """The trial of one choice of settings: reports search-validation after each epoch."""
    bench, config = bench_of(values["folder"]), SubnetConfig(values["config"])
    settings = bench.recipe.finetune
    given = {name: values[name] for name in ("lr", "weight_decay", "teacher_share")}
    settings = settings.model_copy(update=given | shortened(settings, values["epochs"], settings.epochs))
    net, splits = bench.extracted(config), bench.splits

    def tell(tuned: nn.Module, epoch: int) -> None:
        top1 = 100 * float(correct(tuned, splits.search_val).mean())
        report({"top1_percent": top1, "epoch": epoch})

    place = Path(values["folder"], FOLDER, "settings", trial_name())
    with _opened(place) as own:
        finetune(net, splits, settings, teacher=bench.supernet, run=own, after_epoch=tell)


def _score(trial: Trial) -> float:
    return float(trial.reported.get("top1_percent", float("-inf")))


def _told(trial: Trial, names: Any) -> dict[str, Any]:
    reported = {name: trial.reported.get(name) for name in ("epoch", "top1_percent")}
    return {**{name: trial.values[name] for name in names}, **reported, "problem": trial.problem[-300:]}


def _opened(place: Path) -> Run:
    """A folder of a trial, which it finds again when it is restarted anywhere."""
    place.parent.mkdir(parents=True, exist_ok=True)
    return open_run(place) if place.is_dir() else create_run(place, "")


def _is_done(place: Path, config: SubnetConfig) -> bool:
    if not (place / config.key).is_dir():
        return False
    return is_tuned(open_run(place / config.key, write=False), config.key)


def _adopt(run: Run, place: Path, name: str) -> None:
    """Takes the files of a trial into the run; what says that it is done comes last."""
    made = open_run(place, write=False)
    for file in ("net.safetensors", "metrics.json"):
        run.write(f"{name}/{file}", made.read(f"{name}/{file}"))
