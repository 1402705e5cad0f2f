"""A sub-net of the graph form as Python source that needs nothing but torch."""

from __future__ import annotations

import copy
import functools
import inspect
import linecache
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.elastic.grouped import kept_groups
from subnet_search.elastic.layers import Active, kept_norm_groups, kept_part
from subnet_search.elastic.operations.exact_layers import lifted_kind
from subnet_search.elastic.operations.graph_form import GraphForm, sliced, tensor_of
from subnet_search.elastic.operations.program import Count, Layer, Part, Positions, Program, Tap, Weight
from subnet_search.elastic.operations.recurrent import RECURRENT, recurrent_constructor
from subnet_search.elastic.registered_layers import PassingModule, passing_sizes
from subnet_search.elastic.supernet import Supernet, active_part

HEAD = '''"""Sub-net {key} of {model}: made by subnet-search, needs {needs}.

    net = SubNet({given})
    net.load_state_dict(safetensors.torch.load_file("net.safetensors"))
    net.eval()
"""

import torch
from torch import nn

aten = torch.ops.aten


class SubNet(nn.Module):
    def __init__(self{parts}):
        super().__init__()
'''
TAIL = '''
    def _without_bias(self, layer):
        layer.bias = None
        return layer

    def _place(self, path, thing):
        """Puts a layer, parameter or buffer under a dotted name."""
        *parents, name = path.split(".")
        module = self
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module._modules[parent]
        if isinstance(thing, nn.Module):
            module.add_module(name, thing)
        elif isinstance(thing, nn.Parameter):
            module.register_parameter(name, thing)
        else:
            module.register_buffer(name, thing)
'''


class GraphSource(NamedTuple):
    """What makes up one sub-net.

    Attributes:
        text: of a class `SubNet`.
        tensors: its parameters and buffers, shared with the supernet where they are whole.
        parts: the modules of the original network that it calls as they are, by path, each with what changes in it (as
            in `layer_plan`); the class takes them as an argument, if there are any.
    """

    text: str
    tensors: dict[str, Tensor]
    parts: dict[str, dict[str, Any]]


def graph_source(supernet: Supernet, config: SubnetConfig) -> GraphSource:
    """Source of a class that computes one sub-net.

    Args:
        supernet: in graph form.
        config: a canonical member of its space.
    """
    model: Any = supernet.model
    form: GraphForm = supernet.form_of(config)
    program, units = form.program, supernet.units_of(config)
    skipped = supernet.skipped_in(config)
    used = _Used(supernet, units)
    body = list(program.lines(used.text, skipped))
    lines = _head(config.key, type(model).__mro__[2].__name__, used.parts, program)
    lines += "".join(f"        {line}\n" for line in used.definitions())
    lines += f"\n    def forward(self, {', '.join(program.inputs)}):\n"
    lines += "".join(f"        {line}\n" for line in body)
    return GraphSource(lines + TAIL, used.tensors, used.parts)


def _head(key: str, model: str, parts: Mapping[str, Any], program: Program) -> str:
    needs = ["torch alone"]
    if parts:
        needs = [f"of that network the modules {', '.join(parts)} with their sizes (load_subnet sees to it)"]
    if operators := program.foreign_operators:
        needs.append(f"the operators {', '.join(operators)}: import what registers them first")
    given, argument = ("parts", ", parts") if parts else ("", "")
    return HEAD.format(key=key, model=model, needs="; ".join(needs), given=given, parts=argument)


class _Used:
    """Writes parts of a program for one sub-net, and remembers what they need."""

    def __init__(self, supernet: Supernet, units: Mapping[str, int]) -> None:
        self.supernet, self.units = supernet, units
        self.model: Any = supernet.model
        self.tensors: dict[str, Tensor] = {}
        self.made: dict[str, str] = {}  # path -> how it is made
        self.parts: dict[str, dict[str, Any]] = {}
        self.lists = 0

    def text(self, part: Part) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Count):
            return str(part.value(self.units))
        if isinstance(part, Tap):
            return part.variable
        if isinstance(part, Positions):
            name = f"positions_{self.lists}"
            self.lists += 1
            return self._tensor(name, part.value(self.units), parameter=False)
        if isinstance(part, Weight):
            whole = tensor_of(self.model, part.name)
            maps = self.model.graph_form.parameters.get(part.name, {})
            tensor = sliced(whole, [(axis, m.kept(self.units)) for axis, m in maps.items()])
            return self._tensor(part.name, tensor, isinstance(whole, nn.Parameter))
        self._layer(part)
        return _reached(part.path)

    def _tensor(self, name: str, tensor: Tensor, parameter: bool) -> str:
        self.tensors[name] = tensor
        empty = f"torch.empty({list(tensor.shape)}, dtype={tensor.dtype})"
        if not tensor.is_floating_point():
            empty = f"torch.zeros({list(tensor.shape)}, dtype={tensor.dtype})"
        self.made[name] = f"nn.Parameter({empty})" if parameter else empty
        return _reached(name)

    def _layer(self, part: Layer) -> None:
        layer: Any = self.model.get_submodule(part.path)
        if part.path in self.made:
            return
        site = self.supernet.sites.get(part.path)
        found = None if site is None else active_part(layer, site, self.units)
        if part.path in self.model.graph_form.parts:
            self._part(part.path, layer, found)
            return
        for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            kept = tensor
            if found is not None and tensor.ndim:
                kept = kept_part(layer, name, tensor, found)
            self.tensors[f"{part.path}.{name}"] = kept
        made = _constructor(layer, found)
        norm_without_bias = (
            getattr(layer, "weight", None) is not None and layer.bias is None and "bias=" not in made
        )
        self.made[part.path] = f"self._without_bias({made})" if norm_without_bias else made

    def _part(self, path: str, module: nn.Module, found: Active | None) -> None:
        """A module of the original network, as it is but for the channels of its own that are left out."""
        for name, tensor in module.state_dict(keep_vars=True).items():
            kept = tensor if found is None or "." in name else kept_part(module, name, tensor, found)
            self.tensors[f"{path}.{name}"] = kept
        if found is None and isinstance(module, RECURRENT) and type(module) in RECURRENT:
            self.made[path] = recurrent_constructor(module)
            return
        sizes = passing_sizes(module, found.num_inputs) if found and isinstance(module, PassingModule) else {}
        self.parts[path], self.made[path] = sizes, f"parts[{path!r}]"

    def definitions(self) -> Iterator[str]:
        """The body of `__init__`."""
        if self.parts:
            yield f"self.called_as_they_are = {tuple(self.parts)}"
        for path, made in self.made.items():
            yield f"self._place({path!r}, {made})"


def _reached(path: str) -> str:
    """The expression that reads a dotted path from `self`."""
    text = "self"
    for name in path.split("."):
        text = f"{text}.{name}" if name.isidentifier() else f"getattr({text}, {name!r})"
    return text


def _constructor(layer: Any, part: Any) -> str:
    kind = lifted_kind(layer)
    assert kind is not None
    if kind is nn.Linear:
        inputs, outputs = (layer.in_features, layer.out_features) if part is None else _widths(part)
        return f"nn.Linear({inputs}, {outputs}, bias={layer.bias is not None})"
    if kind is nn.LayerNorm:
        size = layer.normalized_shape[0] if part is None else part.num_inputs
        affine, bias = layer.weight is not None, layer.bias is not None
        return f"nn.LayerNorm({size}, eps={layer.eps}, elementwise_affine={affine}, bias={bias})"
    if kind is nn.GroupNorm:
        size = layer.num_channels if part is None else part.num_inputs
        return (
            f"nn.GroupNorm({kept_norm_groups(layer, size)}, {size}, eps={layer.eps}, affine={layer.affine})"
        )
    if hasattr(layer, "num_features"):
        size = layer.num_features if part is None else part.num_inputs
        return (
            f"nn.{kind.__name__}({size}, eps={layer.eps}, momentum={layer.momentum}, "
            f"affine={layer.affine}, track_running_stats={layer.track_running_stats})"
        )
    inputs, outputs = (layer.in_channels, layer.out_channels) if part is None else _widths(part)
    groups = kept_groups(layer, outputs)
    return (
        f"nn.{kind.__name__}({inputs}, {outputs}, {layer.kernel_size}, stride={layer.stride}, "
        f"padding={layer.padding!r}, dilation={layer.dilation}, groups={groups}, bias={layer.bias is not None})"
    )


def _widths(part: Any) -> tuple[int, int]:
    return part.num_inputs, part.num_outputs


def build_from_source(
    source: str, where: str = "<sub-net>", parts: Mapping[str, nn.Module] | None = None
) -> nn.Module:
    """The network that a source of `graph_source` describes; its tensors wait on the meta device to be loaded.

    Args:
        source: to be executed.
        where: a name for tracebacks.
        parts: the modules of the original network that it calls as they are; they become the network's.

    Raises:
        InvalidInput: it is no such source, or parts are missing.
    """
    try:
        kind = _kind(source, where)
        takes_parts = "parts" in inspect.signature(kind).parameters
        if takes_parts and not parts:
            raise InvalidInput(
                f"{where} calls modules of the original network as they are, and got none: load the sub-net by "
                "load_subnet where that network's code can be imported"
            )
        with torch.device("meta"):
            return kind(parts) if takes_parts else kind()
    except InvalidInput:
        raise
    except (Exception, SystemExit) as error:  # a damaged file can raise anything
        raise InvalidInput(
            f"{where} is no source of a sub-net: {type(error).__name__}: {error}; export the sub-net again"
        ) from error


def built_again(net: nn.Module, source: str) -> nn.Module:
    """The network from its source, without its weights; modules called as they are become copies of the net's."""
    parts = {path: copy.deepcopy(net.get_submodule(path)) for path in getattr(net, "called_as_they_are", ())}
    return build_from_source(source, parts=parts)


def source_of(net: nn.Module) -> str | None:
    """The source that a network was built from, if it was."""
    return getattr(type(net), "__source__", None)


@functools.lru_cache(maxsize=16)
def _kind(source: str, where: str) -> type[nn.Module]:
    """The class `SubNet` of a source, which is executed; its nets can be pickled, and tracebacks show its lines."""
    scope: dict[str, Any] = {"__name__": "subnet"}
    exec(compile(source, where, "exec"), scope)
    kind = scope["SubNet"]
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError("its SubNet is no network")
    kind.__reduce_ex__ = lambda self, protocol: (_blank, (source, where), self.__getstate__())  # type: ignore[method-assign]
    kind.__source__ = source  # type: ignore[attr-defined]
    linecache.cache[where] = (len(source), None, source.splitlines(True), where)
    weakref.finalize(kind, linecache.cache.pop, where, None)
    return kind


def _blank(source: str, where: str) -> nn.Module:
    kind = _kind(source, where)
    return kind.__new__(kind)
