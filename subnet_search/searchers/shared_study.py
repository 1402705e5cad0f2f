"""An Optuna study as a table of claims and answers, which optuna-dashboard shows like any other study.

A sub-net that is being evaluated is a RUNNING trial, made in one transaction with its parameters and these attributes:

- `key` and `context` of the sub-net, as in the journal;
- `driver`, whose trial it is;
- `lease`, written anew by that driver every so often.

Of several RUNNING trials of one key and context the one with the lowest number owns the sub-net. The attribute `answer`
holds what belongs to the values: source, seconds, spread, reason, images. What was evaluated is COMPLETE, what failed
FAIL, what was stopped by a race PRUNED; a FAIL without the `answer` of a failure is a claim that was `given_up`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search_spaces import InvalidInput, Knob, SearchSpace, SubnetConfig, space_to_json
from subnet_search.record import Evaluation, Images, Objective

from .claims import Told
from .optuna_search import quiet

# MySQL holds 64 KiB in an attribute; the journal of the driver that paid has all of it
LONGEST_REASON = 2000  # characters, of up to 12 bytes each as they are written
MOST_RIGHT_BYTES = 24_000  # of the packed answers; without them others do not race against this sub-net


class SharedStudy:
    """One study, read and written by this driver.

    Args:
        storage: that holds it.
        name: of the study, which is made if it is not there.
        space: what its parameters are.
        objectives: what its values are.
        context: trials of another one do not count.
        driver: the name of this one.

    Attributes:
        answers: what is known, by key.
        told: answers of other drivers, in the order in which they were read.

    Raises:
        InvalidInput: the study is one of another space or of other objectives.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: SearchSpace,
        objectives: Sequence[Objective],
        context: str,
        driver: str,
    ) -> None:
        self.storage, self.name, self.driver = storage, name, driver
        self._context, self._num_values = context, len(objectives)
        self.answers: dict[str, Told] = {}
        self.told: list[Told] = []
        self._distributions = {knob.name: _distribution(knob) for knob in space.knobs}
        self._read: set[int] = set()  # numbers of finished trials
        self._running: dict[str, list[FrozenTrial]] = {}
        directions = [optuna.study.StudyDirection[o.goal.upper() + "IMIZE"] for o in objectives]
        with quiet():
            study = optuna.create_study(
                storage=storage, study_name=name, directions=directions, load_if_exists=True
            )
            self._study_id = study._study_id
            self._describe(study, {"space": digest_of_space(space), "objectives": _named(objectives)})
            study.set_metric_names([objective.name for objective in objectives])

    def _describe(self, study: optuna.Study, facts: Mapping[str, Any]) -> None:
        for what, fact in facts.items():
            found = study.user_attrs.get(what)
            if found is None:
                study.set_user_attr(what, fact)
            elif found != fact:
                raise InvalidInput(
                    f"the study {self.name!r} is one of other {what} ({found}, here {fact}); choose another study"
                )

    def refresh(self) -> None:
        """Reads what has changed."""
        self._running = {}
        for trial in self.storage.get_all_trials(self._study_id, deepcopy=False):
            if trial.number in self._read or trial.user_attrs.get("context") != self._context:
                continue
            if trial.state == TrialState.RUNNING:
                self._running.setdefault(trial.user_attrs["key"], []).append(trial)
            elif trial.state.is_finished():
                self._read.add(trial.number)
                self._learn(trial)

    def _learn(self, trial: FrozenTrial) -> None:
        told = answer_of_trial(trial)
        if told is None or trial.user_attrs["key"] in self.answers:
            return
        images = told.evaluation.images
        if not told.evaluation.in_full and (images is None or images.rival not in self.answers):
            return  # it counts only where what beat it is known
        self.answers[trial.user_attrs["key"]] = told
        if told.driver != self.driver:
            self.told.append(told)

    def running(self, key: str = "") -> list[FrozenTrial]:
        """The RUNNING trials of a sub-net, as read last, the lowest number first; without a key those of all."""
        if key:
            return self._running.get(key, [])
        return [trial for trials in self._running.values() for trial in trials]

    def create(self, config: SubnetConfig, answer: tuple[Evaluation, float] | None = None) -> int:
        """Makes a RUNNING trial, or a finished one of an answer; returns its id."""
        attributes = {"key": config.key, "context": self._context, "driver": self.driver}
        if answer is None:
            state, values, more = TrialState.RUNNING, None, {"lease": _lease(0)}
        else:
            state, values, content = _answered(*answer)
            more = {"answer": content}
        now = datetime.now()
        trial = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=state,
            value=None,
            values=values,
            datetime_start=now,
            datetime_complete=None if answer is None else now,
            params=dict(config),
            distributions=self._distributions,
            user_attrs={**attributes, **more},
            system_attrs={},
            intermediate_values={},
        )
        return int(self.storage.create_new_trial(self._study_id, trial))

    def renew(self, trial_id: int, beat: int) -> None:
        """Writes the lease of a RUNNING trial anew; one that is finished stays as it is."""
        self._if_running(trial_id, "lease", _lease(beat))

    def give_up(self, trial_id: int, why: str) -> None:
        """Ends a RUNNING trial without an answer."""
        if self._if_running(trial_id, "given_up", why):
            self._end(trial_id, TrialState.FAIL, None)

    def answer(self, trial_id: int, evaluation: Evaluation, seconds: float) -> bool:
        """Ends a RUNNING trial with its answer; False if another driver has ended it before."""
        state, values, content = _answered(evaluation, seconds)
        return self._if_running(trial_id, "answer", content) and self._end(trial_id, state, values)

    def _if_running(self, trial_id: int, attribute: str, value: Any) -> bool:
        try:
            self.storage.set_trial_user_attr(trial_id, attribute, value)
        except RuntimeError:  # Optuna's word for a trial that is finished
            return False
        return True

    def _end(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        try:
            return bool(self.storage.set_trial_state_values(trial_id, state, values))
        except RuntimeError:
            return False


def name_of_study(label: str, space: SearchSpace, objectives: Sequence[Objective], context: str) -> str:
    """The same for drivers whose results can take each other's place, and for no others."""
    call = [digest_of_space(space), _named(objectives), context]
    return f"{label}-{hashlib.sha256(json.dumps(call).encode()).hexdigest()[:12]}"


def digest_of_space(space: SearchSpace) -> str:
    """A checksum of its knobs and what they depend on."""
    return hashlib.sha256(json.dumps(space_to_json(space), sort_keys=True).encode()).hexdigest()[:12]


def answer_of_trial(trial: FrozenTrial) -> Told | None:
    """What a finished trial tells; None for a claim that was given up, be it while its answer was being written."""
    content = trial.user_attrs.get("answer")
    if content is None or (trial.state == TrialState.FAIL) != (content["status"] == "failed"):
        return None
    config, driver = SubnetConfig(trial.params), str(trial.user_attrs["driver"])
    if content["status"] == "failed":
        return Told(Evaluation(config, (), "failed", content["reason"]), driver)
    values = trial.values if trial.state == TrialState.COMPLETE else content["values"]
    images = Images.from_json(content["images"]) if content.get("images") else None
    spread = tuple(content["spread"]) if content["spread"] else None
    return Told(
        Evaluation(config, tuple(values), "ok", content["reason"], content["source"], spread, images), driver
    )


def _answered(
    evaluation: Evaluation, seconds: float
) -> tuple[TrialState, list[float] | None, dict[str, Any]]:
    """State, values and the attribute `answer` of a trial; values that are estimates are none of Optuna's."""
    state = TrialState.COMPLETE if evaluation.in_full else TrialState.PRUNED
    images = evaluation.images
    if images is not None and len(images.right) > MOST_RIGHT_BYTES:
        images = dataclasses.replace(images, right=b"")
    content = {
        "status": evaluation.status,
        "source": evaluation.source,
        "seconds": round(seconds, 6),
        "reason": evaluation.reason[:LONGEST_REASON],
        "spread": list(evaluation.spread) if evaluation.spread else None,
        "images": images.to_json() if images else None,
    }
    if not evaluation.ok:
        return TrialState.FAIL, None, content
    if state == TrialState.PRUNED:
        return state, None, {**content, "values": list(evaluation.values)}
    return state, list(evaluation.values), content


def _lease(beat: int) -> dict[str, Any]:
    return {"beat": beat, "at": datetime.now(UTC).isoformat(timespec="seconds")}


def _named(objectives: Sequence[Objective]) -> list[list[str]]:
    return [[objective.name, objective.goal] for objective in objectives]


def _distribution(knob: Knob) -> BaseDistribution:
    """Over the choices themselves, so that a dashboard shows widths; as whole numbers where they are evenly spaced."""
    choices = knob.choices
    steps = {b - a for a, b in itertools.pairwise(choices)}
    if knob.kind == "choice" or len(steps) > 1:
        return CategoricalDistribution(choices)
    return IntDistribution(choices[0], choices[-1], step=steps.pop() if steps else 1)
