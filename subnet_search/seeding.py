"""Randomness by name: what happens at one point of a run depends on the seed and that point alone.

Data loaders and dropout draw from the global generators of torch, numpy and Python. They are seeded anew at
each named point, inside a scope that gives the caller's own states back; so a resumed run draws what the
unbroken one would have drawn, without storing any generator.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *point: int | str) -> int:
    """A 32-bit seed for a named point of a run, such as `derive_seed(seed, "step", 17)`."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in point]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0])


def seed_everything(seed: int, *point: int | str) -> int:
    """Seeds the global generators of torch, numpy and Python for a named point; returns the seed used."""
    derived = derive_seed(seed, *point)
    random.seed(derived)
    np.random.seed(derived)  # loaders of users draw from the legacy generator
    torch.manual_seed(derived)
    return derived


@contextmanager
def kept_generators() -> Iterator[None]:
    """Gives the global generators back in the state in which they came."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def start_epoch(batches: Iterable[Any], seed: int, epoch: int) -> None:
    """Seeds everything for one pass over `batches`, also the generators that a DataLoader was given."""
    derived = seed_everything(seed, "epoch", epoch)
    sampler = getattr(batches, "sampler", None)
    batch_sampler = getattr(batches, "batch_sampler", None)
    for owner in (batches, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
        if callable(set_epoch := getattr(owner, "set_epoch", None)):
            set_epoch(epoch)
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
            generator.manual_seed(derived)
