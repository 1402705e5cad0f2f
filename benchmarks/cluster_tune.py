"""Our searchers inside Ray Tune, beside Tune's own way to Optuna: what each costs for one trial."""

from __future__ import annotations

import time
import warnings
from collections import deque
from typing import Any

import numpy as np

from benchmarks.cluster_toys import COSTS, OBJECTIVES, SPACE, worth
from search_spaces import SubnetConfig
from subnet_search.searchers import make_searcher
from subnet_search.workers.link import import_tune
from subnet_search.workers.tune_searcher import as_tune_searcher

TRIALS, UNDER_WAY, WINDOWS = 400, 4, ((0, 100), (300, 400))


def adapters() -> dict[str, tuple[float, float]]:
    """Milliseconds for one trial, by searcher, early and late."""
    found = {}
    for name in ("random", "nsga2", "tpe", "guided"):
        ours = as_tune_searcher(make_searcher(name, SPACE, OBJECTIVES, costs=COSTS), SPACE, OBJECTIVES)
        found[f"ours: {name}"] = per_trial_ms(ours)
    for name in ("RandomSampler", "NSGAIISampler", "TPESampler"):
        found[f"OptunaSearch: {name}"] = per_trial_ms(optuna_search(name))
    return found


def optuna_search(sampler: str) -> Any:
    """Ray Tune's own searcher with a sampler of Optuna's, on the same space and objectives."""
    import_tune()
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    space: dict[str, Any] = {
        knob.name: optuna.distributions.CategoricalDistribution(knob.choices) for knob in SPACE.knobs
    }
    return OptunaSearch(
        space=space,
        metric=[objective.name for objective in OBJECTIVES],
        mode=[objective.goal for objective in OBJECTIVES],
        sampler=getattr(optuna.samplers, sampler)(seed=0),
    )


def per_trial_ms(searcher: Any) -> tuple[float, float]:
    """Means of suggesting and completing, over the windows of trials: some searchers plan for several at once."""
    under_way: deque[tuple[str, dict[str, int]]] = deque()
    spent_ms = []
    for number in range(TRIALS + UNDER_WAY):
        start_s = time.perf_counter()
        if number < TRIALS:
            under_way.append((f"trial{number}", searcher.suggest(f"trial{number}")))
        suggested_s = time.perf_counter() - start_s
        completed_s = 0.0
        if len(under_way) > UNDER_WAY or number >= TRIALS:
            trial, config = under_way.popleft()
            values = worth(SPACE.canonical(SubnetConfig(config))).values
            result = {o.name: value for o, value in zip(OBJECTIVES, values, strict=True)}
            start_s = time.perf_counter()
            searcher.on_trial_complete(trial, result)
            completed_s = time.perf_counter() - start_s
        spent_ms.append(1e3 * (suggested_s + completed_s))
    return tuple(float(np.mean(spent_ms[start:stop])) for start, stop in WINDOWS)  # type: ignore[return-value]
