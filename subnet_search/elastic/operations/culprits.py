"""Finds the smallest modules that stand in the way of reading a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from subnet_search.elastic.graph import UntraceableModelError, copied, enclosing, home_paths
from subnet_search.elastic.operations.parts import part_calls
from subnet_search.elastic.operations.seen import Inputs, seen_calls

Pair = tuple[Inputs, Inputs]  # at batch 1 and 2
Failure = Callable[[nn.Module, Pair, Any, Collection[str]], str | None]  # model, inputs, growing axes, parts


def find_culprits(model: nn.Module, inputs: Pair, parts: Collection[str], failure: Failure) -> dict[str, str]:
    """The smallest modules that cannot be read alone, on what they are given in a real run.

    Args:
        model: which as a whole cannot be read.
        inputs: of batch 1 and 2.
        parts: the modules that are called as they are already; the search ends there.
        failure: tells why a model cannot be read, or None.

    Returns:
        Reasons by path; empty if the outermost forward itself is to blame.
    """
    search = _Search(copied(model).eval(), parts, failure)
    return {path: reason for path, reason in search.inside("", inputs).items() if path}


def outermost(paths: Collection[str]) -> tuple[str, ...]:
    """Those that lie in no other."""
    return tuple(path for path in dict.fromkeys(paths) if set(paths).isdisjoint(enclosing(path)[:-1]))


class _Search:
    def __init__(self, model: nn.Module, parts: Collection[str], failure: Failure) -> None:
        self.model, self.parts, self.failure = model, parts, failure
        self.homes = home_paths(model)

    def inside(self, path: str, inputs: Pair) -> dict[str, str]:
        """The culprits inside a module; the module itself where one of them cannot be called as it is."""
        found: dict[str, str] = {}
        for child, calls in self._called_by(path, inputs).items():
            for given in calls:
                reason = None if self._is_known(child) else self._failure_of(child, given)
                if reason is None:
                    continue
                inner = self.inside(child, given)
                found |= inner or {self.homes[child]: reason}
                if not inner and not self._can_be_part(child, inputs, path):
                    return {path: reason}
                break
        return found

    def _is_known(self, path: str) -> bool:
        """Whether there is nothing to find: a part, or a layer of torch without others inside."""
        module = self.model.get_submodule(path)
        plain = type(module).__module__.startswith("torch.nn.modules.") and not module._modules
        return plain or self.homes[path] in self.parts

    def _called_by(self, path: str, inputs: Pair) -> dict[str, list[Pair]]:
        """The modules that a module calls itself, not those that these call, with their inputs."""
        module = self.model.get_submodule(path)
        names = [name for name, _ in module.named_modules() if name]
        one, two = (seen_calls(module, given, names, outer_only=True) for given in inputs)
        prefix = f"{path}." if path else ""
        return {
            prefix + name: [(a.inputs, b.inputs) for a, b in zip(calls, two.get(name, ()), strict=False)]
            for name, calls in one.items()
        }

    def _failure_of(self, path: str, inputs: Pair) -> str | None:
        alone = _Alone(self.model.get_submodule(path), inputs[1])
        tensors = tuple(((_tensors(given),), dict[str, Any]()) for given in inputs)
        growing = [
            {
                axis: torch.export.Dim.AUTO
                for axis, (size, other) in enumerate(zip(a.shape, b.shape, strict=True))
                if size != other
            }
            for a, b in zip(_tensors(inputs[0]), _tensors(inputs[1]), strict=True)
        ]
        parts = [f"module.{p[len(path) + 1 :]}" for p in self.parts if p.startswith(f"{path}.")]
        return self.failure(alone, tensors, (growing,), parts)  # type: ignore[arg-type]

    def _can_be_part(self, path: str, inputs: Pair, caller: str) -> bool:
        module, name = self.model.get_submodule(caller), path[len(caller) + 1 if caller else 0 :]
        try:
            part_calls(module, inputs, [name])
        except UntraceableModelError:
            return False
        return True


class _Alone(nn.Module):
    """A module that takes the tensors of its inputs as a list, and answers the tensors of its output."""

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.module = module
        self.leaves, self.packed = tree_flatten(inputs)

    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(v, Tensor) else v for v in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.packed)
        return _tensors(self.module(*args, **kwargs))


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in tree_leaves(value) if isinstance(v, Tensor)]
