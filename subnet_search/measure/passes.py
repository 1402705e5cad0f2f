"""Passes of many sub-nets over the same images; what two of them share from the input on is computed once."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.batches import on_device, to_device
from subnet_search.data import Batch
from subnet_search.elastic.folding import folded
from subnet_search.elastic.spans import MOST_VARIANTS, Span, cut_into_spans
from subnet_search.elastic.statistics import Statistics, collect
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import check_finite
from subnet_search.memory import in_order, runs_channels_last
from subnet_search.modes import evaluation_mode

LARGEST_PART = 0.25  # of the memory, for what one sub-net leaves at one cut


@dataclass(frozen=True, eq=False)
class _Reached:
    """What came out of the first spans: of the calibration images, of the images; and the statistics so far."""

    calibration: Sequence[Tensor]
    images: Iterable[Tensor]
    statistics: dict[str, Tensor]


class SharedPasses:
    """Recalibrates sub-nets of one supernet and lets them answer the same images again and again.

    The network is cut where few different sub-nets have been possible so far (`elastic/spans.py`). What came out
    there, and the batch-norm statistics up to there, are remembered for sub-nets to come; the longest unused goes
    first. In fp32 the statistics are bit for bit those of `recalibrate` on `calibration`; answers do not depend on what
    was evaluated before.

    Images go through channels last where the network lets them, with batch norms folded into the convolutions before
    them, and in bf16 if `bf16`; so do the calibration images, but for the folding.

    Args:
        supernet: in any mode; works on `device` and comes back after each pass.
        calibration: batches that set the statistics.
        images: batches (input, target) that every sub-net answers; kept in memory where it suffices.
        device: where the passes run.
        memory_bytes: for the images and all that is remembered.
        bf16: calibrate and answer under bf16 autocast.
        size: of one input; checked if given.
        alike: sub-nets come in runs that differ in one knob, so that deep cuts are worth remembering too.

    Attributes:
        images: the batches, in memory or as they were given.
        calibration: the inputs that set the statistics, in the order of memory in which they do so.

    Raises:
        InvalidInput: no batch, or one that does not fit.
    """

    def __init__(
        self,
        supernet: Supernet,
        calibration: Sequence[Batch],
        images: Iterable[Batch],
        *,
        device: torch.device,
        memory_bytes: int,
        bf16: bool = False,
        size: torch.Size | None = None,
        alike: bool = False,
    ) -> None:
        self._supernet, self._device, self._size = supernet, device, size
        self._weight_dtype = torch.bfloat16 if bf16 else None
        self._number_bytes = 2 if bf16 else 4
        self._autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
        shown = [inputs.to(device) for inputs, _ in calibration]
        with on_device(device, supernet):
            self._last = bool(shown) and runs_channels_last(supernet, shown[0])
        self.calibration = [in_order(inputs, self._last) for inputs in shown if supernet.uses_batch_norm]
        self._left = memory_bytes
        self.images: Iterable[Batch] = self._in_memory(images) or images
        self._reached: OrderedDict[tuple[int, tuple[int, ...]], _Reached] = OrderedDict()
        with self._ready(supernet.space.largest()):
            self._spans = cut_into_spans(supernet, self._fits, math.inf if alike else MOST_VARIANTS)

    def answers(self, config: SubnetConfig) -> tuple[Tensor, Tensor, Statistics]:
        """Logits `[num_images, num_classes]` and targets `[num_images]` on the CPU, and the statistics used.

        Raises:
            SubnetSearchError: an answer is not finite, so it would mean nothing.
        """
        targets: list[Tensor] = []
        with self._ready(config), torch.inference_mode():
            place, reached = self._remembered(config)
            if place == 0:
                reached = _Reached(self.calibration, self._inputs(targets), {})
            for span in self._spans[place:]:
                reached = self._pass(span, config, reached)
                self._remember(span, config, reached)
            logits = torch.cat(list(reached.images)).cpu().float()
        if not targets:
            targets = [labels for _, labels in self.images]
        values = {name: tensor.clone() for name, tensor in reached.statistics.items()}  # fit for training
        return check_finite(logits), torch.cat(targets).cpu(), Statistics(config.key, values)

    def in_parts(
        self, config: SubnetConfig, parts: Iterable[np.ndarray]
    ) -> Generator[tuple[np.ndarray, Tensor, Tensor]]:
        """Answers some of the images, then others; what is not asked for is not computed.

        Only what comes before the last cut, which other sub-nets share, is computed for all images at once. The images
        have to be in memory (`images` is a list). The sub-net stays active until the last part, or `close`.

        Args:
            config: the sub-net.
            parts: places of images.

        Yields:
            For each part its places in ascending order, `[n]`, logits `[n, num_classes]` and targets `[n]` on the CPU.

        Raises:
            SubnetSearchError: an answer is not finite, so it would mean nothing.
        """
        last, labels = self._spans[-1], torch.cat([targets for _, targets in self.images])
        with self._ready(config):
            with torch.inference_mode():
                place, reached = self._remembered(config)
                if place == 0:
                    reached = _Reached(self.calibration, [inputs for inputs, _ in self.images], {})
                for span in self._spans[place:-1]:
                    reached = self._pass(span, config, reached)
                    self._remember(span, config, reached)
                with self._autocast():
                    values, _ = collect(last.norms, last.run, reached.calibration)
                for path, norm in last.norms.items():
                    norm.statistics = Statistics(config.key, values).of(path)
            images = list(reached.images)
            for part in map(np.sort, parts):
                rows = torch.from_numpy(part).to(self._device)
                with torch.inference_mode(), self._autocast(), folded(last.folds, self._weight_dtype):
                    taken = [last.run(self._laid_out(batch)) for batch in _rows_of(images, rows)]
                    logits = torch.cat(taken).cpu().float()
                yield part, check_finite(logits), labels[rows].cpu()

    def _laid_out(self, batch: Tensor) -> Tensor:
        """Rows picked from a batch, in the order of memory that the batch had."""
        return in_order(batch, self._last and batch.ndim == 4)

    @contextmanager
    def _ready(self, config: SubnetConfig) -> Iterator[None]:
        supernet = self._supernet
        with on_device(self._device, supernet), evaluation_mode(supernet), supernet.subnet(config):
            yield

    def _in_memory(self, images: Iterable[Batch]) -> list[Batch]:
        """The images, or nothing if they take more memory than there is for them."""
        kept: list[Batch] = []
        left = self._left
        for inputs, targets in to_device(images, self._device, self._size):
            left -= inputs.nbytes
            if left < 0:
                return []
            kept.append((in_order(inputs, self._last), targets))
        if not kept:
            raise InvalidInput("accuracy needs at least one batch, got none")
        self._left = left
        return kept

    def _inputs(self, targets: list[Tensor]) -> Iterator[Tensor]:
        """The inputs of all images; their targets are added to `targets`."""
        for inputs, labels in to_device(self.images, self._device, self._size):
            targets.append(labels)
            yield in_order(inputs, self._last)

    def _fits(self, numbers: int) -> bool:
        """Whether so many numbers per image may be remembered."""
        if not isinstance(self.images, list):
            return False
        count = sum(map(len, self.calibration)) + sum(len(labels) for _, labels in self.images)
        return self._number_bytes * numbers * count <= LARGEST_PART * self._left

    def _remembered(self, config: SubnetConfig) -> tuple[int, _Reached]:
        """How many spans another sub-net has run in the same way, and what came of it."""
        found = 0, _Reached((), (), {})
        for place, span in enumerate(self._spans[:-1], start=1):
            key = (place, span.key(config))
            if key in self._reached:
                self._reached.move_to_end(key)
                found = place, self._reached[key]
        return found

    def _remember(self, span: Span, config: SubnetConfig, reached: _Reached) -> None:
        place = self._spans.index(span) + 1
        if place == len(self._spans):
            return
        self._reached[place, span.key(config)] = reached
        while sum(map(_size, self._reached.values())) > self._left:
            self._reached.popitem(last=False)

    def _pass(self, span: Span, config: SubnetConfig, reached: _Reached) -> _Reached:
        """Takes calibration images and images through one span."""
        with self._autocast():
            values, calibration = collect(span.norms, span.run, reached.calibration)
            for path, norm in span.norms.items():
                norm.statistics = Statistics(config.key, values).of(path)
            with folded(span.folds, self._weight_dtype):
                images = [span.run(batch) for batch in reached.images]
        return _Reached(calibration, images, reached.statistics | values)


def _rows_of(batches: Sequence[Tensor], places: Tensor) -> Iterator[Tensor]:
    """The rows of all batches at ascending `places` `[n]`, in batches no larger than the first one was."""
    ends = torch.tensor([len(batch) for batch in batches], device=places.device).cumsum(0)
    counts = torch.searchsorted(places, ends).diff(prepend=ends.new_zeros(1)).tolist()
    starts = ends - torch.tensor([len(batch) for batch in batches], device=places.device)
    chosen = zip(batches, places.split(counts), starts, strict=True)
    yield from torch.cat([batch[rows - start] for batch, rows, start in chosen]).split(len(batches[0]))


def _size(reached: _Reached) -> int:
    return sum(tensor.nbytes for tensor in (*reached.calibration, *reached.images))
