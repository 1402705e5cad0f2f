"""Modules that run with fewer channels by a rule that the user registered."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from subnet_search.elastic.custom import Passes, rule_for, told
from subnet_search.elastic.layers import PLAIN, ElasticLayer, expect, take

WRONG_RULE = "a rule was registered for "  # begins the note on what such a module's forward raises
SHAPES = "shapes"


class PassingModule(ElasticLayer):
    """A module that channels pass through, with those of its parameters and sizes that follow them."""

    own_kind: ClassVar[type[nn.Module]]
    rule: ClassVar[Passes]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward, on the kept channels."""
        try:
            if self.active is None:
                return self.own_kind.forward(self, *args, **kwargs)
            first = next(v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor))
            expect(self, first.shape[self.rule.axis], self.active.num_inputs)
            return self.own_kind.forward(_reduced(self), *args, **kwargs)
        except Exception as error:
            error.add_note(f"{WRONG_RULE}{told(self)}: {self.rule}")
            raise

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self.own_kind,), self.__getstate__()


def _reduced(module: Any) -> nn.Module:
    """The module with the active part of what follows the channels; of buffers a copy, so that none is written into."""
    part: Any = module.own_kind.__new__(module.own_kind)
    tensors = {"_parameters": dict(module._parameters), "_buffers": dict(module._buffers)}
    part.__dict__ = {**module.__dict__, **tensors}
    for name, axis in module.rule.parameters.items():
        tensor = getattr(module, name)
        if tensor is not None:
            kept = take(tensor, axis, module.active.inputs)
            is_parameter = name in module._parameters
            tensors["_parameters" if is_parameter else "_buffers"][name] = (
                kept if is_parameter else kept.clone()
            )
    for name in module.rule.sizes:
        part.__dict__[name] = module.active.num_inputs
    return part


def passing_sizes(module: Any, count: int) -> dict[str, Any]:
    """What changes in a module that keeps so many channels: its sizes, and `shapes` of tensors; if any do."""
    changed: dict[str, list[int]] = {}
    for name, axis in module.rule.parameters.items():
        tensor = getattr(module, name)
        if tensor is not None and tensor.shape[axis] != count:
            changed[name] = list(tensor.shape)
            changed[name][axis] = count
    sizes = {name: count for name in module.rule.sizes if getattr(module, name) != count}
    return {**sizes, SHAPES: changed} if changed or sizes else {}


_PASSING: dict[type[nn.Module], type[nn.Module]] = {}


def make_passing(module: nn.Module) -> None:
    """Exchanges the class of a module for one that runs by the module's rule; those of other rules stay as they are."""
    kind, rule = type(module), rule_for(module)
    if not isinstance(rule, Passes):
        return
    known: Any = _PASSING.get(kind)
    if known is None or known.rule is not rule:
        own = {"own_kind": kind, "rule": rule, "followed": rule.parameters}
        _PASSING[kind] = type(f"Passing{kind.__name__}", (PassingModule, kind), own)
        PLAIN[_PASSING[kind]] = kind
    module.__class__ = _PASSING[kind]


def _blank(kind: type[nn.Module]) -> nn.Module:
    module = kind.__new__(kind)
    make_passing(module)
    return module
