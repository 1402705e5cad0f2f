"""Norms with two sets of weights and statistics: for while a sub-path runs, and for while it is skipped."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.elastic.layers import PLAIN, ElasticLayer
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.supernet import Supernet

AT_SKIP = "at_skip"  # where the second norm hangs
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


class SwitchableNorm(ElasticLayer):
    """A norm that hands over to its second one, `at_skip`, while all the blocks that it watches are skipped."""

    watched: tuple[Any, ...] = ()  # blocks
    watched_names: tuple[str, ...] = ()
    at_skip: nn.Module
    own: ClassVar[type[nn.Module]]

    @property
    def switched(self) -> bool:
        """Whether the second norm is at work."""
        return all(block.skipped for block in self.watched)

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the norm takes."""
        return self.at_skip(x) if self.switched else super().forward(x)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (type(self).own,), self.__getstate__()


_KINDS: dict[type[nn.Module], type[nn.Module]] = {}


def _kind(own: type[nn.Module]) -> type[nn.Module]:
    if own not in _KINDS:
        _KINDS[own] = type(f"Switchable{own.__name__}", (SwitchableNorm, own), {"own": own})
        PLAIN[_KINDS[own]] = PLAIN.get(own, own)
    return _KINDS[own]


def _blank(own: type[nn.Module]) -> nn.Module:
    kind = _kind(own)
    return kind.__new__(kind)


def add_switchable_norms(supernet: Supernet, stages: Mapping[tuple[str, ...], Sequence[str]]) -> list[str]:
    """Gives every norm in some blocks a second set of weights and statistics, a copy to begin with.

    Args:
        supernet: changed in place; it runs its model's own classes.
        stages: for the depth knobs of a sub-path, skipped together, the blocks whose norms listen to them.

    Returns:
        The paths of the norms, which may be none.

    Raises:
        InvalidInput: the supernet runs a graph, or has such norms already.
    """
    if isinstance(supernet.model, RunsGraph):
        raise InvalidInput(
            "norms that listen to skipped blocks need a supernet of the model's own classes; convert with "
            'ElasticSettings(form="own classes")'
        )
    if any(True for _ in switchable_norms(supernet.model)):
        raise InvalidInput("the supernet has switchable norms already; convert the network anew")
    made: list[str] = []
    sites: Any = supernet.sites
    for knobs, blocks in stages.items():
        watched = tuple(supernet.model.get_submodule(knob) for knob in knobs)
        for path, norm in _norms_in(supernet.model, blocks):
            second = copy.deepcopy(norm)
            norm.__class__ = _kind(type(norm))
            norm.add_module(AT_SKIP, second)
            norm.watched, norm.watched_names = watched, tuple(knobs)  # type: ignore[assignment]
            if path in sites:
                sites[f"{path}.{AT_SKIP}"] = sites[path]
            made.append(path)
    supernet.activate(supernet.active)
    return made


def _norms_in(model: nn.Module, blocks: Sequence[str]) -> list[tuple[str, nn.Module]]:
    inside = tuple(f"{block}." for block in blocks)
    return [(p, m) for p, m in model.named_modules() if isinstance(m, NORMS) and f"{p}.".startswith(inside)]


def switchable_norms(model: nn.Module) -> Iterator[tuple[str, SwitchableNorm]]:
    """All of them by path."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, SwitchableNorm))


def resting_norms(model: nn.Module) -> set[str]:
    """Paths of those of each pair that the active sub-net does not use."""
    return {path if norm.switched else f"{path}.{AT_SKIP}" for path, norm in switchable_norms(model)}


def switches_of(model: nn.Module, config: SubnetConfig) -> dict[str, bool]:
    """For every switchable norm, whether a sub-net uses its second one."""
    return {
        path: all(config[name] == 0 for name in norm.watched_names) for path, norm in switchable_norms(model)
    }


def settle(net: nn.Module, switches: Mapping[str, bool]) -> nn.Module:
    """Leaves one plain norm of each pair in a plain network, in place."""
    for path, switched in switches.items():
        norm: Any = net.get_submodule(path)
        parent, _, name = path.rpartition(".")
        second = norm._modules.pop(AT_SKIP)
        norm.__dict__.pop("watched", None)
        norm.__dict__.pop("watched_names", None)
        if switched:
            setattr(net.get_submodule(parent), name, second)
    return net


def settled_state(state: Mapping[str, Tensor], switches: Mapping[str, bool]) -> dict[str, Tensor]:
    """The tensors of a state by their names after `settle`."""
    named = ((_settled_name(name, switches), tensor) for name, tensor in state.items())
    return {name: tensor for name, tensor in named if name is not None}


def _settled_name(name: str, switches: Mapping[str, bool]) -> str | None:
    """None for a tensor of the norm that is not used."""
    path, _, leaf = name.rpartition(".")
    parent, _, last = path.rpartition(".")
    if last == AT_SKIP and parent in switches:
        return f"{parent}.{leaf}" if switches[parent] else None
    return None if switches.get(path, False) else name
