"""Modules that the exporter does not look into: while it reads, a mark stands in their place.

Their calls are recorded in a real run at batch 1 and 2; the mark gives back tensors of the recorded sizes. In the
graph the mark becomes a call of the module itself.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from subnet_search.elastic.graph import UntraceableModelError, counting_macs
from subnet_search.elastic.operations.seen import Inputs, Seen, cloned, memory_of, seen_calls


@torch.library.custom_op("subnet_search::called_as_it_is", mutates_args=())
def _mark(inputs: list[Tensor], like: list[Tensor], path: str, call: int) -> list[Tensor]:
    raise NotImplementedError("a mark stands only in graphs that are being read")


@_mark.register_fake
def _(inputs: list[Tensor], like: list[Tensor], path: str, call: int) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in like]


MARK = torch.ops.subnet_search.called_as_it_is.default


class _Made(NamedTuple):
    """A tensor that a call gives back."""

    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # at batch 1 and 2
    dtype: torch.dtype
    device: torch.device
    lives_in: int | None  # the tensor coming in whose memory it is


@dataclass(frozen=True)
class PartCall:
    """What one call of a part is given and gives back.

    Attributes:
        given: how arguments are packed.
        constants: those that are no tensors, by their place among all leaves.
        grows: a tensor coming in that grows with the batch: which, along which axis, and its size there at batch 1.
        made: the tensors that go out.
        keys: where these stand in the answer, as one key after the other; empty where the answer is one tensor.
        packed: how the answer is packed, and which of its leaves are tensors.
        macs: multiply-adds at batch 1.
    """

    given: TreeSpec
    constants: Mapping[int, Any]
    grows: tuple[int, int, int] | None
    made: tuple[_Made, ...]
    keys: tuple[tuple[Any, ...], ...]
    packed: tuple[TreeSpec, tuple[bool, ...]]
    macs: int

    def marked(self, path: str, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The answer while the model is exported: tensors of the right sizes that come out of a mark."""
        leaves, spec = tree_flatten((args, kwargs))
        constants = {i: v for i, v in enumerate(leaves) if not isinstance(v, Tensor)}
        if spec != self.given or constants != self.constants:
            raise UntraceableModelError(f"{path} is called otherwise while the network is exported")
        tensors = [v for v in leaves if isinstance(v, Tensor)]
        rows: Any = 1
        if self.grows is not None:
            which, axis, size = self.grows
            rows = tensors[which].shape[axis] // size
        like = [
            torch.empty(
                [rows * a if a != b else a for a, b in zip(*made.shapes, strict=True)],
                dtype=made.dtype,
                device=made.device,
            )
            for made in self.made
        ]
        return self._answer(MARK(tensors, like, path, number))

    def answer(self, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The answer on tensors without numbers, at batch 1 or 2."""
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        found = []
        for made in self.made:
            shape = made.shapes[rows - 1]
            home = None if made.lives_in is None else tensors[made.lives_in]
            if home is None:
                found.append(torch.empty(shape, dtype=made.dtype, device=made.device))
            else:
                found.append(home if home.shape == shape else home.as_strided(shape, [0] * len(shape)))
        return self._answer(found)

    def arguments(self, tensors: Iterable[Any]) -> Inputs:
        """Positional and named arguments, with these in place of the tensors."""
        rest = iter(tensors)
        leaves = [
            self.constants[i] if i in self.constants else next(rest) for i in range(self.given.num_leaves)
        ]
        args, kwargs = tree_unflatten(leaves, self.given)
        return tuple(args), kwargs

    def _answer(self, tensors: Sequence[Tensor]) -> Any:
        spec, are_tensors = self.packed
        rest = iter(tensors)
        return tree_unflatten([next(rest) if is_tensor else None for is_tensor in are_tensors], spec)


def part_calls(
    model: nn.Module, inputs: tuple[Inputs, Inputs], paths: Iterable[str], optional: Container[str] = ()
) -> dict[str, tuple[PartCall, ...]]:
    """The calls of parts, as recorded at batch 1 and 2.

    Args:
        model: to be run.
        inputs: of batch 1 and 2.
        paths: of the parts.
        optional: those of them that are left out where they cannot stand in a graph.

    Raises:
        UntraceableModelError: another one cannot; the message tells why.
    """
    paths = list(paths)
    one, two = (seen_calls(model, given, paths) for given in inputs)
    found = {}
    for path, calls in one.items():
        try:
            found[path] = _calls_of(path, model.get_submodule(path), calls, two.get(path, ()))
        except UntraceableModelError:
            if path not in optional:
                raise
    return found


def _calls_of(path: str, module: nn.Module, one: Sequence[Seen], two: Sequence[Seen]) -> tuple[PartCall, ...]:
    if len(one) != len(two):
        raise UntraceableModelError(f"how often {path} is called depends on the batch")
    return tuple(_part_call(path, module, a, b) for a, b in zip(one, two, strict=True))


def _part_call(path: str, module: nn.Module, one: Seen, two: Seen) -> PartCall:
    leaves, given = tree_flatten(one.inputs)
    others, again = tree_flatten(two.inputs)
    constants = {i: v for i, v in enumerate(leaves) if not isinstance(v, Tensor)}
    args, kwargs = one.inputs
    nested = any(isinstance(v, list | tuple | dict) for v in (*args, *kwargs.values()))
    if nested or given != again or constants != {i: others[i] for i in constants}:
        raise UntraceableModelError(f"{path} takes more than tensors and numbers that are always the same")
    tensors = [(a, b) for a, b in zip(leaves, others, strict=True) if isinstance(a, Tensor)]
    growing = [
        (which, axis, size)
        for which, (a, b) in enumerate(tensors)
        for axis, (size, twice) in enumerate(zip(a.shape, b.shape, strict=True))
        if twice == 2 * size
    ]
    keys = tuple(_keys(path, one.output))
    if not keys:
        raise UntraceableModelError(f"{path} answers no tensor")
    answers, packed = tree_flatten(one.output)
    pairs = [(a, b) for a, b in zip(answers, tree_leaves(two.output), strict=True) if isinstance(a, Tensor)]
    made = tuple(_made(a, b, one.memory) for a, b in pairs)
    grown = [(a, b) for m in made for a, b in zip(*m.shapes, strict=True) if a != b]
    if grown and (not growing or any(b != 2 * a for a, b in grown)):
        raise UntraceableModelError(f"what {path} answers does not grow in step with the batch")
    with counting_macs() as counted:
        args, kwargs = cloned(one.inputs)
        module(*args, **kwargs)
    return PartCall(
        given,
        constants,
        min(growing, key=lambda g: g[2], default=None),
        made,
        keys,
        (packed, tuple(isinstance(a, Tensor) for a in answers)),
        counted(),
    )


def _made(one: Tensor, two: Tensor, memory: Sequence[int]) -> _Made:
    home = memory_of(one)
    lives_in = memory.index(home) if home in memory else None
    return _Made((tuple(one.shape), tuple(two.shape)), one.dtype, one.device, lives_in)


def _keys(path: str, answer: Any) -> Iterator[tuple[Any, ...]]:
    """Where the tensors stand in an answer of tuples, lists and dicts, in the order of its leaves."""
    if isinstance(answer, Tensor):
        yield ()
    elif isinstance(answer, tuple | list | dict) and answer:
        entries = answer.items() if isinstance(answer, dict) else enumerate(answer)
        for key, value in entries:
            if value is not None:
                yield from ((key, *rest) for rest in _keys(path, value))
    else:
        raise UntraceableModelError(f"{path} answers a {type(answer).__name__} where tensors could stand")


@contextmanager
def marks_in_place(model: nn.Module, parts: Mapping[str, Sequence[PartCall]]) -> Iterator[None]:
    """While it lasts, the parts of a model answer by their marks."""
    modules = [model.get_submodule(path) for path in parts]
    before = [module.__dict__.get("forward") for module in modules]
    for module, (path, calls) in zip(modules, parts.items(), strict=True):
        module.forward = _marking(path, calls)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _marking(path: str, calls: Sequence[PartCall]) -> Callable[..., Any]:
    made = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        number = made % len(calls)
        made += 1
        return calls[number].marked(path, number, args, kwargs)

    return forward
