"""Graphs of networks: where one tensor carries all that later operations need, and the parts between such places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx, nn

from subnet_search.elastic.graph import enclosing


def paths_in(graph: fx.Graph) -> list[str]:
    """The modules whose layers the graph calls, and all around them."""
    touched = (path for node in graph.nodes for path in _touched(node))
    return list(dict.fromkeys(around for path in touched for around in enclosing(path) if around))


def _touched(node: fx.Node) -> Iterator[str]:
    """The module whose layer or tensor a node uses, and those around what it computes."""
    yield from node.meta.get("scope") or ()
    yield from own_paths(node)


def own_paths(node: fx.Node) -> Iterator[str]:
    """The module whose layer or tensor a node uses, if it uses one."""
    if node.op == "call_module":
        yield str(node.target)
    elif node.op == "get_attr":
        yield str(node.target).rpartition(".")[0]


def is_inside(path: str, outer: str) -> bool:
    """Whether a module is another one or stands in it."""
    return path == outer or path.startswith(f"{outer}.")


def first_after(graph: fx.Graph, path: str, narrow: set[fx.Node]) -> fx.Node | None:
    """The first bottleneck from the last operation of a module on."""
    nodes = list(graph.nodes)
    mine = [i for i, node in enumerate(nodes) if any(is_inside(p, path) for p in _touched(node))]
    return next((node for node in nodes[mine[-1] :] if node in narrow), None) if mine else None


def _sizes_alone(graph: fx.Graph) -> set[fx.Node]:
    """What is known of the input without its values (its batch size, say): any part can ask its own input for it."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        is_size = node.op.startswith("call_") and inputs and node.meta["shape"] is None
        if is_size and all(n.op == "placeholder" or n in found for n in inputs):
            found.add(node)
    return found


def bottlenecks(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value is all that later nodes need, weights aside."""
    sizes = _sizes_alone(graph)
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    last_use = {n: max((place[u] for u in n.users if u not in sizes), default=-1) for n in nodes}
    found, needed_until = set(), -1
    for i, node in enumerate(nodes):
        aside = node.op in ("placeholder", "get_attr", "output") or node in sizes
        if not aside and needed_until <= i < last_use[node]:
            found.add(node)
        if node.op != "get_attr" and node not in sizes:
            needed_until = max(needed_until, last_use[node])
    return found


def parts_between(net: nn.Module, graph: fx.Graph, cuts: Sequence[fx.Node]) -> list[fx.GraphModule]:
    """The graph between one cut and the next as modules that share the network's layers."""
    nodes, sizes, parts, begin = list(graph.nodes), _sizes_alone(graph), [], 0
    source = next(node for node in nodes if node.op == "placeholder")
    for cut_node in (*cuts, nodes[-1]):
        end = nodes.index(cut_node) + 1
        aside = ("placeholder", "get_attr")
        mine = [n for n in nodes[begin:end] if n.op not in aside and n not in sizes]
        weights = [n for n in nodes if n.op == "get_attr" and not n.users.keys().isdisjoint(mine)]
        part = fx.Graph()
        given = part.placeholder("x")
        copies = {n: given for n in nodes if n.op == "placeholder"} | {source: given}
        wanted = _needed(mine, sizes)
        for node in (*weights, *(n for n in nodes if n in wanted), *mine):
            copies[node] = part.node_copy(node, copies.__getitem__)
        if cut_node.op != "output":
            part.output(copies[cut_node])
        module = fx.GraphModule(net, part)
        parts.append(module.eval())
        begin, source = end, cut_node
    return parts


def _needed(nodes: Sequence[fx.Node], among: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    open_nodes = [n for node in nodes for n in node.all_input_nodes if n in among]
    while open_nodes:
        node = open_nodes.pop()
        if node not in found:
            found.add(node)
            open_nodes += [n for n in node.all_input_nodes if n in among]
    return found
