"""Evaluations by actors of a Ray cluster, which may die, hang, come and go."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.record import Evaluation, Objective, ParetoFront
from subnet_search.searchers.pool import EvaluatorFactory, Workers, out_of_time
from subnet_search.searchers.racing import Racing
from subnet_search.searchers.recorder import Answer

from .actor import EvaluatingActor, Hello, Job
from .link import connected
from .versions import own_versions

LOG = logging.getLogger(__name__)
RETRIES = 2  # of an evaluation whose worker died
STARTS = 3  # in a row that a worker may die before it is ready
TIMED = (
    "latency is measured, and workers on one machine slow each other down; use one worker for each machine, or one GPU "
    "for each worker, or workers=1"
)
GRACE_S = 5.0  # for a worker to find out by itself that its time is up
LOOK_EVERY_S = 5.0
STALE_S = 1.0  # after so long without a sign a worker may have died


@dataclass
class Task:
    """A sub-net to evaluate, and how often a worker died over it."""

    config: SubnetConfig
    seen: tuple[Evaluation, ...]
    deaths: int = 0


@dataclass
class Slot:
    """The place of one worker.

    Attributes:
        actor: what Ray calls it.
        ref: the answer it owes.
        task: what it evaluates, since `since_s`.
        is_asked: whether it was given that; before, one that had nothing to do for long is asked if it is alive.
        seen_s: when it last said something.
        hello: who it is, once it has said so.
        starts: how often it was started since it was last ready.
        is_new: whether no worker was ever ready here.
    """

    actor: Any = None
    ref: Any = None
    task: Task | None = None
    since_s: float = 0.0
    is_asked: bool = False
    seen_s: float = 0.0
    hello: Hello | None = None
    starts: int = 0
    is_new: bool = True


class RayPool:
    """Long-lived actors that make their evaluator once and then answer.

    A worker that dies is replaced wherever there is room, and its sub-net is evaluated again, at most twice; then it
    has failed. So has one that takes too long: its worker is ended and replaced. A worker that differs from this
    process in versions, or from the first worker in what it evaluates, is not used.

    Args:
        factory: makes the evaluator in each worker.
        workers: how many, and where.
        timeout_s: how long one evaluation may take; None: for ever.
        racing: evaluations stop once a sub-net is beaten.
        grace_s: how much longer a worker may take before it is ended.

    Raises:
        InvalidInput: no cluster, no room in it, a factory that fails in a worker, or workers that would disturb each
            other's measurements.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        workers: Workers,
        timeout_s: float | None = None,
        racing: Racing | None = None,
        *,
        grace_s: float | None = None,
    ) -> None:
        self.count = workers.count
        self.busy_s = 0.0  # of all evaluations that were answered
        self._workers, self._racing = workers, racing
        self._deadline_s = (
            None if timeout_s is None else timeout_s + (GRACE_S if grace_s is None else grace_s)
        )
        self._job = Job(factory, os.getcwd(), own_versions(), timeout_s, racing)
        self._queue: deque[Task] = deque()
        self._answers: deque[Answer] = deque()
        self._stack = ExitStack()
        try:
            self._ray = self._stack.enter_context(connected(workers))
            remote = self._ray.remote(EvaluatingActor)
            self._actor = remote.options(
                num_cpus=1, num_gpus=workers.gpus_each, max_restarts=0, scheduling_strategy="SPREAD"
            )
            self._slots = [self._started(Slot()) for _ in range(self.count)]
            self._first = self._meet_first()
        except BaseException:
            self.close()
            raise
        self._start_s = time.monotonic()

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """As the first worker has them, without their functions."""
        return self._first.objectives

    @property
    def context(self) -> str:
        """As the first worker has it; others are not used."""
        return self._first.context

    def submit(self, config: SubnetConfig, seen: Iterable[Evaluation]) -> None:
        """As of every pool; of what was seen, only the front travels."""
        rivals = ParetoFront.of(self.objectives, seen).members if self._racing else ()
        self._queue.append(Task(config, rivals))
        self._hand_out()

    def next(self) -> Answer:
        """As of every pool; `SubnetSearchError` when no worker is left to wait for."""
        self._hand_out()
        lonely_s = time.monotonic()
        while not self._answers:
            self._look()
            if self.alive:
                lonely_s = time.monotonic()
            elif time.monotonic() - lonely_s > self._workers.patience_s:
                raise SubnetSearchError(
                    f"no worker has been alive for {self._workers.patience_s:g} s; once the cluster has room again, "
                    "start the same search again"
                )
        return self._answers.popleft()

    def look_once(self) -> int:
        """Takes in what workers have said, waiting a moment for it; how many are alive."""
        self._look()
        return self.alive

    @property
    def alive(self) -> int:
        """How many workers are ready or at work, as far as is known."""
        return sum(slot.hello is not None for slot in self._slots)

    def note(self) -> str:
        """How many workers are alive, and in which share of their time they have evaluated."""
        alive = self.alive
        spent_s = self.count * (time.monotonic() - self._start_s)
        busy = 100 * min(self.busy_s / spent_s, 1.0) if spent_s else 0.0
        told = f"{alive} workers" if alive == self.count else f"{alive} of {self.count} workers"
        return f"{told} {busy:.0f} %"

    def close(self) -> None:
        """Ends all workers, and Ray if it was started here."""
        for slot in getattr(self, "_slots", ()):
            self._end(slot)
        self._stack.close()

    def _meet_first(self) -> Hello:
        """Waits until one worker is ready; what the first one cannot do, no other can."""
        self._first = Hello("", 0)
        while True:
            self._look()
            for slot in self._slots:
                if slot.hello is not None:
                    self._check_machines(slot.hello)
                    return slot.hello

    def _check_machines(self, hello: Hello) -> None:
        """Raises `InvalidInput` where times are measured and there is no machine, or GPU, for each worker."""
        hosts = {node["NodeManagerHostname"] for node in self._ray.nodes() if node["Alive"]}
        if hello.is_timed and self._workers.gpus_each < 1 and self.count > len(hosts):
            raise InvalidInput(f"{self.count} workers for {len(hosts)} machines: {TIMED}")

    def _started(self, slot: Slot) -> Slot:
        """The slot with a new actor, which is asked to begin."""
        slot.actor, slot.hello, slot.task = self._actor.remote(), None, None
        slot.ref, slot.starts = slot.actor.begin.remote(self._job), slot.starts + 1
        return slot

    def _end(self, slot: Slot) -> None:
        with suppress(Exception):  # it may be gone, and Ray too
            self._ray.kill(slot.actor)

    def _hand_out(self) -> None:
        for slot in self._slots:
            if self._queue and slot.hello is not None and slot.task is None:
                slot.task, slot.is_asked = self._queue.popleft(), False
                slot.since_s = time.monotonic()
                if slot.since_s - slot.seen_s < STALE_S:
                    self._ask(slot, slot.task)
                else:
                    slot.ref = slot.actor.ping.remote()

    def _ask(self, slot: Slot, task: Task) -> None:
        slot.is_asked, slot.since_s = True, time.monotonic()
        slot.ref = slot.actor.evaluate.remote(task.config, task.seen)

    def _look(self) -> None:
        """Waits until some worker has said something or is due to be ended."""
        asked = {slot.ref: slot for slot in self._slots if slot.ref is not None}
        ready, _ = self._ray.wait(list(asked), num_returns=1, timeout=self._until_due_s())
        for ref in ready:
            self._settle(asked[ref])
        if self._deadline_s is not None:
            for slot in self._slots:
                if slot.task is not None and time.monotonic() - slot.since_s >= self._deadline_s:
                    self._give_up(slot, slot.task)
        self._hand_out()

    def _until_due_s(self) -> float:
        if self._deadline_s is None:
            return LOOK_EVERY_S
        due = [slot.since_s + self._deadline_s for slot in self._slots if slot.task is not None]
        return min(max(min(due) - time.monotonic(), 0.0), LOOK_EVERY_S) if due else LOOK_EVERY_S

    def _settle(self, slot: Slot) -> None:
        ref, slot.ref, slot.seen_s = slot.ref, None, time.monotonic()
        try:
            said = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            self._lost(slot, error)
            return
        if isinstance(said, Hello):
            self._greet(slot, said)
        elif slot.task is not None and not slot.is_asked:
            self._ask(slot, slot.task)
        else:
            slot.task = None
            self._answer(said)

    def _greet(self, slot: Slot, hello: Hello) -> None:
        if problem := hello.problem or self._clash(hello):
            self._dismiss(slot, f"the worker {hello.pid} on {hello.host} cannot evaluate: {problem}")
            return
        slot.hello, slot.starts, slot.is_new = hello, 0, False

    def _clash(self, hello: Hello) -> str:
        """What keeps a worker from working beside the others."""
        ready = [slot.hello for slot in self._slots if slot.hello is not None]
        if ready and hello.context != ready[0].context:
            return (
                "it sees other weights, data or settings than the others, or measures on other hardware "
                f"(context {hello.context}, not {ready[0].context})"
            )
        shared = any(other.host == hello.host for other in ready) and self._workers.gpus_each < 1
        if hello.is_timed and shared:
            return TIMED
        return ""

    def _dismiss(self, slot: Slot, reason: str) -> None:
        """Does without a worker that cannot do what the one before it could; raises if there never was one."""
        self._end(slot)
        self._slots.remove(slot)
        if slot.is_new or not self._slots:
            raise InvalidInput(reason)
        LOG.warning("%s; going on with %d workers", reason, len(self._slots))

    def _lost(self, slot: Slot, error: Exception) -> None:
        """A worker died: it is replaced, and its sub-net is tried again."""
        if slot.task is not None:
            slot.task.deaths += slot.is_asked
            if slot.task.deaths > RETRIES:
                reason = f"the worker died {slot.task.deaths} times over it: {_in_short(error)}"
                self._answer(Answer(slot.task.config, None, reason, time.monotonic() - slot.since_s))
            else:
                self._queue.appendleft(slot.task)
        elif slot.starts >= STARTS:
            self._dismiss(slot, f"a worker died {slot.starts} times before it was ready: {_in_short(error)}")
            return
        self._end(slot)
        self._started(slot)

    def _give_up(self, slot: Slot, task: Task) -> None:
        """A sub-net took too long: its worker, which may hang for ever, is replaced."""
        reason = out_of_time(self._job.timeout_s)
        self._answer(Answer(task.config, None, reason, time.monotonic() - slot.since_s))
        self._end(slot)
        self._started(slot)

    def _answer(self, answer: Answer) -> None:
        self.busy_s += answer.seconds
        self._answers.append(answer)


def _in_short(error: Exception) -> str:
    """The sentence of Ray's long message that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "exit" in line.lower() or "died" in line.lower()]
    short = [line for line in lines if "low on memory" in line]  # of the node; advice follows
    return f"{type(error).__name__}: {(short[:1] or told or lines or [''])[-1][:300]}"
