"""Between data and networks: batches are checked, moved to the device and counted out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from search_spaces.errors import InvalidInput
from subnet_search.data import Batch
from subnet_search.seeding import derive_seed, kept_generators, start_epoch


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA device where there is one, else the CPU.

    Raises:
        InvalidInput: torch knows no such device, or CUDA is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InvalidInput(f'a device is "auto", "cpu", "cuda" or "cuda:N", got {name!r}') from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f'device "{name}" is not there: torch finds no CUDA device. Use "auto" or "cpu"')
    return device


def device_of(net: nn.Module) -> torch.device:
    """Where the weights of `net` live."""
    return next((tensor.device for tensor in (*net.parameters(), *net.buffers())), torch.device("cpu"))


@contextmanager
def on_device(device: torch.device, *nets: nn.Module) -> Iterator[None]:
    """Moves nets to `device` for a while; each goes back to where it lived."""
    homes = [(net, device_of(net)) for net in nets]
    try:
        for net, _ in homes:
            net.to(device)
        yield
    finally:
        for net, home in homes:
            net.to(home)


def to_device(
    batches: Iterable[Batch], device: torch.device, size: torch.Size | None = None
) -> Iterator[Batch]:
    """Yields the batches of (input `[B, *size]`, target `[B]`), checked and on `device`."""
    for batch in batches:
        check_batch(batch, size)
        yield moved(batch[0], device), moved(batch[1], device)


def moved(part: Any, device: torch.device) -> Any:
    """The tensors of an input, a target or a whole batch, in the nesting they have, on `device`."""
    return tree_map(lambda tensor: tensor.to(device, non_blocking=True), part)


def rows_of(part: Any, rows: slice) -> Any:
    """Some rows of all tensors `[B, ...]` of an input or a target."""
    return tree_map(lambda tensor: tensor[rows], part)


def call_with(net: nn.Module, inputs: Any) -> Any:
    """The answer of `net` to one input, several (a tuple or list) or named ones (a dict)."""
    if isinstance(inputs, dict):
        return net(**inputs)
    return net(*inputs) if isinstance(inputs, tuple | list) else net(inputs)


def input_size(example: object) -> torch.Size | None:
    """The size of one input, of an example that is a single tensor `[1, *size]`."""
    return example.shape[1:] if isinstance(example, Tensor) else None


def check_batch(batch: object, size: torch.Size | None = None) -> None:
    """Raises `InvalidInput` unless `batch` is (input `[B, *size]`, target `[B, ...]`).

    Either may be several tensors: a tuple, list or dict of them.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(map(_holds_tensors, batch))):
        raise InvalidInput(
            f"a batch must be a pair of tensors (input, target), got {type(batch).__name__}; "
            "let the loader return such pairs"
        )
    images, labels = batch
    count = len(tree_leaves(images)[0])
    if wrong := [len(tensor) for tensor in tree_leaves((images, labels)) if len(tensor) != count]:
        raise InvalidInput(f"a batch needs one target per input, got {count} inputs, {wrong[0]} targets")
    if size is not None and (not isinstance(images, Tensor) or images.shape[1:] != size):
        came = list(images.shape[1:]) if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InvalidInput(
            f"inputs must have the size of the example at conversion, {list(size)}, "
            f"got {came}; resize the images, or convert with an example of their size"
        )


def _holds_tensors(part: object) -> bool:
    leaves = tree_leaves(part)
    return bool(leaves) and all(isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in leaves)


def check_class_numbers(labels: Tensor) -> None:
    """Raises `InvalidInput` unless the targets of a batch are class numbers `[B]` as torch's losses read them."""
    if labels.ndim != 1 or labels.dtype not in (torch.int64, torch.uint8):
        raise InvalidInput(
            f"targets must be class numbers [B] of type int64, got {labels.dtype} of shape {list(labels.shape)}; "
            "return integers, such as labels.long() or one_hot.argmax(1)"
        )


def class_numbers(labels: Tensor, num_classes: int) -> Tensor:
    """The targets of a batch as int64; `InvalidInput` unless they are class numbers `[B]` from 0 on."""
    check_class_numbers(labels)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise InvalidInput(
            f"labels must be class numbers from 0 to {num_classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}; give the network as many outputs as there are classes"
        )
    return labels.long()


def first_images(
    batches: Iterable[Batch], count: int, seed: int = 0, size: torch.Size | None = None
) -> list[Batch]:
    """The first `count` inputs with their targets, cut exactly, in the order that the seed gives.

    Raises:
        InvalidInput: there is no batch, or one that `check_batch` refuses.
    """
    taken: list[Batch] = []
    with kept_generators():
        start_epoch(batches, seed, 0)
        for batch in batches:
            check_batch(batch, size)
            images, labels = batch
            taken.append((rows_of(images, slice(count)), rows_of(labels, slice(count))))
            count -= len(tree_leaves(taken[-1])[0])
            if count == 0:
                break
    if len(taken) > 1 and len(tree_leaves(taken[-1])[0]) == 1:  # a batch of one has no variance
        taken[-2:] = [tree_map(lambda *parts: torch.cat(parts), *taken[-2:])]
    if not taken:
        raise InvalidInput("no batch to read: the split is empty; it needs at least one image")
    return taken


def sample_images(
    batches: Iterable[Batch], count: int, seed: int = 0, size: torch.Size | None = None
) -> list[Batch]:
    """A seeded sample of `count` inputs with their targets, from one pass over all batches; in their order.

    Unlike the first images, they are of all classes even where the split is sorted. No more than three times what is
    returned is in memory at a time.

    Raises:
        InvalidInput: there is no batch, or one that `check_batch` refuses.
    """
    rng = np.random.default_rng(derive_seed(seed, "sample"))
    parts: list[tuple[np.ndarray, Tensor, Tensor]] = []  # keys [B], inputs [B, ...], targets [B, ...]
    largest = 0
    with kept_generators():
        start_epoch(batches, seed, 0)
        for batch in batches:
            check_batch(batch, size)
            if not all(isinstance(part, Tensor) for part in batch):
                raise InvalidInput(
                    "images are drawn from batches of one input and one target, got several tensors"
                )
            largest = max(largest, len(batch[1]))
            parts.append((rng.random(len(batch[1])), batch[0], batch[1]))
            if sum(len(keys) for keys, _, _ in parts) >= 2 * count:
                parts = _smallest_keys(parts, count)
    if not parts:
        raise InvalidInput("no batch to read: the split is empty; it needs at least one image")
    _, inputs, targets = zip(*_smallest_keys(parts, count), strict=True)
    return list(zip(torch.cat(inputs).split(largest), torch.cat(targets).split(largest), strict=True))


def _smallest_keys(
    parts: list[tuple[np.ndarray, Tensor, Tensor]], count: int
) -> list[tuple[np.ndarray, Tensor, Tensor]]:
    """The `count` images with the smallest keys, in their order."""
    keys = np.concatenate([keys for keys, _, _ in parts])
    if len(keys) <= count:
        return parts
    bound = np.partition(keys, count - 1)[count - 1]
    kept = [(torch.from_numpy(keys <= bound), keys, inputs, targets) for keys, inputs, targets in parts]
    return [(keys[rows.numpy()], x[rows], y[rows]) for rows, keys, x, y in kept if rows.any()]


class Steps:
    """So many batches as one epoch, going around the data as often as that takes.

    Args:
        batches: re-iterable, of at least one batch.
        count: of batches.
        seed: of the order in each round.
    """

    def __init__(self, batches: Iterable[Batch], count: int, seed: int = 0) -> None:
        if count < 1:
            raise InvalidInput(f"training takes at least one step, got {count}")
        self.batches, self.count, self.seed = batches, count, seed
        self._epoch = 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is, for the order of its batches."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        left, rounds = self.count, 0
        while left:
            start_epoch(self.batches, derive_seed(self.seed, "round", self._epoch), rounds)
            before = left
            for batch in self.batches:
                yield batch
                left -= 1
                if not left:
                    return
            if left == before:
                raise InvalidInput("no batch to read: the split is empty; it needs at least one image")
            rounds += 1
