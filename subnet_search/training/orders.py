"""How rank 0, which walks a road alone, calls the other ranks to the trainings on it.

Between trainings they wait at the store that torchrun keeps for its processes: a table of names and texts. That is no
collective operation, so rank 0 may rank and search for hours, or end, whenever it likes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from search_spaces import InvalidInput
from subnet_search.training.distributed import World, alone, telling_of_lost_ranks

ANSWER_S = 300.0  # within which ranks must have looked at a run folder
ALWAYS = timedelta(days=365)

Order = Mapping[str, Any]  # JSON; {} ends it all


class Store(Protocol):
    """What is used of torch's stores."""

    def set(self, key: str, value: str) -> None:
        """Writes one text."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Returns once all are written; raises after that time."""

    def get(self, key: str) -> bytes:
        """Reads one text."""


@dataclass
class Orders:
    """The orders of one command, numbered; every rank reads all of them."""

    store: Store
    world: World
    number: int = 0

    def give(self, order: Order) -> None:
        """Rank 0 tells all others what to do next.

        Raises:
            InvalidInput: one of them cannot, or does not answer.
        """
        self.store.set(f"order/{self.number}", json.dumps(dict(order)))
        number, self.number = self.number, self.number + 1
        if not order:
            return
        due_s = time.monotonic() + ANSWER_S
        for rank in range(1, self.world.size):
            try:
                left = timedelta(seconds=max(due_s - time.monotonic(), 1.0))
                self.store.wait([f"answer/{number}/{rank}"], left)
            except RuntimeError:
                raise InvalidInput(
                    f"rank {rank} has not answered within {ANSWER_S:g} s; look at its messages, and start all again"
                ) from None
            if problem := self.store.get(f"answer/{number}/{rank}").decode():
                raise InvalidInput(f"rank {rank} cannot train with the others: {problem}")

    def take(self) -> Order:
        """The next order for another rank; `answer` says whether it can be done."""
        with telling_of_lost_ranks():
            self.store.wait([f"order/{self.number}"], ALWAYS)
            order: Order = json.loads(self.store.get(f"order/{self.number}"))
        self.number += 1
        return order

    def answer(self, problem: str = "") -> None:
        """Of the order taken last: "" where it can be done, else why not."""
        self.store.set(f"answer/{self.number - 1}/{self.world.rank}", problem)


_leading: ContextVar[Orders | None] = ContextVar("_leading", default=None)


@contextmanager
def leading(orders: Orders) -> Iterator[None]:
    """Inside the scope this process works alone but where it says `together`; in the end the others are let go."""
    token = _leading.set(orders)
    try:
        with alone():
            yield
    finally:
        _leading.reset(token)
        with suppress(RuntimeError):  # nobody is there any more
            orders.give({})


@contextmanager
def together(order: Order) -> Iterator[None]:
    """Lets the ranks that wait do the same as this scope; in other processes nothing happens."""
    orders = _leading.get()
    if orders is None:
        yield
        return
    orders.give(order)
    with alone(False):
        yield
