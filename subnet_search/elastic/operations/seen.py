"""What the modules inside of a model are given and give back when it really runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional and named


class Seen(NamedTuple):
    """One call of a module: what came in, before the module could write into it, and what went out."""

    inputs: Inputs
    memory: tuple[int, ...]  # of each tensor that came in
    output: Any


@torch.no_grad()
def seen_calls(
    model: nn.Module, inputs: Inputs, paths: Iterable[str], outer_only: bool = False
) -> dict[str, list[Seen]]:
    """Runs a model once; returns the calls of these modules, in order.

    Args:
        model: to be run.
        inputs: its arguments.
        paths: of modules inside.
        outer_only: leaves out calls that are made while another of these modules runs.
    """
    found: dict[str, list[Seen]] = defaultdict(list)
    running: list[tuple[Inputs, tuple[int, ...]] | None] = []

    def watch(path: str) -> Iterator[Any]:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            if outer_only and running:
                running.append(None)
                return
            tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
            running.append((cloned((args, kwargs)), tuple(map(memory_of, tensors))))

        def after(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            begun = running.pop()
            if begun is not None:
                found[path].append(Seen(*begun, output))

        module = model.get_submodule(path)
        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after, with_kwargs=True)

    with ExitStack() as hooks:
        for path in paths:
            for handle in watch(path):
                hooks.callback(handle.remove)
        args, kwargs = cloned(inputs)
        model(*args, **kwargs)
    return dict(found)


def cloned(inputs: Inputs) -> Inputs:
    """The same with tensors of their own."""
    cloned: Inputs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)
    return cloned


def memory_of(tensor: Tensor) -> int:
    """The address of a tensor's memory."""
    return tensor.untyped_storage().data_ptr()
