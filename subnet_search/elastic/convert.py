"""From a plain network to a supernet."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from search_spaces import InvalidInput, SubnetConfig, nearest_names
from subnet_search.elastic.compiled import compiled, grouped
from subnet_search.elastic.coverage import INPUT, NOT_CALLED
from subnet_search.elastic.detour import Detour
from subnet_search.elastic.flow import matches
from subnet_search.elastic.graph import (
    Example,
    Traced,
    UntraceableModelError,
    at_batch_one,
    call_arguments,
    trace,
)
from subnet_search.elastic.knobs import EmptySpaceError
from subnet_search.elastic.layers import (
    ElasticBatchNorm,
    make_exactly_elastic,
    make_layer_elastic,
    make_skippable,
)
from subnet_search.elastic.operations.exact_layers import lifted_kind
from subnet_search.elastic.operations.exported import read_exported
from subnet_search.elastic.operations.follow import follow_exported
from subnet_search.elastic.operations.graph_form import GraphForm, argument_names, in_order, run_graph
from subnet_search.elastic.operations.program import Layer
from subnet_search.elastic.operations.shuffles import fuse_shuffles
from subnet_search.elastic.operations.writing import write_program
from subnet_search.elastic.registered_layers import make_passing
from subnet_search.elastic.residual import handed_on
from subnet_search.elastic.resolutions import Graph, Look, with_own_constants
from subnet_search.elastic.restructured import restructured
from subnet_search.elastic.rules import follow, with_rules
from subnet_search.elastic.states import check_sized
from subnet_search.elastic.supernet import Supernet
from subnet_search.elastic.trial import unshrinkable
from subnet_search.settings import ElasticSettings


def make_elastic(model: nn.Module, example: Example, settings: ElasticSettings | None = None) -> Supernet:
    """Finds out which channels of a network are coupled and which blocks may be skipped, and makes a supernet.

    The model given is left untouched. The largest sub-net computes bit for bit what the model computes (in branches,
    which leave weights out, it does not).

    Args:
        model: any network whose forward can be traced.
        example: one input (a tensor, a tuple, or a dict of keyword arguments) of the size to be used; costs
            are stated for its first row.
        settings: which widths to offer, and what to leave alone.

    Raises:
        UntraceableModelError: the outermost forward cannot be followed.
        EmptySpaceError: nothing is elastic; the message lists the reasons.
        InvalidInput: the model does not run on the example, or the settings do not fit the model.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_sized(model)
    settings = settings or ElasticSettings()
    _check_patterns(model, settings)
    example = at_batch_one(example)
    with _garbage_sought_among_new_objects():
        if settings.is_structured:
            return restructured(model, example, settings, partial(_sound, _by_layers))
        if settings.form == "own classes":
            return _sound(_by_layers, model, example, settings)
        if settings.form == "graph":
            return _sound(_by_graph, model, example, settings)
        return _by_either(model, example, settings)


@contextmanager
def _garbage_sought_among_new_objects() -> Iterator[None]:
    """Graphs are so many objects that all there are would be looked through again and again, a tenth of the time."""
    mine = gc.get_freeze_count() == 0
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


def _by_either(model: nn.Module, example: Example, settings: ElasticSettings) -> Supernet:
    """The form that can shrink more, and of equal ones the model's own classes; what loses anyhow is not tried out."""
    graph = None
    try:
        begun = _by_layers(model, example, settings, {})
        if left_whole := _left_whole(begun[0]):
            graph = _graph_if_possible(model, example, settings)
            if graph is not None and _reach(graph) > _reach(begun[0]):
                return graph  # trying out the other one could only take something from it
        layers = _sound(_by_layers, model, example, settings, begun)
    except (UntraceableModelError, EmptySpaceError) as error:
        try:
            return _sound(_by_graph, model, example, settings)
        except UntraceableModelError:
            raise error from None
    if not left_whole and _left_whole(layers):
        graph = _graph_if_possible(model, example, settings)
    return graph if graph is not None and _reach(graph) > _reach(layers) else layers


def _graph_if_possible(model: nn.Module, example: Example, settings: ElasticSettings) -> Supernet | None:
    try:
        return _sound(_by_graph, model, example, settings)
    except InvalidInput:
        return None


def _reach(supernet: Supernet) -> float:
    """How much of the multiply-adds the smallest sub-net does without, and the narrowest with all blocks, added.

    Where blocks are skipped, it does not show what in them is elastic. A tenth of a percent is no difference.
    """
    space = supernet.space
    narrowest = {k.name: k.smallest if k.kind == "width" else k.choices[-1] for k in space.knobs}
    rows = space.encode([space.largest(), space.smallest(), SubnetConfig(narrowest)])
    largest, *ends = supernet.costs.macs(rows).tolist()
    return round(sum(1 - macs / max(largest, 1) for macs in ends), 3)


def _left_whole(supernet: Supernet) -> bool:
    """Whether something stayed whole that the settings do not name and that could be narrower."""
    reasons = [entry["reason"] for entry in supernet.coverage["fixed"] if entry["path"] != INPUT]
    if any(reason.startswith(NOT_CALLED) for reason in reasons):
        return False  # the graph is that of evaluation: heads that only training calls would be lost
    return any(not reason.startswith(_AS_IT_SHOULD) for reason in reasons)


_AS_IT_SHOULD = (
    "the network's output",
    "no smaller width",
    "excluded by",
    "not among",
    "it shares a parameter",
)


def _sound(
    convert: Callable[[nn.Module, Example, ElasticSettings, Mapping[str, str]], tuple[Supernet, Traced]],
    model: nn.Module,
    example: Example,
    settings: ElasticSettings,
    begun: tuple[Supernet, Traced] | None = None,
) -> Supernet:
    """Converts, tries the supernet out, and leaves whole what the model's forward does not let shrink."""
    excluded: dict[str, str] = {}
    while True:
        supernet, traced = begun or convert(model, example, settings, excluded)
        begun = None
        also_training = bool(traced.uncalled) and convert is _by_layers
        broken = unshrinkable(supernet, model, also_training, with_rules(traced))
        if not broken:
            return supernet
        if not broken.keys() - excluded.keys():
            raise InvalidInput(
                f"{type(model).__name__} cannot be made elastic: {'; '.join(sorted(set(broken.values()))[:3])}; name "
                "the layers in ElasticSettings(exclude=(...))"
            )
        excluded.update(broken)


def _by_layers(
    model: nn.Module, example: Example, settings: ElasticSettings, excluded: Mapping[str, str]
) -> tuple[Supernet, Traced]:
    """The user's own forward, with its layers exchanged."""

    def look(given: Example) -> Look:
        flow = follow(trace(model, given), settings.include, settings.exclude)
        for path, reason in excluded.items():
            if path in flow.writes:
                flow.channels.freeze(flow.writes[path], reason)
        return Look(*grouped(flow, settings, excluded))

    found = compiled(model, example, settings, excluded, look)
    elastic = copy.deepcopy(model)
    for path, module in elastic.named_modules():
        if path in found.whole.grouping.sites:
            make_layer_elastic(module)
        make_passing(module)
    _make_norms_elastic(elastic)
    traced = found.whole.grouping.flow.traced
    for block, handed in handed_on(traced, found.whole.blocks).items():
        detour = Detour(handed.places, handed.packed) if handed.places else None
        make_skippable(elastic.get_submodule(block), detour)
    return found.supernet(elastic, example), traced


def _by_graph(
    model: nn.Module, example: Example, settings: ElasticSettings, excluded: Mapping[str, str]
) -> tuple[Supernet, Traced]:
    """The exported graph in place of the forward."""
    example = in_order(model, example)

    def look(given: Example) -> Look:
        traced = fuse_shuffles(read_exported(model, given))
        if isinstance(given, Tensor) and given is not example:
            traced = with_own_constants(traced, f"_at_{given.shape[-2]}")
        flow = follow_exported(traced, settings.include, (*settings.exclude, *excluded))
        grouping, blocks = grouped(flow, settings, excluded)
        program = write_program(traced, flow, grouping, blocks)
        return Look(grouping, blocks, Graph(program, traced.constants, flow.weights))

    found = compiled(model, example, settings, excluded, look)
    looks = (found.whole, *found.resolutions.looks.values())
    graphs = [one.graph for one in looks if one.graph]
    elastic = copy.deepcopy(model)
    parts = frozenset[str]().union(*(one.grouping.flow.traced.parts for one in looks))
    for path in dict.fromkeys(part.path for graph in graphs for part in graph.program.parts[Layer]):
        layer = elastic.get_submodule(path)
        kind = lifted_kind(layer)
        if path in parts:
            make_passing(layer)
            _make_norms_elastic(layer)
        else:
            assert kind is not None
            make_exactly_elastic(layer, kind)
    for name, tensor in (item for graph in graphs for item in graph.constants.items()):
        elastic.register_buffer(name, tensor, persistent=False)
    keywords, inputs = argument_names(model, example), tree_leaves(call_arguments(example))
    fixed = {i: value for i, value in enumerate(inputs) if not isinstance(value, Tensor)}

    parameters, blocks = found.whole.grouping.parameters, found.whole.blocks
    whole, *lower = [
        GraphForm(graph.program, parameters, graph.weights, keywords, fixed, blocks, parts)
        for graph in graphs
    ]
    run_graph(elastic, whole)
    forms = dict(zip(found.resolutions.looks, lower, strict=True))
    return found.supernet(elastic, example, forms), found.whole.grouping.flow.traced


def _make_norms_elastic(model: nn.Module) -> None:
    """Every batch norm can be given the statistics of a sub-net, also one in a part that stays whole."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            make_layer_elastic(module)
            if not isinstance(module, ElasticBatchNorm):
                raise UntraceableModelError(
                    f"{path} is a {type(module).__name__}, whose statistics cannot be set for each sub-net; "
                    f"use torch's BatchNorm1d, 2d or 3d there, or a sub-class that inherits their forward"
                )


def _check_patterns(model: nn.Module, settings: ElasticSettings) -> None:
    """Refuses patterns that name nothing: a misspelt one would be ignored silently."""
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    for name in ("include", "exclude", "steps", "min_shares"):
        for pattern in getattr(settings, name):
            if not any(matches(path, (pattern,)) for path in paths):
                raise InvalidInput(
                    f"{name}={pattern!r} matches no module of {type(model).__name__}"
                    f"{nearest_names(pattern, paths)}; patterns are dotted paths such as {paths[:1]}"
                )
