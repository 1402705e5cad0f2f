"""The properties that every conversion must have, each as a function, and which sub-nets they are shown on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from search_spaces import SubnetConfig
from subnet_search.elastic.extraction import cut_out, extract, tensors_in
from subnet_search.elastic.graph import Example, at_batch_one, call_arguments
from subnet_search.elastic.image_size import as_taken
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.counter import count_macs, count_params


def configs(supernet: Supernet, count: int = 4) -> list[SubnetConfig]:
    """The ends, one knob lowered at a time, and random ones."""
    largest = supernet.space.largest()
    lowered = [
        supernet.space.canonical({**largest, knob.name: knob.smallest}) for knob in supernet.space.knobs
    ]
    random = supernet.space.sample(np.random.default_rng(0), count)
    return [supernet.space.smallest(), largest, *lowered, *random]


def answers(net: nn.Module, example: Example) -> list[Tensor]:
    """All tensors that a net answers, given images of the size that it takes."""
    args, kwargs = as_taken(net, call_arguments(example))
    return tensors_in(net(*args, **kwargs))


def assert_near(got: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """Compares two tensors; a failure says of what."""
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance, msg=lambda m: f"{what}: {m}")


def judge_largest(model: nn.Module, supernet: Supernet, example: Example) -> None:
    """The largest sub-net is bit-equal to the model, on any batch."""
    for given in (at_batch_one(example), example):
        for wanted, got in zip(answers(model, given), answers(supernet, given), strict=True):
            assert torch.equal(wanted, got)


def judge_extracted(supernet: Supernet, example: Example, chosen: Sequence[SubnetConfig]) -> None:
    """Extracted sub-nets compute what the active ones compute, and share no memory with them."""
    supernet, example = _in_float64(supernet, example)
    own = {p.untyped_storage().data_ptr() for p in (*supernet.parameters(), *supernet.buffers())}
    for config in chosen:
        net = extract(supernet, config, example)
        with supernet.subnet(config):
            wanted = answers(supernet, example)
        for active, got in zip(wanted, answers(net, example), strict=True):
            assert_near(got, active, 1e-8, f"{dict(config)}")
        if isinstance(supernet.model, RunsGraph):
            kinds = {type(m) for m in net.modules()} - {type(net)}
            assert all(kind.__module__.startswith("torch.nn.") for kind in kinds), kinds
        assert own.isdisjoint(t.untyped_storage().data_ptr() for t in net.state_dict().values() if t.numel())


def judge_costs(supernet: Supernet, example: Example, chosen: Sequence[SubnetConfig]) -> None:
    """Multiply-adds, parameters, bytes and peak memory are what independent judges find."""
    example = at_batch_one(example)
    for config in chosen:
        net, row = cut_out(supernet, config).eval(), supernet.space.encode([config])
        costs, said = supernet.costs, dict(config)
        assert costs.macs(row)[0] == count_macs(net, example), said
        assert costs.params(row)[0] == count_params(net), said
        assert costs.weight_bytes(row)[0] == sum(p.nbytes for p in net.parameters()), said
        assert costs.peak_activation_bytes(row)[0] == peak_by_watching(net, example), said


def judge_gradients(supernet: Supernet, example: Example, chosen: Sequence[SubnetConfig]) -> None:
    """Every parameter of the active sub-net gets the gradient of the extracted one, and no other gets any."""
    supernet, example = _in_float64(supernet, example)
    numbered = copy.deepcopy(supernet)
    with torch.no_grad():
        for parameter in numbered.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape))
    for config in chosen:
        net, places = cut_out(supernet, config), dict(cut_out(numbered, config).named_parameters())
        _backward(net, example)
        supernet.zero_grad(set_to_none=True)
        with supernet.subnet(config):
            _backward(supernet, example)
        wanted = {name: p.grad for name, p in net.named_parameters()}
        assert [name for name, grad in wanted.items() if grad is None] == [], dict(config)
        for name, parameter in supernet.model.named_parameters():
            expected = torch.zeros_like(parameter)
            if name in wanted:
                expected.view(-1)[places[name].detach().long().flatten()] = wanted[name].flatten()
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_near(got, expected, 1e-8, f"{name} of {dict(config)}")


def judge_reordered(supernet: Supernet, example: Example) -> None:
    """A random order of all units leaves the function as it is, and sub-nets are still cut out exactly."""
    twin, example = _in_float64(supernet, example)
    before, rng = answers(twin, example), np.random.default_rng(1)
    weights = {name: p.clone() for name, p in twin.named_parameters()}
    twin.reorder({name: torch.from_numpy(_shaken(g.units, rng)) for name, g in twin.groups.items()})
    for wanted, got in zip(before, answers(twin, example), strict=True):
        assert_near(got, wanted, 1e-9, "after reordering")
    assert not twin.groups or any(not torch.equal(p, weights[name]) for name, p in twin.named_parameters())
    for config in (twin.space.smallest(), *twin.space.sample(rng, 2)):
        extract(twin, config, example)


def _shaken(units: int, rng: np.random.Generator) -> np.ndarray:
    """A random order that is another one."""
    order = rng.permutation(units)
    return order if (order != np.arange(units)).any() else order[::-1].copy()


def _in_float64(supernet: Supernet, example: Example) -> tuple[Supernet, Example]:
    """A copy in evaluation mode, and its input."""
    return copy.deepcopy(supernet).double().eval(), tree_map(
        lambda v: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v, example
    )


def _backward(net: nn.Module, example: Example) -> None:
    sum((answer * answer).sum() for answer in answers(net, example)).backward()  # type: ignore[union-attr]


class _Storages(fx.Interpreter):
    """Notes the memory every node's tensor really lives in; that of weights is not counted."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.keep: list[Tensor] = []  # so that no address is used twice
        self.weights = {t.untyped_storage().data_ptr() for t in (*traced.parameters(), *traced.buffers())}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "get_attr":
            storage = value.untyped_storage()
            if storage.data_ptr() not in self.weights:
                n.meta["memory"] = (storage.data_ptr(), storage.nbytes())
            self.keep.append(value)
        return value


def peak_by_watching(net: nn.Module, example: Example) -> int:
    """Bytes of all tensors that are alive at once when a traceable net runs on an example."""
    traced = fx.symbolic_trace(net)
    watcher = _Storages(traced)
    args, kwargs = as_taken(net, call_arguments(example))
    named = [str(n.target) for n in traced.graph.nodes if n.op == "placeholder"][len(args) :]
    with torch.no_grad():
        watcher.run(*args, *(kwargs[name] for name in named if name in kwargs))
    last: dict[int, int] = {}
    nodes = list(traced.graph.nodes)
    for i, node in enumerate(nodes):
        looks = node.target is getattr  # at a shape or device; tracing puts that where the result is used
        for used in (node, *([] if looks else node.all_input_nodes)):
            if "memory" in used.meta:
                last[used.meta["memory"][0]] = i
    alive: dict[int, int] = {}
    peak = 0
    for i, node in enumerate(nodes):
        if "memory" in node.meta:
            address, size = node.meta["memory"]
            alive[address] = size
        peak = max(peak, sum(alive.values()))
        alive = {a: size for a, size in alive.items() if last[a] > i}
    return peak
