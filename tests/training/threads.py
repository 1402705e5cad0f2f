"""Ranks as threads of one process, whose collectives are sums and lists in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from subnet_search.training import distributed
from subnet_search.training.distributed import World


def as_ranks(size: int, work: Callable[[World], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `work` returns on each rank, or the exception that it raises there."""
    barrier, here = threading.Barrier(size), threading.local()
    slots: list[Any] = [None] * size

    def meet(given: Any) -> list[Any]:
        slots[here.rank] = given
        barrier.wait(10)
        everything = list(slots)
        barrier.wait(10)
        return everything

    def all_reduce(tensor: Tensor) -> None:
        tensor.copy_(torch.stack(meet(tensor.clone())).sum(0))

    def all_gather_object(rows: list[Any], row: Any) -> None:
        rows[:] = meet(row)

    def broadcast_object_list(objects: list[Any], src: int) -> None:
        objects[:] = meet(list(objects))[src]

    def broadcast(tensor: Tensor, src: int) -> None:
        tensor.copy_(meet(tensor.clone())[src])

    for fake in (all_reduce, all_gather_object, broadcast_object_list, broadcast):
        monkeypatch.setattr(distributed.dist, fake.__name__, fake)
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        here.rank = rank
        try:
            found[rank] = work(World(rank, size))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found
