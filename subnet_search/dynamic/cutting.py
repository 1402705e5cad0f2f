"""Where a network can be cut into a part that every input runs and parts that follow a decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from search_spaces import RESOLUTION_KNOB, InvalidInput, nearest_names
from subnet_search.dynamic.bottlenecks import (
    bottlenecks,
    first_after,
    is_inside,
    own_paths,
    parts_between,
    paths_in,
)
from subnet_search.elastic.extraction import cut_out
from subnet_search.elastic.graph import Traced, counting_macs, trace
from subnet_search.elastic.image_size import as_taken
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.supernet import Supernet

LEAST_BEFORE = 0.1  # of the multiply-adds, before a gate whose place is found: earlier features tell little
TOLERANCE = 1e-5  # relative to the largest output
ROWS = 3  # images on which a cut is tried, so that a batch size written down is noticed


@dataclass(frozen=True)
class Place:
    """A tensor that everything later follows from.

    Attributes:
        path: of the module after which it is.
        channels: of the tensor, in the largest net.
        axis: of its channels.
        macs_share: of the largest net's multiply-adds, up to here.
        knobs: those that decide what is computed up to here; sub-nets that part here agree on them.
    """

    path: str
    channels: int
    axis: int
    macs_share: float
    knobs: frozenset[str]


def example_of(supernet: Supernet) -> Tensor:
    """The supernet's example, one image; `InvalidInput` where it takes several inputs."""
    if not isinstance(supernet.example, Tensor):
        raise InvalidInput("a gate needs a network that takes one tensor; this one takes several inputs")
    return supernet.example


def places(supernet: Supernet) -> tuple[Place, ...]:
    """All places where something elastic lies behind, in order; of paths that lead to the same work the shortest.

    Raises:
        InvalidInput: the network takes several inputs, or cannot be followed.
    """
    found: dict[float, Place] = {}  # by how much is computed before
    for place in _by_path(supernet).values():
        known = found.get(place.macs_share)
        if known is None or len(place.path) < len(known.path):
            found[place.macs_share] = place
    return tuple(found[share] for share in sorted(found))


def _by_path(supernet: Supernet) -> dict[str, Place]:
    given = example_of(supernet)
    net = cut_out(supernet, supernet.space.largest()).eval()
    example = as_taken(net, given)
    traced = trace(net, example)
    narrow = bottlenecks(traced.graph)
    macs = _macs_up_to(traced, net, example)
    every = {knob.name for knob in supernet.space.knobs}
    found: dict[str, Place] = {}
    for path in paths_in(traced.graph):
        node = first_after(traced.graph, path, narrow)
        if node is None or any(path != block and is_inside(path, block) for block in supernet.blocks):
            continue
        shape, knobs = node.meta["shape"], _knobs_up_to(supernet, traced.graph, node)
        if shape is not None and len(shape) > 1 and not every <= knobs:
            axis = _channel_axis(traced, node)
            found[path] = Place(path, shape[axis], axis, macs[node], knobs)
    return found


def place_at(supernet: Supernet, path: str | None = None, least_before: float = LEAST_BEFORE) -> Place:
    """The place after the module `path`; by default the first one with enough of the multiply-adds before it.

    Raises:
        InvalidInput: there is no such place; the message names those that there are.
    """
    if path is not None and (place := _by_path(supernet).get(path)) is not None:
        return place
    known = places(supernet)
    if not known:
        raise InvalidInput(
            "no tensor of this network carries all that elastic layers behind it need, so that no gate can stand "
            "anywhere; choose among whole sub-nets instead"
        )
    if path is None:
        return next((place for place in known if place.macs_share >= least_before), known[-1])
    names = [place.path for place in known]
    raise InvalidInput(
        f"a gate cannot stand after {path!r}{nearest_names(path, names)}: later layers need more than what comes out "
        f"there, or nothing elastic follows. It can stand after {', '.join(names)}"
    )


def cut(net: nn.Module, paths: Sequence[str], example: Tensor) -> list[fx.GraphModule]:
    """A plain network in parts, one more than `paths`, which share its layers; each takes and gives one tensor.

    Args:
        net: extracted; its parts are to be run in evaluation mode.
        paths: of modules, in forward order; the network is cut after each, as `Place` says.
        example: an input of the size that the network takes.

    Raises:
        InvalidInput: it cannot be cut there, or the parts one after the other answer differently.
    """
    traced = trace(net, example)
    narrow = bottlenecks(traced.graph)
    nodes = [first_after(traced.graph, path, narrow) for path in paths]
    parts: list[fx.GraphModule] = []
    if None not in nodes:
        parts = parts_between(net, traced.graph, [node for node in nodes if node is not None])
    if not parts or not _same(net, parts, example):
        raise InvalidInput(
            f"{type(net).__name__} cannot be cut after {', '.join(paths)}: later layers need more than what comes out "
            "there; name another place"
        )
    return parts


class _Counting(fx.Interpreter):
    """Runs a graph once and notes the multiply-adds of each node."""

    def __init__(self, net: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(net, graph))
        self.macs: list[int] = []

    def run_node(self, n: fx.Node) -> object:
        with torch.no_grad(), counting_macs() as counted:
            value = super().run_node(n)
        self.macs.append(counted())
        return value


def _macs_up_to(traced: Traced, net: nn.Module, example: Tensor) -> dict[fx.Node, float]:
    """The share of the multiply-adds that are done with each node."""
    counting = _Counting(net, traced.graph)
    counting.run(example, *[node.args[0] for node in _further_inputs(traced.graph) if node.args])
    done, shares = 0, {}
    for node, macs in zip(traced.graph.nodes, counting.macs, strict=True):
        done += macs
        shares[node] = done / max(sum(counting.macs), 1)
    return shares


def _further_inputs(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"][1:]


def _knobs_up_to(supernet: Supernet, graph: fx.Graph, last: fx.Node) -> frozenset[str]:
    """The knobs that any operation up to `last` depends on."""
    found = {knob.name for knob in supernet.space.knobs if knob.name == RESOLUTION_KNOB}
    parameters = supernet.model.graph_form.parameters if isinstance(supernet.model, RunsGraph) else {}
    touched: set[str] = set()
    groups: set[str] = set()
    for node in graph.nodes:
        touched |= set(own_paths(node))
        if node.op == "get_attr":
            groups |= {name for m in parameters.get(str(node.target), {}).values() for name in m.groups}
        if node is last:
            break
    for path, site in supernet.sites.items():
        if any(is_inside(path, other) for other in touched):
            groups |= {name for m in (site.reads, site.writes) if m is not None for name in m.groups}
    found |= {supernet.knob_of[name] for name in groups if name in supernet.knob_of}
    blocks = (block for block in supernet.blocks if any(is_inside(path, block) for path in touched))
    return frozenset(found | {supernet.depth_of[block] for block in blocks})


def _channel_axis(traced: Traced, node: fx.Node) -> int:
    """The axis of the channels, by the layer before: the last one after linear layers and their norms, else the second.

    Where that has another size than the layer gives, and the other one has it, something has moved the axes.
    """
    shape, before = node.meta["shape"], node
    while before.op not in ("call_module", "placeholder") and before.all_input_nodes:
        before = before.all_input_nodes[-1]
    layer: Any = traced.module(before) if before.op == "call_module" else None
    lasts = isinstance(layer, nn.Linear | nn.LayerNorm) or (len(shape) == 3 and not _is_1d(layer))
    likely, other = (len(shape) - 1, 1) if lasts else (1, len(shape) - 1)
    names = ("out_channels", "out_features", "num_features", "num_channels", "normalized_shape")
    width = next((getattr(layer, name) for name in names if hasattr(layer, name)), None)
    width = width[-1] if isinstance(width, tuple) else width
    return other if width is not None and shape[likely] != width == shape[other] else likely


def _is_1d(layer: object) -> bool:
    return isinstance(layer, nn.Conv1d | nn.BatchNorm1d)


@torch.no_grad()
def _same(net: nn.Module, parts: Sequence[fx.GraphModule], example: Tensor) -> bool:
    """Whether the parts give the network's answer for other batch sizes, too."""
    noise = torch.randn(ROWS, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    training = net.training
    net.eval()
    try:
        for images in (example[:1], example[:1] + noise.to(example)):
            value = images.clone()
            for part in parts:
                value = part(value)
            wanted = net(images.clone())
            if value.shape != wanted.shape:
                return False
            if not (value - wanted).abs().max() <= TOLERANCE * max(1.0, float(wanted.abs().max())):
                return False
    except (RuntimeError, TypeError, ValueError, AttributeError):  # sizes that only the whole input has
        return False
    finally:
        net.train(training)
    return True
