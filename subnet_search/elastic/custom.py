"""Rules that users register for modules, functions and operators of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._library.custom_ops import CustomOpDef

from search_spaces.errors import InvalidInput

FlowRule = Callable[[Any, fx.Node], Any]


@dataclass(frozen=True)
class Passes:
    """Channels pass through: each comes out where it came in, and sub-nets leave out any of them.

    All tensors that come in have the same channels, as with an addition or a gate. What is computed of them may depend
    on the other channels, but not on the order: a softmax over channels passes them, a shuffle does not.

    Attributes:
        axis: of the channels; along other axes positions may be mixed (pooling, windows, convolutions of one channel
            each). None: each element becomes another one in its place, on whatever axis channels lie.
        parameters: a module's own parameters and saved buffers that have an entry for each channel, by name, with the
            axis along which the channels lie there; sub-nets use those of the channels that they keep.
        sizes: a module's own attributes that hold the number of channels.
    """

    axis: int | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    sizes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.axis is None and (self.parameters or self.sizes):
            raise InvalidInput(
                f"parameters and sizes follow the channels along an axis, but axis is None for "
                f"{[*self.parameters, *self.sizes]}; give Passes(axis=1, ...)"
            )
        if isinstance(self.sizes, str):
            raise InvalidInput(f"sizes are a tuple of names, got {self.sizes!r}; write ({self.sizes!r},)")


Rule = Passes | FlowRule

RULES: dict[Any, Rule] = {}  # by class of modules, function, or name of an operator such as "mylib::swish"


def register_rule(target: Any, rule: Rule) -> None:
    """Tells how channels pass through a module, function or operator of one's own; the last rule given holds.

    A module with a rule is called as it is: nothing inside is looked at. What a rule says is tried out whenever a
    network is converted; a wrong one is refused.

    Args:
        target: a class of modules (that class alone, no sub-classes); a function that forwards call as a global of
            their module (for the model's own classes; for the graph form, make it an operator); or an operator, as
            torch.library returns it or by name, "mylib::swish".
        rule: `Passes`, or for anything else a function `(flow, node)`: with a `Flow` it returns the `Layout` of what
            comes out, as those of `elastic/rules.py` do, with a `LabelFlow` its factors, as those of
            `elastic/operations/operators.py` do.

    Raises:
        InvalidInput: the target cannot have a rule, or the rule does not fit it.
    """
    if not isinstance(rule, Passes) and not callable(rule):
        raise InvalidInput(f"a rule is Passes(...) or a function (flow, node), got {rule!r}")
    key = _key(target)
    is_module = isinstance(key, type) and issubclass(key, nn.Module)
    if not is_module and not isinstance(key, str) and not inspect.isroutine(key):
        raise InvalidInput(
            f"a rule is for a class of modules, a function or an operator such as 'mylib::swish', got {target!r}"
        )
    if is_module and issubclass(key, _HAVE_RULES):
        raise InvalidInput(
            f"{key.__name__} has channels of its own kind, as every {_kind_of(key)}; derive it from nn.Module instead"
        )
    if isinstance(key, str) and not _operator_exists(key):
        raise InvalidInput(f"there is no operator {key!r}; register it by torch.library first, then its rule")
    if not is_module and isinstance(rule, Passes) and rule.parameters:
        raise InvalidInput(f"only modules have parameters, and {target!r} is none; leave parameters out")
    RULES[key] = rule


def rule_for(target: Any) -> Rule | None:
    """The rule registered for a module, function or operator, if there is one."""
    if isinstance(target, nn.Module):
        return RULES.get(getattr(type(target), "own_kind", type(target)))
    return RULES.get(_key(target))


def registered_functions() -> tuple[Callable[..., Any], ...]:
    """The Python functions that have rules: they are not looked into."""
    return tuple(key for key in RULES if not isinstance(key, str | type))


def registered_modules(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules that have rules."""
    return tuple(path for path, module in model.named_modules() if rule_for(module) is not None)


def check_fits(module: nn.Module, rule: Passes, count: int) -> None:
    """Raises `InvalidInput` where a rule does not fit a module that so many channels come into."""
    saved = {n: t for n, t in module._buffers.items() if n not in module._non_persistent_buffers_set}
    own: dict[str, Any] = {**module._parameters, **saved}
    what = f"by the rule registered for {told(module)}, {rule}, "
    for name, axis in rule.parameters.items():
        if name not in own:
            raise InvalidInput(f"{what}it has a parameter {name!r}, but it has {[*own]}; mend the rule")
        shape = [count] if own[name] is None else list(own[name].shape)
        if not -len(shape) <= axis < len(shape) or shape[axis] != count:
            raise InvalidInput(
                f"{what}its {count} channels lie along axis {axis} of {name}, but that is {shape}; mend the rule"
            )
    for name in rule.sizes:
        if getattr(module, name, None) != count:
            raise InvalidInput(
                f"{what}its {name!r} is the number of channels, {count}, but it is {getattr(module, name, None)!r}; "
                "mend the rule"
            )


def told(target: Any) -> str:
    """A module, function or operator with a rule, for people."""
    if isinstance(target, nn.Module):
        return str(getattr(type(target), "own_kind", type(target)).__name__)
    key = _key(target)
    return key if isinstance(key, str) else str(getattr(key, "__name__", key))


def _key(target: Any) -> Any:
    """Operators are known by name: what torch.library returns, overloads and packets are the same one."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name)
    if isinstance(target, torch._ops.OpOverloadPacket):
        return str(target._qualified_op_name)
    if isinstance(target, CustomOpDef):
        return str(target._qualname)
    return target


def _operator_exists(name: str) -> bool:
    namespace, _, operator = name.partition("::")
    return bool(operator) and hasattr(getattr(torch.ops, namespace), operator)


_HAVE_RULES = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


def _kind_of(kind: type) -> str:
    return next(known.__name__.strip("_") for known in _HAVE_RULES if issubclass(kind, known))
