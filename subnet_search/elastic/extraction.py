"""Cuts a sub-net out of the supernet as plain modules, and rebuilds it from a description."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from subnet_search.elastic.detour import Detour
from subnet_search.elastic.graph import Example, call_arguments, enclosing, home_paths
from subnet_search.elastic.grouped import kept_groups
from subnet_search.elastic.image_size import as_taken
from subnet_search.elastic.layers import ElasticLayer, kept_part, make_plain
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.operations.source import build_from_source, graph_source
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.elastic.registered_layers import SHAPES, PassingModule, passing_sizes
from subnet_search.elastic.states import assign_state
from subnet_search.elastic.statistics import Statistics
from subnet_search.elastic.supernet import Supernet, active_part
from subnet_search.elastic.switchable import AT_SKIP, settle, settled_state, switches_of
from subnet_search.modes import evaluation_mode

TOLERANCE = 1e-4  # relative to the largest output; kernels may sum sliced and plain weights in another order


class ExtractionError(SubnetSearchError):
    """The extracted network does not compute what the active sub-net computes."""


def extract(
    supernet: Supernet,
    config: SubnetConfig,
    example: Example | None = None,
    statistics: Statistics | None = None,
) -> nn.Module:
    """A sub-net as a plain network of the model's own classes, with copies of the weights.

    Args:
        supernet: the shared weights.
        config: a member of its space.
        example: an input to compare on; the supernet's own by default.
        statistics: batch-norm statistics of the sub-net, from `recalibrate`.

    Returns:
        The network, in the supernet's mode (train or eval). Its `calibrated` says whether its batch-norm
        statistics are its own: with `statistics`, for the largest net, and without batch norm. Where sub-nets take
        images of several sizes, its `input_px` is height and width of those that it takes; it resizes none.

    Raises:
        ExtractionError: its output differs from the active sub-net's.
    """
    net = cut_out(supernet, config, statistics)
    difference, scale = difference_on(
        supernet, config, net, example if example is not None else supernet.example, statistics
    )
    if not difference <= TOLERANCE * max(scale, 1.0):
        raise ExtractionError(
            f"the extracted sub-net {config.key} differs from the active one by {difference:.3g} at outputs of up to "
            f"{scale:.3g}: the forward of {type(net).__name__} depends on sizes that extraction cannot update; "
            "exclude those layers with ElasticSettings(exclude=(...))"
        )
    return net


def tensors_in(answer: Any) -> list[Tensor]:
    """The tensors of an answer, which may be one, or a tuple or dict of them."""
    return [value for value in tree_leaves(answer) if isinstance(value, Tensor)]


@torch.no_grad()
def difference_on(
    supernet: Supernet,
    config: SubnetConfig,
    net: nn.Module,
    example: Example,
    statistics: Statistics | None = None,
) -> tuple[float, float]:
    """Largest absolute difference between `net` and the active sub-net in evaluation mode, and their scale.

    All tensors that the model returns are compared.
    """
    args, kwargs = call_arguments(example)
    with evaluation_mode(supernet, net):
        with supernet.subnet(config, statistics):
            wanted = supernet(*args, **kwargs)
        args, kwargs = as_taken(net, call_arguments(example))
        got = net(*args, **kwargs)
    pairs = list(zip(tensors_in(wanted), tensors_in(got), strict=True))
    if not pairs:
        raise InvalidInput(f"the model must return tensors, got {type(wanted).__name__}")
    scale = max(float(w.abs().max()) for w, _ in pairs)
    if any(g.shape != w.shape or not g.isfinite().all() for w, g in pairs):
        return float("inf"), scale
    return max(float((g - w).abs().max()) for w, g in pairs), scale


@torch.no_grad()
def cut_out(supernet: Supernet, config: SubnetConfig, statistics: Statistics | None = None) -> nn.Module:
    """`extract` without the comparison."""
    supernet.space.check(config)
    config = supernet.space.canonical(config)
    if statistics is not None and statistics.config_key != config.key:
        raise InvalidInput(f"statistics belong to sub-net {statistics.config_key}, not to {config.key}")
    switches: dict[str, bool] = {}
    if isinstance(supernet.model, RunsGraph):
        net, state = _from_graph(supernet, config)
    else:
        switches = switches_of(supernet.model, config)
        net = apply_plan(settle(_plain_skeleton(supernet.model), switches), layer_plan(supernet, config))
        state = _sliced_state(supernet, config)
    if statistics is not None:
        state.update({name: tensor.clone() for name, tensor in statistics.values.items()})
    assign_state(net, settled_state(state, switches) if switches else state)
    largest = config == supernet.space.largest()
    net.calibrated = statistics is not None or largest or not supernet.uses_batch_norm  # type: ignore[assignment]
    if (size_px := supernet.size_px(config)) is not None:
        net.input_px = size_px  # type: ignore[assignment]
    return net


def _from_graph(supernet: Supernet, config: SubnetConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    """A sub-net of the graph form, as a module of torch operators with tensors of its own."""
    source, tensors, sizes = graph_source(supernet, config)
    parts = {path: _plain_skeleton(supernet.model.get_submodule(path)) for path in sizes}
    for path, part in parts.items():
        if sizes[path]:
            resize(part, sizes[path])
    net = build_from_source(source, f"<sub-net {config.key}>", parts)
    own = net.state_dict(keep_vars=True)
    trained = dict(supernet.model.named_parameters(remove_duplicate=False))
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        copied = tensor.detach().clone(memory_format=torch.contiguous_format)
        is_parameter = isinstance(own[name], nn.Parameter)
        state[name] = nn.Parameter(copied, trained[name].requires_grad) if is_parameter else copied
    net.train(supernet.model.training)
    return net, state


def layer_plan(supernet: Supernet, config: SubnetConfig) -> dict[str, Any]:
    """The sizes of a sub-net's layers as plain data, enough to rebuild it around loaded weights.

    Returns:
        `{"layers": {path: {attribute: size}}, "skipped": [path, ...]}` with the layers that differ from the
        full net, and `"detours"` of those skipped blocks that have several arguments or answers. A module with a rule
        of the user's has `shapes`, too, of the tensors that follow its channels, by name.
    """
    config = supernet.space.canonical(config)
    skipped = supernet.skipped_in(config)
    units = supernet.units_of(config)
    kept = _kept_names(supernet.model, skipped)
    layers: dict[str, dict[str, Any]] = {}
    for path in supernet.sites:
        if path not in kept or path.endswith(f".{AT_SKIP}"):
            continue
        layer = supernet.model.get_submodule(path)
        if isinstance(layer, PassingModule):
            changed = passing_sizes(layer, active_part(layer, supernet.sites[path], units).num_inputs)
        else:
            sizes = _sizes(layer, supernet, path, units)
            changed = {name: size for name, size in sizes.items() if getattr(layer, name) != size}
        if changed:
            layers[kept[path]] = changed
    blocks: dict[str, Any] = {block: supernet.model.get_submodule(block) for block in skipped}
    detours = {path: block.detour.to_json() for path, block in blocks.items() if block.detour is not None}
    return {"layers": layers, "skipped": skipped, **({"detours": detours} if detours else {})}


def _kept_names(model: nn.Module, skipped: Sequence[str]) -> dict[str, str]:
    """For the first path of every module that is not gone with skipped blocks, the first path that is left of it."""
    homes, names = home_paths(model), dict[str, str]()
    for path, home in homes.items():
        if not any(homes[around] in skipped for around in enclosing(path) if around):
            names.setdefault(home, path)
    return names


def _sizes(layer: Any, supernet: Supernet, path: str, units: Mapping[str, int]) -> dict[str, int]:
    part = active_part(layer, supernet.sites[path], units)
    if isinstance(layer, nn.Linear):
        return {"in_features": part.num_inputs, "out_features": part.num_outputs}
    if isinstance(layer, PaddedShortcut):
        return {"in_channels": part.num_inputs, "out_channels": part.num_outputs}
    if hasattr(layer, "num_features"):
        return {"num_features": part.num_inputs}
    groups = kept_groups(layer, part.num_outputs)
    return {"in_channels": part.num_inputs, "out_channels": part.num_outputs, "groups": groups}


def apply_plan(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Shrinks a model's structure in place; its parameters then wait for weights of the new shapes.

    Args:
        model: the original network, freshly built.
        plan: what `layer_plan` returned.

    Raises:
        InvalidInput: the plan does not fit the model.
    """
    try:
        homes = home_paths(model)
        detours = {path: Detour.from_json(told).module() for path, told in plan.get("detours", {}).items()}
        skipped = {block: model.get_submodule(block) for block in plan["skipped"]}
        for path, home in homes.items():
            if home in skipped:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, detours.get(home) or nn.Identity())
        for path, sizes in plan["layers"].items():
            resize(model.get_submodule(path), sizes)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise InvalidInput(
            f"the description of the sub-net does not fit {type(model).__name__}: {error}; "
            "build the model with the options it was converted with"
        ) from error
    return model


def resize(layer: Any, sizes: Mapping[str, Any]) -> None:
    """Gives a layer other sizes; the tensors that these change then wait for weights."""
    shapes = sizes.get(SHAPES)
    for name, size in sizes.items():
        if name == SHAPES:
            continue
        if not isinstance(getattr(layer, name), int):
            raise TypeError(f"{name} of {type(layer).__name__} is no size")
        setattr(layer, name, size)
    for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if tensor.ndim == 0 or (shapes is not None and name not in shapes):
            continue
        shape = _shape(layer, name, tensor) if shapes is None else shapes[name]
        empty = torch.empty(shape, dtype=tensor.dtype, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        setattr(layer, name, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty)


def _shape(layer: Any, name: str, tensor: Tensor) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features) if name == "weight" else (layer.out_features,)
    if hasattr(layer, "num_features"):
        return (layer.num_features,)
    if name == "weight":
        return (layer.out_channels, layer.in_channels // layer.groups, *tensor.shape[2:])
    return (layer.out_channels,)


def _plain_skeleton(model: nn.Module) -> nn.Module:
    """A copy of the structure with the user's own classes; parameters and saved buffers are still shared."""
    shared = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    net = copy.deepcopy(model, memo=dict(shared))
    for module in list(net.modules()):
        make_plain(module)
    return net


def _sliced_state(supernet: Supernet, config: SubnetConfig) -> dict[str, Tensor]:
    """The kept part of every parameter and saved buffer, under its own name."""
    units = supernet.units_of(config)
    skipped = set(supernet.skipped_in(config))
    homes = home_paths(supernet.model)
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}  # a parameter with two names stays one
    for name, tensor in supernet.model.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        if any(homes[around] in skipped for around in enclosing(path) if around):
            continue
        path = homes[path]
        layer = supernet.model.get_submodule(path)
        kept = tensor
        if path in supernet.sites and isinstance(layer, ElasticLayer) and tensor.ndim > 0:
            kept = kept_part(layer, leaf, tensor, active_part(layer, supernet.sites[path], units))
        if id(tensor) not in copies:
            copy_ = kept.detach().clone(memory_format=torch.contiguous_format)
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(copy_, tensor.requires_grad) if is_parameter else copy_
        state[name] = copies[id(tensor)]
    return state
