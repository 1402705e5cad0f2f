"""Claims on an Optuna storage: several independent drivers search one study, and nothing is paid for twice.

Each driver has a run folder of its own, whose journal is the truth for what it paid; the storage is a mirror and a
table of claims. A driver that has died stops renewing its leases: whoever sees one unchanged for longer than a lease
lasts, by its own clock, takes the trial over. So the clocks of machines need not agree. A storage that does not answer
is asked again for a while; then the driver goes on alone, and hands its results in when the storage is back.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Literal, TypeVar

import optuna
from optuna.storages import BaseStorage

from search_spaces import SearchSpace, SubnetConfig, SubnetSearchError
from subnet_search.record import Evaluation, Objective

from .claims import Told
from .shared_study import SharedStudy, name_of_study
from .storage import open_storage

T = TypeVar("T")
LEASE_S = 120.0
PATIENCE_S = 60.0  # of asking a silent storage again
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # between two tries; the last one again and again
AGAIN_S = 30.0  # between two looks for a storage that was given up
BROKEN = (optuna.exceptions.StorageInternalError, KeyError, OSError)  # KeyError: somebody deleted the study
POLL_S = 1.0  # between two looks for the results of others


class Silent(Exception):
    """The storage has not answered for as long as it was asked."""


class StudyClaims:
    """A driver's part in a study.

    Args:
        url: of the storage: SQLite, PostgreSQL or MySQL; or a storage that is open.
        label: the first part of the study's name; the rest stands for space, objectives and context.
        driver: this one's name, which must be its own and the same when it is started again, such as its host and
            run folder; by default the process.
        lease_s: how long a claim lasts that is not renewed; renewed three times as often.
        say: is told what happens.
        clock_s: a clock in seconds that only goes forward.
        sleep: waits so many seconds.
        renews: False leaves renewing to the caller, see `renew`.

    Attributes:
        study: the study's name, once it is open.

    Raises:
        InvalidInput: the storage cannot be opened; on `open` also a study of another kind under that name.
        SubnetSearchError: on `open`, for a storage that no longer answers.
    """

    def __init__(
        self,
        url: str | BaseStorage,
        *,
        label: str = "subnet-search",
        driver: str = "",
        lease_s: float = LEASE_S,
        say: Callable[[str], None] = lambda message: None,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        renews: bool = True,
    ) -> None:
        self._storage = open_storage(url) if isinstance(url, str) else url
        self._label, self._lease_s, self._renews = label, lease_s, renews
        self.driver = driver or f"process {os.getpid()} on {socket.gethostname()}"
        self._say, self._clock_s, self._sleep = say, clock_s, sleep
        self._mine: dict[str, int] = {}  # trial ids of claims, by key
        self._unsent: dict[str, tuple[Evaluation, float]] = {}
        self._beats: dict[
            int, tuple[object, float]
        ] = {}  # of others' trials: the lease, and since when it is that
        self._beat, self._num_heard = 0, 0
        self._silent_since_s: float | None = None
        self._looked_s: float | None = None
        self._stop = threading.Event()
        self.study = ""

    def open(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        context: str,
        own: Iterable[tuple[Evaluation, float]],
    ) -> None:
        """As of all claims; gives up the claims of a process of this driver that died, and hands in what is missing."""
        self.study = name_of_study(self._label, space, objectives, context)
        try:
            self._table = self._try(lambda: self._join(space, objectives, context))
        except Silent as silent:
            raise SubnetSearchError(
                f"the storage does not answer ({silent.__cause__}); start its server, or search without a storage: "
                "what this driver finds can be handed in later"
            ) from silent
        self._unsent = {e.config.key: (e, s) for e, s in own if e.config.key not in self._table.answers}
        with suppress(Silent):
            self._try(self._send)
        others = {told.driver for told in self._table.answers.values()} - {self.driver}
        self._say(
            f"  study {self.study}: {len(self._table.answers)} sub-nets known, {len(others)} other drivers so far"
        )
        if self._renews:
            threading.Thread(target=self._keep_renewing, daemon=True).start()

    def _join(self, space: SearchSpace, objectives: Sequence[Objective], context: str) -> SharedStudy:
        table = SharedStudy(self._storage, self.study, space, objectives, context, self.driver)
        table.refresh()
        for trial in table.running():
            if trial.user_attrs["driver"] == self.driver:
                table.give_up(trial._trial_id, "its driver was started again")
        return table

    def claim(self, config: SubnetConfig) -> Literal["mine", "theirs"] | Told:
        """As of all claims; while the storage is silent, everything is this driver's."""
        try:
            return self._try(lambda: self._claim(config))
        except Silent:
            return "mine"

    def done(self, evaluation: Evaluation, seconds: float) -> None:
        """As of all claims."""
        self._unsent[evaluation.config.key] = (evaluation, seconds)
        with suppress(Silent):
            self._try(self._send)

    def news(self) -> list[Told]:
        """As of all claims; looks at most once a second."""
        now_s = self._clock_s()
        if self._looked_s is None or now_s >= self._looked_s + POLL_S:
            with suppress(Silent):
                self._try(self._refresh)
        told = self._table.told[self._num_heard :]
        self._num_heard += len(told)
        return told

    def wait(self) -> None:
        """As of all claims."""
        self._sleep(POLL_S)

    def renew(self) -> None:
        """Renews the leases of this driver."""
        self._beat += 1
        for trial_id in list(self._mine.values()):
            self._table.renew(trial_id, self._beat)

    def close(self) -> None:
        """As of all claims."""
        self._stop.set()
        if self._silent_since_s is None:
            with suppress(*BROKEN):
                for trial_id in self._mine.values():
                    self._table.give_up(trial_id, "its driver has stopped")
        elif self._unsent:
            self._say(f"  {len(self._unsent)} results are in the journal only: the storage does not answer")
        self._mine = {}

    def _claim(self, config: SubnetConfig) -> Literal["mine", "theirs"] | Told:
        """One look, one trial of this driver's, and another look: somebody else may have made one just before."""
        table, key = self._table, config.key
        self._refresh()
        if key in table.answers:
            return table.answers[key]
        if self._owner(key) not in (None, self.driver):
            return "theirs"
        self._mine[key] = table.create(config)
        self._refresh()
        if key not in table.answers and self._owner(key) == self.driver:
            first, *more = (t._trial_id for t in table.running(key) if t.user_attrs["driver"] == self.driver)
            self._mine[key] = first
            for trial_id in more:  # made by a try whose success the storage could not tell
                table.give_up(trial_id, "made twice")
            return "mine"
        table.give_up(self._mine.pop(key), "another driver was first")
        return table.answers.get(key, "theirs")

    def _owner(self, key: str) -> str | None:
        """The driver of the RUNNING trial with the lowest number; those whose lease has run out are given up."""
        for trial in self._table.running(key):
            if trial.user_attrs["driver"] == self.driver or not self._has_run_out(trial._trial_id):
                return str(trial.user_attrs["driver"])
            self._table.give_up(trial._trial_id, f"the lease ran out; seen by {self.driver}")
        return None

    def _refresh(self) -> None:
        self._table.refresh()
        self._looked_s = self._clock_s()
        leases = {trial._trial_id: trial.user_attrs.get("lease") for trial in self._table.running()}
        for trial_id, lease in leases.items():
            before = self._beats.get(trial_id)
            if before is None or before[0] != lease:
                self._beats[trial_id] = (lease, self._looked_s)
        self._beats = {trial_id: beat for trial_id, beat in self._beats.items() if trial_id in leases}

    def _has_run_out(self, trial_id: int) -> bool:
        return self._clock_s() - self._beats[trial_id][1] > self._lease_s

    def _send(self) -> None:
        """Hands in what the storage does not have."""
        for key, (evaluation, seconds) in list(self._unsent.items()):
            trial_id = self._mine.get(key)
            if trial_id is not None:
                self._table.answer(trial_id, evaluation, seconds)
            elif key not in self._table.answers:
                self._table.create(evaluation.config, (evaluation, seconds))
            self._mine.pop(key, None)
            del self._unsent[key]

    def _try(self, work: Callable[[], T]) -> T:
        """Does it, again and again while the storage is silent; raises `Silent` when that takes too long."""
        start_s, tries = self._clock_s(), 0
        patience_s = PATIENCE_S
        if self._silent_since_s is not None:
            if start_s < self._silent_since_s + AGAIN_S:
                raise Silent
            patience_s = 0.0
        while True:
            try:
                done = work()
                break
            except BROKEN as error:
                if self._clock_s() - start_s >= patience_s:
                    self._fall_silent(error)
                    raise Silent from error
                self._sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
                tries += 1
        if self._silent_since_s is not None:
            self._silent_since_s = None
            self._say("  the storage answers again")
            with suppress(*BROKEN):
                self._send()
        return done

    def _fall_silent(self, error: Exception) -> None:
        if self._silent_since_s is None:
            cause = (str(error.__cause__ or error).splitlines() or [""])[0]
            self._say(
                f"  the storage does not answer ({cause[:200]}): this driver goes on alone, its journal keeps "
                "everything, and results are handed in when the storage is back"
            )
        self._silent_since_s = self._clock_s()

    def _keep_renewing(self) -> None:
        """In a thread of its own, as an evaluation may take longer than a lease lasts."""
        while not self._stop.wait(self._lease_s / 3):
            with suppress(Exception):  # the next time may be better; the main thread says what is wrong
                self.renew()
