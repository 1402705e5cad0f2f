"""Cuts a supernet into spans that run one after the other, so that sub-nets can share their first ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import SubnetConfig
from subnet_search.elastic.folding import Fold, find_folds
from subnet_search.elastic.layers import ElasticBatchNorm, ElasticLayer, SkippableBlock
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.supernet import Supernet
from subnet_search.elastic.switchable import switchable_norms

MOST_VARIANTS = 128  # of what comes before a cut: with more of them two random sub-nets hardly ever share it
LEAST_SHARE = 0.005  # of the multiply-adds, for a span that is worth remembering


@dataclass(frozen=True, eq=False)
class Span:
    """A part of the network: one tensor goes in, one comes out.

    Attributes:
        run: takes and gives a batch, of the supernet's active config.
        norms: the span's batch norms by path.
        folds: those of them that can be folded into a convolution of the span.
        knobs: all knobs that decide what comes out, from the network's input on; None: all there are.
    """

    run: Callable[[Tensor], Tensor]
    norms: dict[str, ElasticBatchNorm]
    folds: tuple[Fold, ...]
    knobs: tuple[str, ...] | None = None

    def key(self, config: SubnetConfig) -> tuple[int, ...]:
        """Equal for two canonical configs if the same comes out."""
        return tuple(config.values() if self.knobs is None else (config[name] for name in self.knobs))


def cut_into_spans(
    supernet: Supernet, fits: Callable[[int], bool], most_variants: float = MOST_VARIANTS
) -> tuple[Span, ...]:
    """The spans of a supernet, in order; a network that cannot be cut, or runs its graph, is one span.

    A cut is where one tensor carries everything, where few different sub-nets have been possible so far, and where
    enough was computed since the last one.

    Args:
        supernet: on its largest config, in evaluation mode.
        fits: whether so many numbers per image may be remembered at a cut.
        most_variants: how many different sub-nets are few.
    """
    if any(True for _ in switchable_norms(supernet.model)):  # what comes first depends on blocks further on
        return (Span(supernet, supernet.batch_norms, ()),)
    folds = find_folds(supernet.model)
    whole = (Span(supernet, supernet.batch_norms, tuple(folds)),)
    example = supernet.example
    if not isinstance(example, Tensor) or isinstance(supernet.model, RunsGraph):
        return whole  # a trace of a graph form would write down the numbers of the sub-net that is active now
    try:
        graph = _CoarseTracer().trace(supernet.model)
        cuts = list(_chosen_cuts(supernet, graph, fits, most_variants))
        parts = _parts(supernet.model, graph, [node for node, _ in cuts])
        norms = [{p: n for p, n in supernet.batch_norms.items() if _holds(part, p)} for part in parts]
        called_once = sum(map(len, norms)) == len(set[str]().union(*norms))
        if not (cuts and called_once and _same(supernet, example, parts)):
            return whole
    except Exception:  # the user's forward cannot be followed, in one of many ways: then it runs whole
        return whole
    knobs = [*(names for _, names in cuts), None]
    inside = [tuple(f for f in folds if _holds(p, f.conv_path) and _holds(p, f.norm_path)) for p in parts]
    first, *rest = parts
    runs: list[Callable[[Tensor], Tensor]] = [lambda x: first(supernet.as_taken(x)), *rest]
    return tuple(map(Span, runs, norms, inside, knobs))


class _CoarseTracer(fx.Tracer):
    """Follows the forward down to elastic layers and skippable blocks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ElasticLayer | SkippableBlock) or super().is_leaf_module(
            m, module_qualified_name
        )


def _chosen_cuts(
    supernet: Supernet, graph: fx.Graph, fits: Callable[[int], bool], most_variants: float
) -> Iterator[tuple[fx.Node, tuple[str, ...]]]:
    """The nodes after which to cut, each with the knobs that decide its value."""
    sizes = _Sizes(fx.GraphModule(supernet.model, graph))
    sizes.run(supernet.example)
    choices = {knob.name: len(knob.choices) for knob in supernet.space.knobs}
    knobs = {knob.name: None for knob in supernet.space.knobs if knob.kind == "resolution"}
    last: fx.Node | None = None  # where a cut is possible with the knobs so far
    since, total = 0, sum(sizes.macs.values())
    narrow = set(_bottlenecks(graph))
    for node in graph.nodes:
        new = [name for name in _knobs_of(supernet, node) if name not in knobs]
        if new and last is not None and since >= LEAST_SHARE * total:
            yield last, tuple(knobs)
            since = 0
        knobs |= dict.fromkeys(new)
        if math.prod(choices[name] for name in knobs) > most_variants:
            return
        since += sizes.macs.get(node, 0)
        if new or node in narrow:
            carries = node in narrow and node in sizes.numbers
            last = node if carries and fits(sizes.numbers[node]) else None


class _Sizes(fx.Interpreter):
    """Runs the graph once and notes each node's numbers and multiply-adds."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.numbers: dict[fx.Node, int] = {}
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.macs[n] = counter.get_total_flops() // 2
        if isinstance(value, Tensor):
            self.numbers[n] = value.numel()
        return value


def _bottlenecks(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes whose value is all that later nodes need, weights aside."""
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    needed_until = -1  # by the nodes before
    for i, node in enumerate(nodes):
        if node.op not in ("placeholder", "get_attr", "output") and needed_until <= i < last_use[node]:
            yield node
        if node.op != "get_attr":
            needed_until = max(needed_until, last_use[node])


def _knobs_of(supernet: Supernet, node: fx.Node) -> Iterator[str]:
    """The knobs of the layers and blocks that a node calls."""
    if node.op != "call_module":
        return
    inside = (str(node.target), f"{node.target}.")
    for path, site in supernet.sites.items():
        if path == inside[0] or path.startswith(inside[1]):
            for channels in (site.reads, site.writes):
                groups = () if channels is None else channels.groups
                yield from (supernet.knob_of[name] for name in groups if name in supernet.knob_of)
    for block in supernet.blocks:
        if block == inside[0] or block.startswith(inside[1]):
            yield supernet.depth_of[block]


def _parts(model: nn.Module, graph: fx.Graph, cuts: Sequence[fx.Node]) -> list[fx.GraphModule]:
    """The graph between one cut and the next as modules that share the model's layers."""
    nodes, parts, begin = list(graph.nodes), [], 0
    source = next(node for node in nodes if node.op == "placeholder")
    for cut in (*cuts, nodes[-1]):
        end = nodes.index(cut) + 1
        mine = [node for node in nodes[begin:end] if node.op not in ("placeholder", "get_attr")]
        weights = [n for n in nodes if n.op == "get_attr" and not n.users.keys().isdisjoint(mine)]
        part = fx.Graph()
        copies = {source: part.placeholder("x")}
        for node in (*weights, *mine):
            copies[node] = part.node_copy(node, copies.__getitem__)
        if cut.op != "output":
            part.output(copies[cut])
        parts.append(fx.GraphModule(model, part))
        begin, source = end, cut
    return parts


def _same(supernet: Supernet, example: Tensor, parts: Sequence[fx.GraphModule]) -> bool:
    """Whether the parts, one after the other, give the supernet's answer and leave what comes in as it is."""
    with torch.no_grad():
        value = example.clone()
        for part in parts:
            version = value._version
            result = part(value)
            if value._version != version:  # an activation in place: what was remembered would change
                return False
            value = result
        return torch.equal(value, supernet(example))


def _holds(part: fx.GraphModule, path: str) -> bool:
    try:
        part.get_submodule(path)
    except AttributeError:
        return False
    return True
