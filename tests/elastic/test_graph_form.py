"""Properties of networks that run as the graph of their operations: transformers, windows, shuffles and the like."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.graph import UntraceableModelError
from subnet_search.elastic.operations.source import graph_source
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.exporting import export
from subnet_search.settings import ElasticSettings
from tests.elastic.graph_toys import (
    GRAPH_TOYS,
    Added,
    FusedAttention,
    Patches,
    example_of,
    make_graph_toy,
    randomised,
)
from tests.elastic.judges import (
    answers,
    configs,
    judge_costs,
    judge_extracted,
    judge_gradients,
    judge_largest,
    judge_reordered,
)
from tests.toys import TOYS, make_toy

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_costs_are_what_independent_judges_find(case: Case) -> None:
    name, _, supernet = case
    judge_costs(supernet, example_of(name), configs(supernet))


@pytest.mark.slow
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


@pytest.mark.slow
def test_sources_load_where_only_torch_is(tmp_path: Path) -> None:
    for i, name in enumerate(GRAPH_TOYS):
        _, _, supernet = converted(name)
        config = supernet.space.sample(np.random.default_rng(i))
        source = graph_source(supernet, config).text
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


@pytest.mark.parametrize("name", ["fused attention", "norm and act"])
def test_extracted_nets_pass_torch_export(name: str, tmp_path: Path) -> None:
    assert written_as(name, tmp_path, "pt2") == ["pt2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPH_TOYS)
def test_extracted_nets_pass_torch_export_and_onnx_runtime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert {*written_as(name, tmp_path, "safetensors", "pt2", "onnx")} >= {"safetensors", "pt2", "onnx"}


def written_as(name: str, folder: Path, *formats: str) -> list[str]:
    """The formats that export wrote a sub-net in; it compares each file read back with the net itself."""
    _, _, supernet = converted(name)
    net = extract(supernet, supernet.space.uniform(0.5))
    net.calibrated = True  # type: ignore[assignment]
    return [one.format for one in export(net, example_of(name), folder, formats)]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_extracted_nets_pass_torch_compile(backend: str) -> None:
    _, _, supernet = converted("fused attention")
    net, x = extract(supernet, supernet.space.smallest()), example_of("fused attention", 3)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, backend=backend, fullgraph=True)(x), net(x))


# one peculiarity each ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("nested", "tied weights", "chunked") else pytest.mark.slow)
        for name in TOYS
        if name
        not in ("partly opaque", "auxiliary")  # cannot be exported; has a head that only training calls
    ],
)
def test_networks_that_keep_their_classes_have_all_properties_as_graphs_too(name: str) -> None:
    model, x = make_toy(name), example_of(name, 3)
    judge_all(model, make_elastic(model, x, GRAPH).eval(), x)


def judge_all(model: nn.Module, supernet: Supernet, example: Any) -> None:
    chosen = configs(supernet, 2)
    judge_largest(model, supernet, example)
    judge_extracted(supernet, example, chosen)
    judge_costs(supernet, example, chosen)
    judge_gradients(supernet, example, chosen)
    judge_reordered(supernet, example)


class Peculiar(nn.Module):
    """A stem, a middle and a head, with a function of the maps before the head."""

    def __init__(self, between: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(3, 16, 2, stride=2), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)
        self.block, self.up = (
            Added(nn.Identity(), nn.Conv2d(16, 16, 1)),
            nn.ConvTranspose2d(16, 16, 2, stride=2),
        )
        self.bank, self.route = nn.Parameter(torch.randn(4, 256)), nn.Linear(16, 4)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        return self.between(self, self.mid(self.stem(x)))


def kernels_per_sample(net: Any, x: Tensor) -> Tensor:
    rows, channels, height, width = x.shape
    weight = (net.route(x.mean((2, 3))).sigmoid() @ net.bank).view(-1, 16, 1, 1)
    x = F.conv2d(x.reshape(1, rows * channels, height, width), weight, groups=rows)
    return net.head(x.view(rows, 16, height, width).mean((2, 3)))


def made_in_the_forward(net: Any, x: Tensor) -> Tensor:
    zeros = torch.zeros(x.shape[0], 4, *x.shape[2:], device=x.device)
    x = torch.cat([x, zeros], dim=1) * torch.full((20, 1, 1), 0.5, device=x.device)
    return net.head(x[:, :16].mean((2, 3)))


PECULIAR: dict[str, Callable[[Any, Tensor], Any]] = {
    "answers a parameter": lambda net, x: (net.head(x.mean((2, 3))), net.bank),
    "answers nothing else": lambda net, x: {"a": net.head(x.mean((2, 3))), "b": None, "c": 3},
    "a block's weight outside of it": lambda net, x: net.head(
        (net.block(x) + net.block.branch.weight.mean()).mean((2, 3))
    ),
    "a block called twice": lambda net, x: net.head(net.block(net.block(x)).mean((2, 3))),
    "an operator without a rule": lambda net, x: net.head(net.up(x).mean((2, 3))),
    "kernels per sample": kernels_per_sample,
    "a mean over the batch": lambda net, x: net.head((x - x.mean(0, keepdim=True)).mean((2, 3))),
    "made in the forward": made_in_the_forward,
}


@pytest.mark.parametrize("name", PECULIAR)
def test_peculiar_networks_have_all_properties(name: str) -> None:
    torch.manual_seed(0)
    model, x = randomised(Peculiar(PECULIAR[name])), example_of(name, 3)
    judge_all(model, make_elastic(model, x, GRAPH).eval(), x)


def test_what_cannot_be_written_as_a_graph_is_refused_with_a_reason() -> None:
    pair = namedtuple("pair", "a b")
    for between, message in (
        (lambda net, x: pair(net.head(x.mean((2, 3))), x.mean()), "the model returns a namedtuple; return"),
        (
            lambda net, x: x if x.sum() > 0 else -x,
            r"Peculiar.forward cannot be exported: .* module of its own",
        ),
    ):
        with pytest.raises(UntraceableModelError, match=message):
            make_elastic(Peculiar(between).eval(), example_of(""), GRAPH)


@pytest.mark.parametrize("name", ["two inputs", "named inputs"])
def test_a_graph_is_called_as_the_model_is_but_with_the_inputs_of_its_example(name: str) -> None:
    _, model, supernet = converted(name)
    image, words = example_of("two inputs", 3, seed=1)
    wanted = model(image, words)
    for got in (supernet(image, words), supernet(image, words=words), supernet(words=words, image=image)):
        assert torch.equal(got, wanted)
    small = extract(supernet, supernet.space.smallest())
    assert torch.equal(small(image, words), small(words=words, image=image))
    with pytest.raises(InvalidInput, match=r"what its example gave, image, words, .* but got scale"):
        supernet(image, words, scale=3.0)
    with pytest.raises(InvalidInput, match=r"but got 1 inputs; convert with an example"):
        supernet(image)


def test_numbers_among_the_inputs_stay_those_of_the_example() -> None:
    model, (image, words) = make_graph_toy("two inputs"), example_of("two inputs")
    supernet = make_elastic(model, (image, words, 3.0), GRAPH).eval()
    assert torch.equal(supernet(image, words, 3.0), model(image, words, 3.0))
    with pytest.raises(InvalidInput, match=r"numbers as they were, but got 4.0"):
        supernet(image, words, 4.0)


def test_frozen_parameters_stay_frozen_in_extracted_nets() -> None:
    model = make_graph_toy("fused attention")
    model.positions.requires_grad_(False)
    supernet = make_elastic(model, example_of("fused attention"), GRAPH)
    net = extract(supernet, supernet.space.smallest())
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["positions"]


def test_networks_in_float64_are_converted_as_they_are() -> None:
    model, x = make_graph_toy("gated").double(), example_of("gated", 3).double()
    supernet = make_elastic(model, x, GRAPH).eval()
    judge_largest(model, supernet, x)
    judge_extracted(supernet, x, configs(supernet, 1))
    assert {p.dtype for p in extract(supernet, supernet.space.smallest()).parameters()} == {torch.float64}


def test_tokens_of_any_shape_shrink_with_the_stream() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.first = Patches(16), nn.Parameter(torch.randn(16))
            self.second = nn.Parameter(torch.randn(1, 1, 16))
            self.positions = nn.Parameter(torch.randn(1, 16, 2, 2))  # of a smaller image
            self.block, self.head = Added(nn.LayerNorm(16), FusedAttention(16, 4)), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            positions = F.interpolate(self.positions, size=(4, 4), mode="bicubic").flatten(2).transpose(1, 2)
            rows, x = x.shape[0], self.patches(x) + positions
            x = torch.cat((self.first.expand(rows, 1, -1), self.second.repeat(rows, 1, 1), x), 1)
            return self.head(self.block(x)[:, :2].mean(1))

    torch.manual_seed(0)
    model, x = randomised(Tokens()), example_of("", 3)
    supernet = make_elastic(model, x, GRAPH).eval()
    assert {name: group.units for name, group in supernet.groups.items()} == {
        "patches.conv": 16,
        "block.branch.qkv": 4,
    }
    judge_all(model, supernet, x)


def test_queries_in_groups_share_their_keys() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.q, self.kv = Patches(16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.proj, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x)
            rows, count, width = x.shape
            q = self.q(x).view(rows, count, 4, 4).transpose(1, 2)
            k, v = self.kv(x).view(rows, count, 2, 2, 4).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
            return self.head((x + self.proj(out.transpose(1, 2).reshape(rows, count, width))).mean(1))

    torch.manual_seed(0)
    model, x = randomised(Grouped()), example_of("", 3)
    supernet = make_elastic(model, x, GRAPH).eval()
    assert {name: group.units for name, group in supernet.groups.items()} == {"patches.conv": 16, "q": 2}
    judge_all(model, supernet, x)


def test_units_are_told_apart_by_what_is_done_to_them_without_a_layer() -> None:
    def some_activated(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.cat([x[:, :6].tanh(), x[:, 6:]], dim=1).mean((2, 3)))

    supernet = make_elastic(
        Peculiar(some_activated).eval(), example_of(""), ElasticSettings(step=2, form="graph")
    )
    assert {name: group.units for name, group in supernet.groups.items()} == {
        "stem": 16,
        "mid": 6,
        "mid[1]": 10,
    }
