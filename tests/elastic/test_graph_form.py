"""Properties of networks that run as the graph of their operations: transformers, windows, shuffles and the like."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.source import graph_source
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.exporting import export
from subnet_search.settings import ElasticSettings
from tests.elastic.graph_toys import GRAPH_TOYS, example_of, make_graph_toy
from tests.elastic.judges import (
    answers,
    configs,
    judge_costs,
    judge_extracted,
    judge_gradients,
    judge_largest,
    judge_reordered,
)

GRAPH = ElasticSettings(step=4, form="graph")
Case = tuple[str, nn.Module, Supernet]  # name, the user's model, and what came of it
WITH_BATCH_NORM = ["shuffles", "squeezed", "dense", "norm and act"]


@functools.cache
def converted(name: str) -> Case:
    model = make_graph_toy(name)
    return name, model, make_elastic(model, example_of(name), GRAPH).eval()


@pytest.fixture(params=GRAPH_TOYS)
def case(request: pytest.FixtureRequest) -> Case:
    return converted(request.param)


def test_what_is_elastic_is_what_a_reader_of_the_network_counts(case: Case) -> None:
    name, _, supernet = case
    assert tuple(sorted(group.units for group in supernet.groups.values())) == GRAPH_TOYS[name].groups
    assert len(supernet.blocks) == GRAPH_TOYS[name].blocks


def test_the_largest_subnet_is_bit_equal_to_the_model(case: Case) -> None:
    name, model, supernet = case
    judge_largest(model, supernet, example_of(name, 3, seed=1))


def test_the_model_given_is_left_untouched(case: Case) -> None:
    name, model, supernet = case
    fresh = make_graph_toy(name)
    assert [type(m) for m in model.modules()] == [type(m) for m in fresh.modules()]
    assert list(model.state_dict()) == list(fresh.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert {p.data_ptr() for p in model.parameters()}.isdisjoint(p.data_ptr() for p in supernet.parameters())


def test_extracted_subnets_compute_what_the_supernet_computes(case: Case) -> None:
    name, _, supernet = case
    judge_extracted(supernet, example_of(name, 3, seed=1), configs(supernet))


def test_costs_are_what_independent_judges_find(case: Case) -> None:
    name, _, supernet = case
    judge_costs(supernet, example_of(name), configs(supernet))


def test_gradients_reach_what_is_active_and_nothing_else(case: Case) -> None:
    name, _, supernet = case
    judge_gradients(supernet, example_of(name), configs(supernet, 2))


def test_reordering_does_not_change_the_function(case: Case) -> None:
    name, _, supernet = case
    judge_reordered(supernet, example_of(name))


def test_weights_carry_the_users_own_names_and_can_be_loaded_again(case: Case) -> None:
    name, model, supernet = case
    assert list(supernet.model.state_dict()) == list(model.state_dict())
    other = make_graph_toy(name, seed=1)
    twin = copy.deepcopy(supernet)
    twin.model.load_state_dict(other.state_dict())
    judge_largest(other, twin, example_of(name))
    own = set(model.state_dict())
    small = extract(supernet, supernet.space.smallest())
    assert {n for n, _ in small.named_parameters()} <= own


def test_copies_and_pickles_compute_the_same_and_share_nothing(case: Case) -> None:
    name, _, supernet = case
    example, config = example_of(name), supernet.space.smallest()
    with supernet.subnet(config):
        wanted = answers(supernet, example)
    for twin in (copy.deepcopy(supernet), pickle.loads(pickle.dumps(supernet))):
        with twin.subnet(config):
            assert all(torch.equal(a, b) for a, b in zip(wanted, answers(twin, example), strict=True))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
    with supernet.subnet(config):
        assert all(torch.equal(a, b) for a, b in zip(wanted, answers(supernet, example), strict=True))


def test_extracted_nets_can_be_copied_and_trained(case: Case) -> None:
    name, _, supernet = case
    example, before = example_of(name, 4), copy.deepcopy(supernet.state_dict())
    net = copy.deepcopy(extract(supernet, supernet.space.uniform(0.5), example)).train()
    assert net.training
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    goals = [torch.zeros_like(answer) for answer in answers(net, example)]
    losses = []
    for _ in range(8):
        torch.manual_seed(0)
        parts = zip(answers(net, example), goals, strict=True)
        loss = torch.stack([(answer - goal).square().mean() for answer, goal in parts]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_every_subnet_trains_and_only_the_largest_writes_statistics(case: Case) -> None:
    name, _, supernet = case
    supernet = copy.deepcopy(supernet).train()
    buffers = {path: tensor.clone() for path, tensor in supernet.named_buffers()}
    largest = supernet.space.largest()
    for config in configs(supernet, 1):
        if config != largest:
            with supernet.subnet(config):
                torch.stack([a.sum() for a in answers(supernet, example_of(name))]).sum().backward()
    assert all(torch.equal(tensor, buffers[path]) for path, tensor in supernet.named_buffers())
    answers(supernet, example_of(name))
    changed = {path for path, tensor in supernet.named_buffers() if not torch.equal(tensor, buffers[path])}
    assert {path.rpartition(".")[0] for path in changed} == {f"model.{path}" for path in supernet.batch_norms}


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_recalibration_measures_what_torch_measures_in_the_extracted_net(name: str) -> None:
    _, _, supernet = converted(name)
    batches = [example_of(name, 4, seed) for seed in range(3)]
    for config in (supernet.space.smallest(), supernet.space.uniform(0.5)):
        statistics = recalibrate(supernet, config, batches)
        net = extract(supernet, config)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
                module.train()
        with torch.no_grad():
            for batch in batches:
                net(batch)
        own = {n: b for n, b in net.named_buffers() if n.endswith(("running_mean", "running_var"))}
        assert own.keys() == statistics.values.keys()
        for path, tensor in own.items():
            torch.testing.assert_close(statistics.values[path], tensor)
        extract(
            supernet, config, batches[0], statistics
        )  # compared with the supernet, which is given them, too
        assert not net.calibrated
        assert extract(supernet, config, batches[0], statistics).calibrated


def test_dropout_acts_in_training_only() -> None:
    _, _, supernet = converted("norm and act")
    supernet, x = copy.deepcopy(supernet), example_of("norm and act")
    net = extract(supernet, supernet.space.smallest())
    for one in (supernet, net):
        for norm in one.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.0
        assert torch.equal(one.eval()(x), one(x))
        one.train()
        assert not torch.equal(one(x), one(x))


def test_sources_load_where_only_torch_is(tmp_path: Path) -> None:
    for i, name in enumerate(GRAPH_TOYS):
        _, _, supernet = converted(name)
        config = supernet.space.sample(np.random.default_rng(i))
        source, _ = graph_source(supernet, config)
        net, example = extract(supernet, config), example_of(name, 3)
        torch.save((source, net.state_dict(), example, answers(net, example)), tmp_path / f"{i}.pt")
    script = """
        import sys
        for name in ("subnet_search", "search_spaces", "predictors", "reports", "numpy_", "torchvision", "timm"):
            sys.modules[name] = None
        from pathlib import Path
        import torch
        from torch.utils._pytree import tree_leaves
        for path in Path(sys.argv[1]).glob("*.pt"):
            source, state, example, wanted = torch.load(path)
            scope = {}
            exec(source, scope)
            net = scope["SubNet"]()
            net.load_state_dict(state)
            net.eval()
            args = () if isinstance(example, dict) else example if isinstance(example, tuple) else (example,)
            got = net(*args, **(example if isinstance(example, dict) else {}))
            for a, b in zip(tree_leaves(got), wanted, strict=True):
                assert torch.equal(a, b), path
            print(path.name)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == len(GRAPH_TOYS)


QUICKLY_EXPORTED = ("fused attention",)


@pytest.mark.parametrize(
    "name", [n if n in QUICKLY_EXPORTED else pytest.param(n, marks=pytest.mark.slow) for n in GRAPH_TOYS]
)
def test_extracted_nets_pass_torch_export_and_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, _, supernet = converted(name)
    net = extract(supernet, supernet.space.uniform(0.5))
    net.calibrated = True  # type: ignore[assignment]
    written = export(net, example_of(name), tmp_path, ("safetensors", "pt2", "onnx"))
    assert [one.format for one in written] == ["safetensors", "pt2", "onnx"]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_extracted_nets_pass_torch_compile(backend: str) -> None:
    _, _, supernet = converted("fused attention")
    net, x = extract(supernet, supernet.space.smallest()), example_of("fused attention", 3)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, backend=backend, fullgraph=True)(x), net(x))
