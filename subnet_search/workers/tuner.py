"""Ray Tune for trials that train: retried when a worker dies, stopped early where one number decides, restored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces import SubnetSearchError
from subnet_search.searchers.pool import Workers

from .link import connected, import_tune

RETRIES = 2  # of a trial whose worker died
REDUCTION = 3  # at each rung this share of the trials goes on


@dataclass(frozen=True)
class Trial:
    """One trial: its values, the last of what it reported, and why it failed, if it did."""

    values: Mapping[str, Any]
    reported: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving on `metric`, which is to be high, reported with a rising `epoch`.

    Source:
        Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, arXiv:1810.05934.
    """

    metric: str
    epochs: int


def run_trials(
    trainable: Callable[[dict[str, Any]], None],
    values: Mapping[str, Any],
    workers: Workers,
    folder: Path,
    *,
    count: int,
    seed: int = 0,
    asha: Asha | None = None,
) -> list[Trial]:
    """Runs trials on the workers, or the rest of those that an earlier process began in the same folder.

    Args:
        trainable: a function of an importable module; is called with one value for each name, and reports numbers
            with `report`. A trial that is restarted is called again with the same values.
        values: by name a constant, or ("each", choices), ("log", low, high), ("between", low, high) to draw from;
            `count` draws are made of all names, for "each" once for each choice.
        workers: how many trials at a time, and where.
        folder: on storage that all nodes share; keeps Tune's state.
        count: of draws.
        seed: of the draws.
        asha: stops trials that are not among the best third when they report; none goes on to its end.

    Raises:
        InvalidInput: no Ray, or no cluster.
    """
    tune = import_tune()
    needs = {"cpu": 1, "gpu": workers.gpus_each}
    with connected(workers):
        remote = tune.with_resources(trainable, needs)
        if tune.Tuner.can_restore(str(folder)):
            tuner = tune.Tuner.restore(str(folder), remote, resume_errored=True, resume_unfinished=True)
        else:
            tuner = tune.Tuner(
                remote,
                param_space={name: _drawn(tune, value) for name, value in values.items()},
                tune_config=tune.TuneConfig(
                    num_samples=count,
                    max_concurrent_trials=workers.count,
                    search_alg=tune.search.BasicVariantGenerator(
                        max_concurrent=workers.count, random_state=seed
                    ),
                    scheduler=None if asha is None else _scheduler(tune, asha),
                ),
                run_config=tune.RunConfig(
                    name=folder.name,
                    storage_path=str(folder.parent),
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                    verbose=0,
                ),
            )
        results = tuner.fit()
        trials = [
            Trial(result.config, result.metrics or {}, "" if result.error is None else str(result.error))
            for result in results
        ]
    if trials and all(trial.problem for trial in trials):
        raise SubnetSearchError(f"all {len(trials)} trials failed, the last one: {trials[-1].problem[-300:]}")
    return trials


def report(numbers: Mapping[str, float]) -> None:
    """Reports from within a trial."""
    import_tune().report(dict(numbers))


def trial_name() -> str:
    """The name of the trial that this is called in, the same when it is restarted."""
    return str(import_tune().get_context().get_trial_id())


def _drawn(tune: Any, value: Any) -> Any:
    match value:
        case ("each", choices):
            return tune.grid_search(list(choices))
        case ("log", low, high):
            return tune.loguniform(low, high)
        case ("between", low, high):
            return tune.uniform(low, high)
    return value


def _scheduler(tune: Any, asha: Asha) -> Any:
    return tune.schedulers.ASHAScheduler(
        time_attr="epoch",
        metric=asha.metric,
        mode="max",
        max_t=max(asha.epochs, 1),
        grace_period=1,
        reduction_factor=REDUCTION,
    )
