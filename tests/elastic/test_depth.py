"""Which blocks may be skipped: one input reaches each output by additions, whatever else goes in or moves about."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import SubnetConfig
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import apply_plan, extract, layer_plan
from subnet_search.elastic.graph import trace
from subnet_search.elastic.operations.exported import read_exported
from subnet_search.elastic.residual import skippable_blocks
from subnet_search.elastic.spans import cut_into_spans
from subnet_search.elastic.supernet import Supernet
from subnet_search.ranking.gates import Gates
from subnet_search.settings import ElasticSettings
from tests.elastic.graph_toys import Mlp, Patches, randomised
from tests.elastic.judges import (
    judge_costs,
    judge_extracted,
    judge_gradients,
    judge_largest,
    judge_reordered,
)

SIDE = 4  # of the grid of tokens


class Block(nn.Module):
    """`function(block, x, y)` with a norm and an MLP at hand; the first may be a stream of 8 channels, too."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.norm, self.mlp, self.function = nn.LayerNorm(12), Mlp(12, 16), function

    def inner(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


Call = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a block for the stream and what else there is


class Net(nn.Module):
    """Blocks in a row between patches `[B, 16, 12]` and a head."""

    def __init__(self, blocks: dict[str, tuple[Callable[..., Any], Call]]) -> None:
        super().__init__()
        self.patches, self.other = Patches(12), nn.Linear(12, 12)
        self.blocks = nn.ModuleDict({name: Block(function) for name, (function, _) in blocks.items()})
        self.calls = {name: call for name, (_, call) in blocks.items()}
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x))
        y = torch.sigmoid(self.other(x))
        for name, block in self.blocks.items():
            x = self.calls[name](block, x, y)
        return self.head(x.mean(1))


def by_mask(block: Block, mask: Tensor, x: Tensor) -> Tensor:
    return x + block.inner(x * mask)


def by_rope(block: Block, x: Tensor, *, rope: Tensor) -> Tensor:
    turned = torch.cat([-x[..., 6:], x[..., :6]], -1)
    return block.inner(x * rope.cos() + turned * rope.sin()) + x


def in_windows(block: Block, x: Tensor) -> Tensor:
    rows, count, width = x.shape
    x = x.view(rows, 2, SIDE // 2, 2, SIDE // 2, width).transpose(2, 3).reshape(rows * 4, -1, width)
    x = x + block.inner(x)
    x = x.view(rows, 2, 2, SIDE // 2, SIDE // 2, width).transpose(2, 3)
    return x.reshape(rows, count, width)


def on_maps_and_back(block: Block, x: Tensor) -> Tensor:
    rows, count, width = x.shape
    maps = x.transpose(1, 2).reshape(rows, width, SIDE, SIDE)
    maps = maps + block.inner(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    x = torch.roll(maps, (1, 1), (2, 3)).flatten(2).transpose(1, 2)
    x = x + block.inner(x)
    return torch.roll(x.reshape(rows, SIDE, SIDE, width), (-1, -1), (1, 2)).reshape(rows, count, width)


def all_but_one_token(block: Block, x: Tensor) -> Tensor:
    return torch.cat([x[:, :1], x[:, 1:] + block.inner(x)[:, 1:]], dim=1)


def activated(block: Block, x: Tensor) -> Tensor:
    return F.gelu(x + block.inner(x))


def added_to_a_part(block: Block, x: Tensor, parts: tuple[Tensor]) -> Tensor:
    return parts[0] + block.inner(x)


def both_streams(block: Block, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    y = y + block.inner(y)
    return x + torch.sigmoid(y), y


def crossed(block: Block, x: Tensor, y: Tensor) -> list[Tensor]:
    return [y + block.inner(x), x + block.inner(y)]


BOTH, GRAPH = ("graph", "own classes"), ("graph",)
# name: (what a block does, how it is called, forms in which it can be skipped)
SKIPPABLE: dict[str, tuple[Callable[..., Any], Call, tuple[str, ...]]] = {
    "mask_first": (by_mask, lambda block, x, y: block(y, x), BOTH),
    "mask_by_name": (by_mask, lambda block, x, y: block(x=x, mask=y), BOTH),
    "rope": (by_rope, lambda block, x, y: block(x, rope=y), BOTH),
    "windows": (in_windows, lambda block, x, y: block(x) + y, GRAPH),
    "maps": (on_maps_and_back, lambda block, x, y: block(x * y), GRAPH),
    "all_but_one_token": (all_but_one_token, lambda block, x, y: block(x) * y, GRAPH),
    "in_a_tuple": (added_to_a_part, lambda block, x, y: block(x, (x + y,)), GRAPH),
    "activated": (activated, lambda block, x, y: block(x) * y, GRAPH),
}
NOT_SKIPPABLE: dict[str, Callable[[Block, Tensor, Tensor], Any]] = {
    "permuted": lambda block, x, y: x.flip(1) + block.inner(x),
    "rows_permuted": lambda block, x, y: x.flip(0) + block.inner(x),
    "turned": lambda block, x, y: (
        x.view(-1, SIDE, SIDE, 12).transpose(1, 2).reshape(-1, SIDE**2, 12) + block.inner(x)
    ),
    "scaled": lambda block, x, y: 0.5 * x + block.inner(x),
    "half_of_it_scaled": lambda block, x, y: torch.cat([x[:, :8], 2 * x[:, 8:]], 1) + block.inner(x),
    "added_half": lambda block, x, y: torch.add(block.inner(x), x, alpha=0.5),
    "part_missing": lambda block, x, y: F.pad(x[:, 1:], (0, 0, 1, 0)) + block.inner(x),
    "second_input_added": lambda block, x, y: x + y + block.inner(x),
    "normed": lambda block, x, y: block.norm(x) + block.inner(y),
    "activated_between": lambda block, x, y: F.relu(x + y.mean()) + block.inner(x),
    "overwritten": lambda block, x, y: x.mul_(2) + block.inner(x.clone()),
    "nothing_added": lambda block, x, y: x.transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("form", ["own classes", pytest.param("graph", marks=pytest.mark.slow)])
def test_what_hands_its_input_on_may_be_skipped_and_nothing_else(form: str) -> None:
    blocks = {name: (function, call) for name, (function, call, _) in SKIPPABLE.items()}
    blocks |= {name: (function, lambda block, x, y: block(x, y)) for name, function in NOT_SKIPPABLE.items()}
    model = Net(blocks).eval()
    traced = read_exported(model, images(1)) if form == "graph" else trace(model, images(1))
    found = skippable_blocks(traced)
    assert found == tuple(f"blocks.{name}" for name, (_, _, forms) in SKIPPABLE.items() if form in forms)


def images(rows: int) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(rows))


def each_subset(supernet: Supernet) -> list[SubnetConfig]:
    """Every subset of blocks, at full width and at the narrowest."""
    space = supernet.space
    ends = (space.largest(), {k.name: k.smallest for k in space.knobs})
    kept = itertools.product((0, 1), repeat=len(supernet.blocks))
    depths = [dict(zip(supernet.blocks, chosen, strict=True)) for chosen in kept]
    return list(dict.fromkeys(space.canonical({**end, **depth}) for end in ends for depth in depths))


def judge_each_subset(make: Callable[[], nn.Module], form: str, count: int) -> Supernet:
    """Holds that the first blocks of a network can be skipped, so many, and all that must be right of it."""
    torch.manual_seed(0)
    model, x = randomised(make()), images(3)
    supernet = make_elastic(model, x, ElasticSettings(step=4, form=form)).eval()
    assert len(supernet.blocks) == count
    chosen = each_subset(supernet)
    judge_largest(model, supernet, x)
    judge_extracted(supernet, x, chosen)
    judge_costs(supernet, x, chosen)
    return supernet


def twice(name: str) -> nn.Module:
    function, call, _ = SKIPPABLE[name]
    return Net({"first": (function, call), "second": (function, call)})


QUICK = [("windows", "graph")]
CASES = [(name, form) for name, (_, _, forms) in SKIPPABLE.items() for form in forms]


@pytest.mark.parametrize(
    ("name", "form"),
    [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_every_subset_of_skipped_blocks_is_right(name: str, form: str) -> None:
    supernet = judge_each_subset(lambda: twice(name), form, 2)
    judge_gradients(supernet, images(3), each_subset(supernet)[-2:])
    judge_reordered(supernet, images(3))


class Streams(nn.Module):
    """Two streams: each block takes both and answers with both."""

    def __init__(self, function: Callable[..., Any], depth: int = 3) -> None:
        super().__init__()
        self.patches, self.other = Patches(12), nn.Linear(12, 12)
        self.blocks = nn.ModuleList(Block(function) for _ in range(depth))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        y = self.other(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.head(x.mean(1))


class Shared(nn.Module):
    """Three blocks that have one MLP between them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = Patches(12), nn.Linear(12, 5)
        self.blocks = nn.Sequential(*(Block(lambda block, x: x + block.inner(x)) for _ in range(3)))
        for block in self.blocks:
            block.mlp = self.blocks[0].mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x)).mean(1))


class Viewed(nn.Module):
    """Blocks whose input is a view of larger memory that nothing else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = Patches(12), nn.Linear(12, 5)
        self.blocks = nn.ModuleList(Block(lambda block, x: x + block.norm(x)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.patches(x).contiguous())[:, 10:]
        for block in self.blocks:
            x = block(x)
        return self.head(torch.cat([x, x, x], -1)[..., :12].mean(1))


class Latents(nn.Module):
    """Blocks whose input is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = Patches(12), nn.Linear(12, 5)
        self.latents = nn.Parameter(torch.randn(1, 16, 12))
        self.blocks = nn.ModuleList(Block(by_mask) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x, latents = self.patches(x), self.latents.expand(x.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(x, latents)
        return self.head(latents.mean(1))


class LookingBack(nn.Module):
    """Every block is given the input of the block before it, too."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.patches, self.norm, self.head = Patches(12), nn.LayerNorm(12), nn.Linear(12, 5)
        self.blocks = nn.ModuleList(Block(by_mask) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = before = self.norm(self.patches(x))
        for block in self.blocks:
            x, before = block(before, x), x
        return self.head(x.mean(1))


# name: (network, number of blocks, whether it is quick in each form)
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "two streams": (lambda: Streams(both_streams), 3),
    "streams that cross": (lambda: Streams(crossed), 3),
    "shared": (Shared, 3),
    "viewed": (Viewed, 2),
    "latents": (Latents, 2),
    "looking back": (LookingBack, 4),
}
QUICK_NETS = [("two streams", "own classes"), ("shared", "own classes"), ("viewed", "own classes")]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        case if case in QUICK_NETS else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(NETS, BOTH)
    ],
)
def test_blocks_that_share_streams_layers_or_memory_are_skipped_rightly(name: str, form: str) -> None:
    judge_each_subset(NETS[name][0], form, NETS[name][1])


@pytest.mark.parametrize("form", ["own classes", pytest.param("graph", marks=pytest.mark.slow)])
def test_two_answers_with_one_input_leave_open_what_to_hand_on(form: str) -> None:
    model = Streams(lambda block, x, y: (x + block.inner(x), x + block.inner(y))).eval()
    traced = read_exported(model, images(1)) if form == "graph" else trace(model, images(1))
    # in the graph nobody reads the second answer of the last block
    assert skippable_blocks(traced) == (("blocks.2",) if form == "graph" else ())


def test_a_container_gives_way_to_the_blocks_in_its_list() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(Block(lambda block, x: x + block.inner(x)) for _ in range(2))
            self.patches = Patches(12)

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = part(x)
            return x

    class Stages(Stage):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Stage()])

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.patches(x))

    assert skippable_blocks(trace(Stages().eval(), images(1))) == ("parts.0.parts.0", "parts.0.parts.1")


@pytest.mark.parametrize("form", ["own classes", pytest.param("graph", marks=pytest.mark.slow)])
def test_a_gate_of_minus_one_skips_a_block_with_all_its_answers(form: str) -> None:
    torch.manual_seed(0)
    settings = ElasticSettings(step=4, form=form)
    supernet = make_elastic(randomised(Streams(both_streams)).double(), images(1).double(), settings).eval()
    gates, x = Gates(supernet), images(3).double()
    with gates.open(), torch.no_grad():
        gates.shift = torch.zeros(3, gates.count, dtype=torch.float64)
        gates.shift[:, -2] = -1
        gated = supernet(x)
    with supernet.subnet(supernet.space.canonical({**supernet.space.largest(), "blocks.1": 0})):
        torch.testing.assert_close(gated, supernet(x))


def test_a_skipped_block_of_several_answers_is_rebuilt_from_plain_data() -> None:
    torch.manual_seed(0)
    model, x = randomised(Streams(crossed)), images(3)
    supernet = make_elastic(model, x, ElasticSettings(step=4, form="own classes")).eval()
    net = extract(supernet, supernet.space.smallest())
    plan = json.loads(json.dumps(layer_plan(supernet, supernet.space.smallest())))
    again = apply_plan(copy.deepcopy(model), plan)
    again.load_state_dict(net.state_dict(), assign=True)
    for twin in (again.eval(), copy.deepcopy(net)):
        assert torch.equal(twin(x), net(x))
    first, second = pickle.loads(pickle.dumps(net.blocks[0]))(x, 2 * x)
    assert torch.equal(first, 2 * x)
    assert torch.equal(second, x)
    assert all(type(m).__module__.startswith(("torch.", "tests.")) for m in net.modules())


def test_spans_are_right_around_blocks_of_several_answers() -> None:
    torch.manual_seed(0)
    supernet = make_elastic(
        randomised(Streams(both_streams)), images(1), ElasticSettings(form="own classes")
    ).eval()
    spans, x = cut_into_spans(supernet, lambda numbers: True), images(3)
    for config in each_subset(supernet):
        with supernet.subnet(config), torch.no_grad():
            value = x.clone()
            for span in spans:
                value = span.run(value)
            assert torch.equal(value, supernet(x))
