"""What runs in a worker: an evaluator that is made once, and answers."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces import SubnetConfig, SubnetSearchError
from subnet_search.record import Evaluation, Objective, check_objectives
from subnet_search.searchers.pool import EvaluatorFactory, answer_of
from subnet_search.searchers.racing import Racing, can_race
from subnet_search.searchers.recorder import Answer, Evaluator

from .versions import difference, own_versions

LATENCY = "latency_ms"


@dataclass(frozen=True)
class Job:
    """What a worker is told before it begins: small things only."""

    factory: EvaluatorFactory
    folder: str  # where modules are looked for too
    versions: Mapping[str, str]
    timeout_s: float | None
    racing: Racing | None


@dataclass(frozen=True)
class Hello:
    """What a worker says when it is ready, or why it never will be (`problem`)."""

    host: str
    pid: int
    problem: str = ""
    objectives: tuple[Objective, ...] = ()
    context: str = ""
    is_timed: bool = False  # measures times, which others on the same hardware would disturb


class EvaluatingActor:
    """One worker; Ray calls its methods one after the other, in the main thread of its process."""

    def __init__(self) -> None:
        self._evaluator: Evaluator | None = None
        self._job: Job | None = None

    def begin(self, job: Job) -> Hello:
        """Makes the evaluator; what is wrong is said, not raised."""
        who: Any = {"host": socket.gethostname(), "pid": os.getpid()}
        if other := difference(job.versions, own_versions()):
            return Hello(**who, problem=f"it has {other}; install the same on all nodes")
        if job.folder not in sys.path and os.path.isdir(job.folder):
            sys.path.append(job.folder)
        try:
            evaluator = job.factory.make()
            objectives = check_objectives(evaluator.objectives)
            if job.racing is not None:
                can_race(evaluator)
        except SubnetSearchError as error:
            return Hello(**who, problem=str(error))
        self._evaluator, self._job = evaluator, job
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # far faster than several where workers share a machine
        timed = any(o.name == LATENCY and o.exact is None for o in objectives)
        plain = tuple(Objective(o.name, o.goal) for o in objectives)  # functions need not travel
        context = str(getattr(evaluator, "context", ""))
        return Hello(**who, objectives=plain, context=context, is_timed=timed)

    def ping(self) -> bool:
        """True: it is alive."""
        return True

    def evaluate(self, config: SubnetConfig, seen: tuple[Evaluation, ...]) -> Answer:
        """One evaluation."""
        assert self._evaluator is not None
        assert self._job is not None
        return answer_of(self._evaluator, config, seen, self._job.timeout_s, self._job.racing)
