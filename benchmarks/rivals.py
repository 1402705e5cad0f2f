"""Searches by other libraries, and controls, on a `Table`: each proposes until `evaluate` says that it is enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge

from benchmarks.tables import Table
from search_spaces import SubnetConfig
from subnet_search.record import non_dominated
from subnet_search.searchers import Searcher, make_searcher
from subnet_search.searchers.guided import GuidedSearcher

Losses = list[float]  # smaller is better
Evaluate = Callable[[SubnetConfig], Losses]
Rival = Callable[[Table, int, Evaluate], None]
LINAS_START, LINAS_BATCH = 25, 25


def guided(table: Table, seed: int, evaluate: Evaluate) -> None:
    """This project's own searcher; multiply-adds that are no objective help it to predict, as in every search."""
    known = () if table.objectives[0].exact else (table.macs_of,)
    _drive(GuidedSearcher(table.space, table.objectives, seed=seed, known=known), table, evaluate)


def random(table: Table, seed: int, evaluate: Evaluate) -> None:
    """Every knob by itself, no config twice."""
    _drive(make_searcher("random", table.space, table.objectives, seed=seed), table, evaluate)


def _drive(searcher: Searcher, table: Table, evaluate: Evaluate) -> None:
    while True:
        config = searcher.ask()
        evaluate(config)
        searcher.tell(table.evaluate(config))


def optuna_alone(
    sampler: str, table: Table, seed: int, evaluate: Evaluate, *, numbers: bool = False, **settings: Any
) -> None:
    """A sampler of Optuna with its own settings but `settings`, and without what this project adds to it.

    Args:
        numbers: knobs without an order are told to it as whole numbers too, not as categories.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = getattr(optuna.samplers, sampler)(seed=seed, **settings)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=made)
    while True:
        trial = study.ask()
        places = [
            trial.suggest_categorical(knob.name, range(len(knob.choices)))
            if knob.kind == "choice" and not numbers
            else trial.suggest_int(knob.name, 0, len(knob.choices) - 1)
            for knob in table.space.knobs
        ]
        study.tell(trial, evaluate(_config(table, places)))


def cost_aware_random(table: Table, seed: int, evaluate: Evaluate) -> None:
    """Draws a number of multiply-adds, evenly between the least and the most, and takes the nearest new config."""
    rng, left = np.random.default_rng(seed), np.arange(len(table.rows))
    while True:
        target = rng.uniform(table.macs.min(), table.macs.max())
        away = np.abs(table.macs[left] - target)
        pick = rng.choice(np.flatnonzero(away == away.min()))
        evaluate(table.space.decode(table.rows[left[pick : pick + 1]])[0])
        left = np.delete(left, pick)


def pymoo_nsga2(table: Table, seed: int, evaluate: Evaluate) -> None:
    """pymoo's NSGA-II for whole numbers (places of choices), with its own settings for these; population 20."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    knobs = table.space.knobs
    problem = Problem(len(knobs), 2, xl=0, xu=np.array([len(k.choices) - 1 for k in knobs]), vtype=int)
    algorithm = NSGA2(
        pop_size=20,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, termination=("n_gen", 10**6), seed=seed, verbose=False)
    while True:
        asked = algorithm.ask()
        places = np.asarray(asked.get("X")).round().astype(int)
        asked.set("F", np.array([evaluate(_config(table, row)) for row in places]))
        algorithm.evaluator.n_eval += len(asked)
        for individual in asked:
            individual.evaluated.update({"F", "G", "H"})
        algorithm.tell(infills=asked)


def syne_tune_evolution(table: Table, seed: int, evaluate: Evaluate) -> None:
    """Syne Tune's regularised evolution for several objectives, with its own settings."""
    from syne_tune.config_space import choice
    from syne_tune.optimizer.schedulers.multiobjective.multi_objective_regularized_evolution import (
        MultiObjectiveRegularizedEvolution,
    )

    np.random.seed(seed)  # it draws its first population from numpy's global generator
    space = {knob.name: choice(list(range(len(knob.choices)))) for knob in table.space.knobs}
    searcher = MultiObjectiveRegularizedEvolution(space, random_seed=seed)
    for number in range(10**6):
        asked = searcher.suggest()
        losses = evaluate(_config(table, [asked[knob.name] for knob in table.space.knobs]))
        searcher.on_trial_complete(number, asked, losses)


def linas(table: Table, seed: int, evaluate: Evaluate) -> None:
    """The idea of DyNAS-T's LINAS: a predictor trained on all evaluations, its best front evaluated, and again.

    Source:
        Cummings et al., "A Hardware-Aware Framework for Accelerating Neural Architecture Search Across Modalities",
        2022, arXiv:2205.10358. Here every config is predicted (ridge regression on one-hot) in place of
        NSGA-II on the predictor, and 25 are evaluated in each round; costs in closed form are not predicted.
    """
    rng, signs = np.random.default_rng(seed), [o.loss(1.0) for o in table.objectives]
    one_hot = np.concatenate(
        [table.rows[:, i : i + 1] == np.array(k.choices) for i, k in enumerate(table.space.knobs)], axis=1
    )
    picks = rng.choice(len(table.rows), LINAS_START, replace=False).tolist()
    done: list[int] = []
    found: list[Losses] = []
    while picks:
        found += [evaluate(config) for config in table.space.decode(table.rows[picks])]
        done += picks
        known = np.array(found)
        predicted = np.stack(
            [
                sign * o.exact(table.rows)
                if o.exact
                else Ridge().fit(one_hot[done], known[:, j]).predict(one_hot)
                for j, (o, sign) in enumerate(zip(table.objectives, signs, strict=True))
            ],
            axis=1,
        )
        left, picks = np.setdiff1d(np.arange(len(table.rows)), done), []
        while len(picks) < LINAS_BATCH and len(left):
            front = left[non_dominated(predicted[left])]
            picks += rng.permutation(front)[: LINAS_BATCH - len(picks)].tolist()
            left = np.setdiff1d(left, front)


def _config(table: Table, places: Any) -> SubnetConfig:
    knobs = table.space.knobs
    return table.space.canonical(
        {knob.name: knob.choices[int(place)] for knob, place in zip(knobs, places, strict=True)}
    )


RIVALS: dict[str, Rival] = {
    "guided": guided,
    "random": random,
    "cost-aware random": cost_aware_random,
    "Optuna NSGA-II": partial(optuna_alone, "NSGAIISampler"),
    "Optuna TPE": partial(optuna_alone, "TPESampler"),
    "Optuna TPE, multivariate": partial(optuna_alone, "TPESampler", multivariate=True),
    "Optuna TPE, multivariate, numbers": partial(optuna_alone, "TPESampler", multivariate=True, numbers=True),
    "Optuna GP": partial(optuna_alone, "GPSampler"),
    "pymoo NSGA-II": pymoo_nsga2,
    "Syne Tune evolution": syne_tune_evolution,
    "LINAS idea": linas,
}
PACKAGES = {"pymoo NSGA-II": "pymoo", "Syne Tune evolution": "syne_tune"}
