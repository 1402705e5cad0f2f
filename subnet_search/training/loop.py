"""The training loop of supernets and of extracted sub-nets; its checkpoints resume bit for bit.

What happens in step n depends on the seed, n and the weights alone, so a killed run goes on as if nothing had
happened (on the CPU bit for bit; CUDA kernels may round differently from run to run).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.batches import check_batch, first_images, input_size, moved, on_device
from subnet_search.data import Batch, Splits
from subnet_search.elastic.image_size import as_taken
from subnet_search.elastic.supernet import Supernet
from subnet_search.memory import channels_last, in_order, runs_channels_last
from subnet_search.progress import progress
from subnet_search.record import Run
from subnet_search.seeding import derive_seed, kept_generators, seed_everything, start_epoch
from subnet_search.settings import FinetuneSettings, TrainSettings
from subnet_search.training.checkpoint import CURE, Checkpoints, Place
from subnet_search.training.distributed import (
    ALONE,
    Exchange,
    StoppedElsewhere,
    World,
    agree,
    check_rows,
    current_world,
    device_of_rank,
    look_at_first_batch,
    spread,
    told_by_first,
)
from subnet_search.training.interrupt import Interrupts, held_interrupts
from subnet_search.training.optimizer import lr_factor, make_optimizer
from subnet_search.training.sandwich import SandwichStep
from subnet_search.training.step import Step, attached

FitSettings = TrainSettings | FinetuneSettings
Update = Callable[[Batch, np.random.Generator], float]  # forward and backward; returns the loss


@dataclass(frozen=True)
class TrainResult:
    """What training did; `losses` holds each epoch's mean of the loss, which a step sums over its nets."""

    steps: int
    epochs: int
    losses: tuple[float, ...]
    seconds: float


def train(
    supernet: Supernet,
    splits: Splits,
    step: Step | None = None,
    settings: TrainSettings | None = None,
    run: Run | None = None,
    *,
    checkpoint: str = "checkpoint",
) -> TrainResult:
    """Trains the supernet in place on `splits.train`.

    With a run, checkpoints are written every `checkpoint_seconds`, after each epoch and on Ctrl-C or SIGTERM,
    and a second call goes on from the last one. Loaders may shuffle and augment with torch's, numpy's and
    Python's global generators, or with a DataLoader's own; other hidden state needs a `set_epoch(epoch)`
    method.

    Under torchrun every rank makes this call with the same supernet, data and settings and is given whole batches, of
    which it takes its rows; see `training.distributed`. Rank 0 alone has a run.

    Args:
        supernet: comes back on its device, at its largest config.
        splits: only `train` is read.
        step: forward and backward of one batch; the sandwich rule by default.
        settings: learning rate, epochs, precision, device and seed.
        run: where checkpoints go; none without it.
        checkpoint: their file name, without ending.

    Raises:
        InvalidInput: batches of another size than the conversion's example, a split without length, or a
            checkpoint of other settings; ranks with other settings, data or versions, or batches that do not divide
            among them.
        SubnetSearchError: the loss or a weight is not finite; another rank failed, was stopped or has ended.
    """
    settings = settings or TrainSettings()
    step = step or SandwichStep()
    identity = fit_identity(describe_step(step), settings)
    world = current_world()
    with attached(step, supernet):
        place = Fitting(
            supernet,
            splits.train,
            partial(step, supernet),
            settings,
            None if run is None or not world.leads else Checkpoints(run, checkpoint, identity),
            input_size(supernet.example),
            world=world,
            facts={"the knobs": knobs_in_short(supernet), "the settings": identity},
        ).run()
    supernet.activate(supernet.space.largest())
    return TrainResult(place.step, place.epoch, tuple(place.losses), place.seconds)


@dataclass
class Fitting:
    """Trains `model` in place on `batches`.

    `update` does forward and backward. With checkpoints, a second call goes on where the first one was stopped.
    """

    model: nn.Module
    batches: Iterable[Batch]
    update: Update
    settings: FitSettings
    checkpoints: Checkpoints | None = None
    size: torch.Size | None = None  # of one input
    what: str = "train"
    world: World = ALONE
    facts: Mapping[str, object] = field(default_factory=dict)  # that all ranks must share

    def run(self) -> Place:
        """Trains from the last checkpoint, if any, to the end; the model comes back on its device."""
        self.device = device_of_rank(self.settings.device, self.world)
        self.num_batches = length_of(self.batches)
        self.last = self._fits_channels_last()
        with on_device(self.device, self.model), channels_last(self.model, self.last):
            self.optimizer = make_optimizer(self.model, self.settings)
            self.exchange = self._meet()
            place = told_by_first(self.world, self._load)
            spread(self.world, self.model, self.optimizer)
            with kept_generators(), held_interrupts() as interrupts, self._progress(place) as bar:
                place = place or Place()
                while place.epoch < self.settings.epochs:
                    self._epoch(place, interrupts, bar)
        return place

    def _meet(self) -> Exchange:
        """Makes sure that all ranks are about to do the same."""
        if self.world.size == 1:
            return Exchange(self.world, self.model)
        rows, batch = look_at_first_batch(self.batches, self.settings.seed)
        agree(self.world, {**self.facts, "the number of batches": self.num_batches, **batch})
        check_rows(self.world, rows)
        return Exchange(self.world, self.model, rows)

    def _load(self) -> Place | None:
        return self.checkpoints.load(self.model, self.optimizer) if self.checkpoints else None

    def _fits_channels_last(self) -> bool:
        if self.device.type != "cpu":
            return False
        [(images, _)] = first_images(self.batches, 2, self.settings.seed, self.size)
        return isinstance(images, Tensor) and runs_channels_last(self.model, as_taken(self.model, images))

    def _progress(self, place: Place | None) -> tqdm[Any]:
        total_steps = self.settings.epochs * self.num_batches
        done = 0 if place is None else place.step
        return progress(total_steps, self.what, "step", done=done, enabled=self.world.leads)

    def _epoch(self, place: Place, interrupts: Interrupts, bar: tqdm[Any]) -> None:
        saved_s = time.monotonic()
        self.model.train()
        for batch in draw(self.batches, self.settings.seed, place):
            place.loss_sum += self._step(batch, place, interrupts)
            place.step, place.batch = place.step + 1, place.batch + 1
            bar.update(1)
            due = time.monotonic() - saved_s >= self.settings.checkpoint_seconds
            if due or self._stops(interrupts):
                saved_s = self._save(place, saved_s)
            self._end_if_stopped(interrupts)
        place.losses.append(place.loss_sum / max(place.batch, 1))
        place.epoch, place.batch, place.loss_sum = place.epoch + 1, 0, 0.0
        bar.set_postfix_str(f"loss {place.losses[-1]:.3f}", refresh=False)
        self._save(place, saved_s)
        self._end_if_stopped(interrupts)

    def _stops(self, interrupts: Interrupts) -> bool:
        """Whether to stop now: several ranks do so after the same step, however many of them were interrupted."""
        return interrupts.pending is not None if self.world.size == 1 else self.exchange.stop

    def _end_if_stopped(self, interrupts: Interrupts) -> None:
        if self._stops(interrupts):
            interrupts.deliver()
            if self.world.size > 1:
                raise StoppedElsewhere("another rank was stopped, and with it the training")

    def _save(self, place: Place, since_s: float) -> float:
        now_s = time.monotonic()
        place.seconds += now_s - since_s
        if self.checkpoints is not None:
            self.checkpoints.save(self.model, self.optimizer, place)
        return now_s

    def _step(self, batch: Batch, place: Place, interrupts: Interrupts) -> float:
        settings = self.settings
        check_batch(batch, self.size)
        batch, share = self.exchange.share(batch)
        images, labels = moved(batch[0], self.device), moved(batch[1], self.device)
        images = in_order(images, self.last)
        warmup_steps = round(settings.warmup_epochs * self.num_batches)
        lr = settings.lr * lr_factor(place.step, settings.epochs * self.num_batches, warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        rng = np.random.default_rng(derive_seed(settings.seed, "choices", place.step))
        self.optimizer.zero_grad(set_to_none=True)
        self.exchange.seed(settings.seed, place.step)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = self.update((images, labels), rng) if share else 0.0
        except Exception:
            self.exchange.add_up(0.0, share, stop=False, failed=True)
            raise
        loss = self.exchange.add_up(loss, share, stop=interrupts.pending is not None)
        if not math.isfinite(loss):
            way_out = CURE if self.checkpoints is None else self.checkpoints.way_out
            if not all(tensor.isfinite().all() for tensor in tree_leaves(images)):
                way_out = "the inputs of this batch hold NaN or infinity already; mend the data, then go on"
            raise SubnetSearchError(
                f"the loss is {loss} at step {place.step + 1}, epoch {place.epoch + 1}, lr {lr:.3g}; {way_out}"
            )
        self.optimizer.step()
        return loss


def draw(batches: Iterable[Batch], seed: int, place: Place) -> Iterator[Batch]:
    """Yields what is left of the epoch; each batch and the step with it are seeded by the step's number."""
    resume_at = place.step
    start_epoch(batches, seed, place.epoch)
    left = iter(batches)
    for step in itertools.count(place.step - place.batch):
        seed_everything(seed, "step", step)
        try:
            batch = next(left)
        except StopIteration:
            return
        if step >= resume_at:
            yield batch


def fit_identity(stage: str, settings: FitSettings) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued: all but the device and how often it is written."""
    return {"stage": stage, **settings.model_dump(exclude={"device", "checkpoint_seconds"})}


def knobs_in_short(supernet: Supernet) -> str:
    """A checksum of the space that ranks compare."""
    knobs = [(knob.name, knob.kind, knob.choices) for knob in supernet.space.knobs]
    return f"{len(knobs)} knobs, crc {zlib.crc32(repr(knobs).encode()):08x}"


def describe_step(step: Step) -> str:
    """The step's name with its options, the same in every process."""
    name = getattr(step, "__qualname__", type(step).__name__)
    return repr(step) if dataclasses.is_dataclass(step) else name


def length_of(batches: Iterable[Batch]) -> int:
    """How many batches there are; raises `InvalidInput` for batches that do not tell."""
    try:
        length = len(batches)  # type: ignore[arg-type]
    except TypeError:  # no __len__, or a DataLoader of a stream
        length = 0
    if not length:
        raise InvalidInput(
            "the training split must know how many batches it has, at least one, "
            f"got {type(batches).__name__} that tells of none; give it data and a __len__"
        )
    return length
