"""Several networks over one set of weights: what is the beginning of a shared tensor is a view of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def split_shared(
    state: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """Tells which tensors of a network are the beginning, along every axis, of the shared tensor of that name.

    Values are compared bit by bit, so a tensor is never taken for shared when it is not, however the network was made.

    Args:
        state: of one network.
        whole: the shared tensors.

    Returns:
        The shapes of those that are, and the others themselves.
    """
    shared: dict[str, tuple[int, ...]] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in state.items():
        view = None if name not in whole else beginning(whole[name], tuple(tensor.shape))
        if view is not None and view.dtype == tensor.dtype and _same_bits(view, tensor):
            shared[name] = tuple(tensor.shape)
        else:
            own[name] = tensor
    return shared, own


def beginning(whole: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The view `whole[:a, :b, ...]` of that shape; None if it does not fit into `whole`."""
    if len(shape) != whole.ndim or any(own > there for own, there in zip(shape, whole.shape, strict=True)):
        return None
    return whole[tuple(slice(size) for size in shape)]


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other.to(one.device)) if one.numel() else True


def needed_part(whole: Mapping[str, Tensor], shapes: list[dict[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """The smallest beginnings of the shared tensors that hold all shapes; what nothing shares is left out."""
    kept: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        sizes = [found[name] for found in shapes if name in found]
        if sizes:
            largest = tuple(max(axis) for axis in zip(*sizes, strict=True))
            view = beginning(tensor, largest)
            assert view is not None
            kept[name] = view.detach().cpu().contiguous().clone()
    return kept


def digest_of(tensors: Mapping[str, Tensor], about: object) -> str:
    """A checksum of names, shapes, types and contents of tensors, and of JSON data about them."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """What tensors take; those that share memory count once each name."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
