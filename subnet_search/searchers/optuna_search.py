"""Optuna's samplers behind ask and tell, made repeatable, duplicate-free and feasible by construction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from search_spaces import CostTable, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective, check_objectives, check_values

from .feasible import Feasible, SpaceExhausted, check_seed

POPULATION = 20  # Optuna's 50 would spend a usual budget of some hundred evaluations on four generations


@dataclass(frozen=True)
class Method:
    """How one Optuna sampler is used.

    Attributes:
        sampler: (seed of the search, seed of this ask) to a fresh sampler.
        tries: how often a proposal may be a known config before an unseen one near it takes its place.
        slow: asking takes seconds and depends on the trials alone: a record is replayed without asking.
    """

    sampler: Callable[[int, int], BaseSampler]
    tries: int = 8
    slow: bool = False


METHODS: Mapping[str, Method] = {
    "random": Method(lambda _, now: optuna.samplers.RandomSampler(seed=now)),
    "nsga2": Method(lambda _, now: optuna.samplers.NSGAIISampler(seed=now, population_size=POPULATION)),
    "nsga3": Method(lambda _, now: optuna.samplers.NSGAIIISampler(seed=now, population_size=POPULATION)),
    "tpe": Method(lambda _, now: optuna.samplers.TPESampler(seed=now, multivariate=True)),
    # a known proposal would come again: the model learns nothing from being told it twice
    "gp": Method(lambda _, now: optuna.samplers.GPSampler(seed=now), tries=1, slow=True),
    # every point of a low-discrepancy sequence belongs to one seed; its position is kept by the study
    "qmc": Method(lambda seed, _: optuna.samplers.QMCSampler(seed=seed, scramble=True)),
}


class OptunaSearcher:
    """Asks an Optuna sampler for sub-nets.

    The randomness of ask n comes from (seed, n) alone: every ask gets a fresh sampler. A proposal is made
    canonical and projected into the limits, and the trial then holds the repaired config. It is the trial that
    was asked for, so that it belongs to a generation of NSGA; points added from outside do not, and starve it.
    A known proposal is told its known values and asked for anew.

    Args:
        method: a key of `METHODS`.
        space: what may be proposed.
        objectives: order and goals of the values that will be told.
        seed: any whole number >= 0.
        limits: upper bounds by cost name; they need `costs`.
        costs: the space's cost table.

    Raises:
        InvalidInput: for an infeasible limit (the message says the nearest feasible value) or a bad seed.
    """

    def __init__(
        self,
        method: str,
        space: SearchSpace,
        objectives: Sequence[Objective],
        *,
        seed: int = 0,
        limits: Mapping[str, float] | None = None,
        costs: CostTable | None = None,
    ) -> None:
        self._method = METHODS[method]
        self._space = space
        self._objectives = check_objectives(objectives)
        self._feasible = Feasible(space, costs, limits)
        self._seed = check_seed(seed)
        self._turn = -1
        self._known: dict[str, Evaluation] = {}
        self._waiting: dict[str, list[optuna.Trial]] = {}
        self._distributions = {k.name: _distribution(k.kind, len(k.choices)) for k in space.knobs}
        self._relative: dict[
            str, BaseDistribution
        ] = {}  # looking through all trials would take half of an ask
        self._storage = optuna.storages.InMemoryStorage()
        directions = [optuna.study.StudyDirection[o.goal.upper() + "IMIZE"] for o in self._objectives]
        with quiet():
            self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)

    def ask(self) -> SubnetConfig:
        """The next sub-net to evaluate: canonical, inside the limits, never one that was asked or told before.

        Raises:
            SpaceExhausted: when there is no such sub-net.
        """
        self._turn += 1
        seen = self._known.keys() | self._waiting.keys()
        if len(seen) >= self._space.size:
            raise SpaceExhausted(f"all {self._space.size} sub-nets of the space were proposed already")
        for attempt in range(self._method.tries):
            trial = self._trial(self._method, attempt)
            config = self._feasible.repair(self._config_of(trial))
            if config.key not in seen:
                return self._issue(trial, config)
            if attempt + 1 < self._method.tries:
                self._repeat(trial, config)
        try:
            config = self._feasible.unseen(config, seen, np.random.default_rng((self._seed, self._turn)))
        except SpaceExhausted:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        return self._issue(trial, config)

    def tell(self, evaluation: Evaluation) -> None:
        """Takes what was found, in any order, also for sub-nets that were never asked for; only once for each.

        Raises:
            InvalidInput: for a config of another space or another number of values.
        """
        config = self._space.canonical(evaluation.config)
        check_values(self._objectives, evaluation)
        if config.key in self._known:
            return
        if config.key not in self._waiting:
            self._turn += 1
            self._issue(self._trial(self._quick_method()), config)
        self._known[config.key] = evaluation
        for trial in self._waiting.pop(config.key):
            self._answer(trial, evaluation)

    def replay(self, config: SubnetConfig) -> SubnetConfig:
        """Does what `ask` did when it returned `config` in a recorded search, without its waiting time."""
        if not self._method.slow or config.key in self._known or config.key in self._waiting:
            return self.ask()
        self._turn += 1
        return self._issue(self._trial(self._quick_method()), self._space.canonical(config))

    def _quick_method(self) -> Method:
        return METHODS["random"] if self._method.slow else self._method

    def _trial(self, method: Method, attempt: int = 0) -> optuna.Trial:
        number = np.random.SeedSequence((self._seed, self._turn, attempt)).generate_state(1)[0]
        with quiet():
            sampler: Any = method.sampler(self._seed, int(number))
            if method is self._method:
                sampler.infer_relative_search_space = partial(
                    self._shared, sampler.infer_relative_search_space
                )
            self._study.sampler = sampler
            return self._study.ask(self._distributions)

    def _shared(
        self, infer: Callable[..., dict[str, BaseDistribution]], study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What a sampler takes for the knobs that all trials share: here all of them, once there is a trial."""
        self._relative = self._relative or infer(study, trial)
        return self._relative

    def _config_of(self, trial: optuna.Trial) -> dict[str, int]:
        return {knob.name: knob.choices[trial.params[knob.name]] for knob in self._space.knobs}

    def _place(self, trial: optuna.Trial, config: SubnetConfig) -> None:
        """Makes the repaired config the trial's own parameters."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        for knob in self._space.knobs:
            distribution = self._distributions[knob.name]
            index = distribution.to_internal_repr(knob.choices.index(config[knob.name]))
            self._storage.set_trial_param(trial_id, knob.name, index, distribution)

    def _issue(self, trial: optuna.Trial, config: SubnetConfig) -> SubnetConfig:
        self._place(trial, config)
        self._waiting[config.key] = [trial]
        return config

    def _repeat(self, trial: optuna.Trial, config: SubnetConfig) -> None:
        self._place(trial, config)
        if config.key in self._known:
            self._answer(trial, self._known[config.key])
        else:
            self._waiting[config.key].append(trial)

    def _answer(self, trial: optuna.Trial, evaluation: Evaluation) -> None:
        with quiet():
            if evaluation.ok:
                self._study.tell(trial, list(evaluation.values))
            else:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _distribution(kind: str, count: int) -> BaseDistribution:
    """Over the index of a choice, so that unevenly spaced choices are equally likely."""
    return CategoricalDistribution(range(count)) if kind == "choice" else IntDistribution(0, count - 1)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's notes on studies and experimental classes; its settings are put back."""
    level: Any = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)
