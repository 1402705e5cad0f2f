"""Whether data and network fit each other, found out before hours of work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.errors import InvalidInput
from subnet_search.data.memory import TensorBatches
from subnet_search.data.overlap import rows_of
from subnet_search.data.pictures import Pictures, paths_of
from subnet_search.data.splits import SPLITS, Splits
from subnet_search.modes import evaluation_mode


def check_files(splits: Splits) -> None:
    """Looks at the head and the end of every image file that the splits name.

    Raises:
        InvalidInput: some are no whole images, two paths lead to one file, or sizes differ and none is asked for.
    """
    loaders = (splits.train, splits.search_val, splits.test, splits.gate)
    found = {id(data): data for data, _ in map(rows_of, loaders) if isinstance(data, Pictures)}
    sizes = {size for pictures in found.values() for size in pictures.sizes()}
    files: dict[tuple[int, int], str] = {}
    for path in (path for pictures in found.values() for path in paths_of(pictures)):
        status = os.stat(path)
        first = files.setdefault((status.st_dev, status.st_ino), path)
        if first is not path and status.st_ino:
            raise InvalidInput(
                f"{first} and {path} are one file: its image would be in two places, such as training and test; "
                "delete one of them, or the link that leads there"
            )
    if len(sizes) > 1 and any(pictures.preprocess.crop is None for pictures in found.values()):
        (wide, high), (other_wide, other_high), *_ = sorted(sizes)
        raise InvalidInput(
            f"images must have one size, got {wide}x{high} and {other_wide}x{other_high} px; "
            "set size in [data] to resize and cut them"
        )


def check_network(model: nn.Module, example: Tensor, splits: Splits) -> str | None:
    """Runs a classifier on one image.

    Args:
        model: comes back in the mode in which it came; one that answers other things than logits is not judged.
        example: one input `[1, ...]`.
        splits: labels are looked at where they are at hand.

    Returns:
        What is strange but allowed: a network that answers probabilities, or has more outputs than there are classes.

    Raises:
        InvalidInput: the image has another number of channels than the first convolution reads, or a label is
            beyond the network's outputs.
    """
    try:
        with evaluation_mode(model), torch.inference_mode():
            answer = model(example)
    except Exception as error:  # the user's network runs here; what else is wrong is told at conversion
        _explain_channels(model, example, error)
        return None
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        return None
    kept = {name: _highest_label(getattr(splits, name)) for name in SPLITS[:4]}
    known = {name: highest for name, highest in kept.items() if highest is not None}
    for name, highest in known.items():
        if highest >= answer.shape[1]:
            raise InvalidInput(
                f"the labels of split {name!r} go up to {highest}, so the network needs {highest + 1} outputs or more, "
                f"but {type(model).__name__} has {answer.shape[1]}; build it with as many, for most networks by "
                f"[model] options = {{ num_classes = {highest + 1} }}"
            )

    if answer.shape[1] > 1 and (answer >= 0).all() and ((answer.double().sum(1) - 1).abs() < 1e-3).all():
        return "the network answers probabilities, but logits are trained and judged; leave the softmax out"
    if not known or answer.shape[1] == max(known.values()) + 1:
        return None
    return (
        f"the network has {answer.shape[1]} outputs for {max(known.values()) + 1} classes; trained for others, "
        "it needs a new classifier"
    )


def _explain_channels(model: nn.Module, example: Tensor, error: Exception) -> None:
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.LazyConv2d))
    first = next(convolutions, None)
    if first is None or example.ndim != 4 or first.in_channels == example.shape[1]:
        return
    convert = f"set channels = {first.in_channels} in [data] to convert them, or "
    raise InvalidInput(
        f"the images have {_channels(example.shape[1])}, but the network's first convolution reads "
        f"{_channels(first.in_channels)}; {convert if first.in_channels in (1, 3) else ''}build the network for these "
        "images"
    ) from error


def _channels(count: int) -> str:
    return {1: "1 channel (grey)", 3: "3 channels (colour)"}.get(count, f"{count} channels")


def _highest_label(split: Iterable[Any] | None) -> int | None:
    """The highest class number of a split that keeps its labels at hand."""
    kept = _kept_labels(split)
    return None if kept is None else int(kept.max())


def labels_of(split: Iterable[Any]) -> np.ndarray | None:
    """The class numbers `[num_images]` of a split that keeps them at hand, in any order."""
    kept = _kept_labels(split)
    rows = None if isinstance(split, TensorBatches) else rows_of(split)[1]
    if kept is None or rows is None:
        return kept
    return kept[sorted(rows)] if rows else None  # no rows: nobody sees which ones are read


def _kept_labels(split: Iterable[Any] | None) -> np.ndarray | None:
    """The class numbers of all that a split's data set holds."""
    labels: Any = None
    if isinstance(split, TensorBatches):
        labels = split.labels
    elif split is not None:
        data, _ = rows_of(split)
        labels = getattr(data, "targets", getattr(data, "labels", None))
        tensors: Any = getattr(data, "tensors", ())
        labels = tensors[-1] if labels is None and len(tensors) == 2 else labels
    try:
        numbers = np.asarray(labels)
    except (TypeError, ValueError):
        return None
    whole = numbers.ndim == 1 and len(numbers) > 0 and np.issubdtype(numbers.dtype, np.integer)
    return numbers if whole else None
