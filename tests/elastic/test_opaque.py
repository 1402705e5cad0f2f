"""What tracing cannot follow stays whole and is listed with its path and the reason; the rest is still elastic."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.graph import UntraceableModelError
from subnet_search.elastic.operations.source import build_from_source, source_of
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.exporting import export
from subnet_search.measure import count_macs, count_params, prove
from subnet_search.rebuilding import NETWORK, SOURCE, WEIGHTS, load_subnet, write_network
from subnet_search.record import create_run
from subnet_search.settings import ElasticSettings, ModelSettings
from subnet_search.workbench import save_weights
from tests.elastic.graph_toys import Added, FusedAttention, Mlp, Patches
from tests.elastic.judges import answers, configs

WIDTH = 8  # of what the opaque part works on
X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """Looks at values; has weights and batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if x.square().sum() > 0 else -x


class Scaled(nn.Module):
    """The exporter follows it, but nobody knows the number before it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.detach().abs().max().item())


class Through(nn.Module):
    """Through numpy and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.from_numpy(np.tanh(x.detach().numpy()))


class Disabled(nn.Module):
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid() * float(x.detach().sum() > -1e9)


class Several(nn.Module):
    """Takes a number by name; answers a tuple with a gap."""

    def forward(self, x: Tensor, *, scale: float) -> tuple[Tensor, None, Tensor]:
        return (x * scale, None, x.mean((2, 3))) if x.sum() < 1e9 else (x, None, x)


class Named(nn.Module):
    """Answers a dict."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": x.relu(), "mean": x.mean()} if x.sum() < 1e9 else {}


class InPlace(nn.Module):
    """Writes into what it is given, and gives it back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) if x.sum() < 1e9 else x


class Listed(nn.Module):
    """Takes a list."""

    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0] + xs[1] if xs[0].sum() < 1e9 else xs[0]


class Outer(nn.Module):
    """A module that can be followed around one that cannot."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.up, self.inner, self.down = (
            nn.Conv2d(WIDTH, 16, 1),
            nn.Sequential(inner),
            nn.Conv2d(WIDTH, WIDTH, 1),
        )
        self.between = nn.Conv2d(16, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.inner(self.between(self.up(x).relu())))


class Scanned(nn.Module):
    """A recurrent layer of torch that walks along each row of an image, and what it remembers in the end."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, begins: bool = False, **more: Any) -> None:
        super().__init__()
        self.rnn, self.begins = kind(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True, **more), begins

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, height, width = x.shape
        x = x.permute(0, 2, 3, 1).reshape(rows * height, width, channels)
        start = x.new_zeros(2, rows * height, channels // 2)
        found, state = self.rnn(x, (start, start + 0.1)) if self.begins else self.rnn(x)
        memory = state[1] if isinstance(state, tuple) else state  # [2, rows * height, channels // 2]
        found = found * memory[-2:].permute(1, 0, 2).reshape(rows * height, 1, channels)
        return found.reshape(rows, height, width, channels).permute(0, 3, 1, 2)


class Lists(nn.Module):
    """Calls with a list, which no graph can hold: it stays whole with what it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Listed()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner([x, x.relu()])


Call = Callable[[nn.Module, Tensor], Tensor]


def plainly(part: nn.Module, x: Tensor) -> Tensor:
    return part(x)


def in_windows(part: nn.Module, x: Tensor) -> Tensor:
    rows, channels, height, width = x.shape
    x = x.reshape(rows, channels, 2, height // 2, width).transpose(1, 2)
    x = part(x.reshape(rows * 2, channels, height // 2, width))
    x = x.reshape(rows, 2, channels, height // 2, width).transpose(1, 2)
    return x.reshape(rows, channels, height, width)


def first_and_last(part: nn.Module, x: Tensor) -> Tensor:
    found = part(x, scale=0.5)
    return found[0] + found[2][:, :, None, None]


class Around(nn.Module):
    """Layers on both sides of a part; only a graph follows how the head finds its features."""

    def __init__(self, part: nn.Module, call: Call = plainly) -> None:
        super().__init__()
        self.first, self.before = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, WIDTH, 1)
        self.part, self.call = part, call
        self.after, self.head = nn.Conv2d(WIDTH, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.call(self.part, self.before(self.first(x).relu()))
        return self.head(self.after(x).relu().mean((2, 3)))


CASES: dict[str, tuple[Callable[[], nn.Module], Call, str]] = {
    "branching": (Branching, plainly, "part"),
    "scaled": (Scaled, plainly, "part"),
    "through": (Through, plainly, "part"),
    "disabled": (Disabled, plainly, "part"),
    "several": (Several, first_and_last, "part"),
    "named": (Named, lambda part, x: (found := part(x))["map"] * found["mean"], "part"),
    "in place": (InPlace, plainly, "part"),
    "twice": (Branching, lambda part, x: part(part(x).relu()), "part"),
    "windows": (Branching, in_windows, "part"),
    "deep": (lambda: Outer(Branching()), plainly, "part.inner.0"),
    "lists": (Lists, plainly, "part"),
    "skipped": (lambda: Added(nn.Identity(), Branching()), plainly, "part.branch"),
}
QUICK = ("branching",)
BY_SPEED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
SETTINGS = {form: ElasticSettings(step=4, form=form) for form in ("graph", "own classes")}


def around(name: str) -> nn.Module:
    part, call, _ = CASES[name]
    torch.manual_seed(0)
    return Around(part(), call).eval()


def reasons(supernet: Supernet) -> dict[str, str]:
    return {entry["path"]: entry["reason"] for entry in supernet.coverage["fixed"]}


@pytest.mark.parametrize("name", BY_SPEED)
def test_the_graph_calls_the_part_as_it_is_and_the_rest_is_elastic(name: str) -> None:
    model, path = around(name), CASES[name][2]
    supernet = make_elastic(model, X, SETTINGS["graph"]).eval()
    assert {"first", "after"} <= set(supernet.groups)
    assert ("part.up" in supernet.groups) == (name == "deep")
    assert reasons(supernet)[path].startswith("its forward cannot be exported: ")
    writer = "part.between" if name == "deep" else "before"
    assert reasons(supernet)[writer].startswith(f"{path} ({type(model.get_submodule(path)).__name__})")
    assert all("\n" not in reason for reason in reasons(supernet).values())
    judge(model, supernet)


def judge(model: nn.Module, supernet: Supernet) -> None:
    for x in (X, X[:1]):
        for wanted, got in zip(answers(model, x.clone()), answers(supernet, x.clone()), strict=True):
            assert torch.equal(wanted, got)
    for config in configs(supernet, 2):
        net, row = extract(supernet, config, X).eval(), supernet.space.encode([config])
        assert supernet.costs.macs(row)[0] == count_macs(net, X[:1])
        assert supernet.costs.params(row)[0] == count_params(net)
        supernet.zero_grad()
        with supernet.subnet(config):
            supernet(X).square().sum().backward()
        net(X).square().sum().backward()
        wanted = {n: p.grad for n, p in net.named_parameters()}
        assert [n for n, grad in wanted.items() if grad is None] == []
        for n, parameter in supernet.model.named_parameters():
            if n in wanted:
                assert parameter.grad is not None, n
                assert float(parameter.grad.abs().sum()) == pytest.approx(
                    float(wanted[n].abs().sum()), rel=1e-4
                )


RECURRENT: dict[str, Callable[[], Scanned]] = {
    "LSTM": Scanned,
    "LSTM of 2 layers": lambda: Scanned(num_layers=2, bias=False),
    "RNN": lambda: Scanned(nn.RNN, nonlinearity="relu"),
    "GRU": lambda: Scanned(nn.GRU),
}


@pytest.mark.parametrize(
    "name", ["LSTM", *(pytest.param(n, marks=pytest.mark.slow) for n in [*RECURRENT][1:])]
)
def test_the_exporter_does_not_walk_through_recurrent_layers_and_they_need_torch_alone(name: str) -> None:
    torch.manual_seed(0)
    model, kind = Around(RECURRENT[name]()).eval(), name.split()[0]
    supernet = make_elastic(model, X, SETTINGS["graph"]).eval()
    assert reasons(supernet)["part.rnn"] == f"no rule for {kind}"
    assert {"first", "after"} == set(supernet.groups)
    judge(model, supernet)
    net = extract(supernet, supernet.space.smallest()).eval()
    source = source_of(net)
    assert source is not None
    assert "needs torch alone" in source
    again = build_from_source(source)
    again.load_state_dict(net.state_dict(), assign=True)
    for other in (again.eval(), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(X), net(X))


@pytest.mark.slow
def test_a_recurrent_layer_that_is_given_more_than_tensors_is_followed_step_by_step() -> None:
    torch.manual_seed(0)
    model = Around(Scanned(begins=True)).eval()
    supernet = make_elastic(model, X, SETTINGS["graph"]).eval()
    assert reasons(supernet)["before"] == "no rule for lstm"
    assert {"first", "after"} == set(supernet.groups)
    judge(model, supernet)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) for n in ("several", "windows", "deep", "skipped")]
    + ["branching"],
)
def test_the_models_own_forward_keeps_the_part_whole_and_the_rest_is_elastic(name: str) -> None:
    model, path = around(name), CASES[name][2]
    supernet = make_elastic(model, X, SETTINGS["own classes"]).eval()
    assert ("part.up" in supernet.groups) == (name == "deep")
    assert {"first", "after"} <= set(supernet.groups) or name == "windows"
    assert reasons(supernet)[path].startswith("its forward cannot be traced: ")
    judge(model, supernet)


@pytest.mark.slow
def test_of_equal_forms_the_models_own_classes_are_taken_and_else_the_one_that_shrinks_more() -> None:
    assert make_elastic(around("branching"), X, ElasticSettings(step=4)).coverage["form"] == "own classes"
    supernet = make_elastic(mixed(), X, ElasticSettings(step=4))
    assert supernet.coverage["form"] == "graph"
    assert supernet.coverage["freedoms"] == ["MLP width", "depth", "heads", "stream width"]
    assert reasons(supernet)["stem.part"].startswith("its forward cannot be exported")


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.part = nn.Conv2d(3, WIDTH, 1), Branching()
        self.out = nn.Conv2d(WIDTH, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.part(self.conv(x)))


class Mixed(nn.Module):
    """A part that nothing can follow, before attention that only a graph can shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.patches = Stem(), Patches(16)
        self.blocks = nn.Sequential(
            Added(nn.LayerNorm(16), FusedAttention(16, 4)), Added(nn.LayerNorm(16), Mlp(16, 24))
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(self.stem(x))).mean(1))


def mixed() -> nn.Module:
    """Named by the description of a stored sub-net, below."""
    torch.manual_seed(0)
    return Mixed().eval()


def test_a_model_whose_own_forward_is_to_blame_is_refused() -> None:
    class Whole(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() < 1e9 else x

    with pytest.raises(UntraceableModelError, match=r"Whole.forward cannot be exported: .*module of its own"):
        make_elastic(Whole(nn.ReLU()), X, SETTINGS["graph"])


@pytest.mark.slow
def test_what_shares_a_parameter_with_the_part_stays_whole() -> None:
    model = around("branching")
    model.part.extra = nn.Linear(1, 1)
    model.part.extra.weight = model.first.weight
    supernet = make_elastic(model, X, SETTINGS["graph"]).eval()
    assert set(supernet.groups) == {"after"}
    assert reasons(supernet)["first"] == "it shares a parameter with part"


# stored, copied, trained


MODEL = ModelSettings(name="tests.elastic.test_opaque:mixed")


def stored(folder: Path, supernet: Supernet) -> tuple[Path, nn.Module]:
    config = supernet.space.uniform(0.5)
    statistics = recalibrate(supernet, config, [(X, torch.zeros(3).long())])
    net = extract(supernet, config, statistics=statistics)
    place = f"subnets/{config.key}"
    with create_run(folder, "") as run:
        save_weights(run, f"{place}/{WEIGHTS}", net)
        build = write_network(run, place, MODEL, supernet, config)
        proof = prove(
            supernet,
            config,
            statistics,
            net,
            build=build,
            weights=folder / place / WEIGHTS,
            batches=[(X, torch.arange(3))],
        )
        assert proof.passed
    return folder / place, net


@pytest.mark.slow
def test_a_stored_subnet_is_proved_and_gets_its_part_from_the_original_network(tmp_path: Path) -> None:
    folder, net = stored(tmp_path / "run", make_elastic(mixed(), X, SETTINGS["graph"]).eval())
    assert torch.equal(load_subnet(folder)(X), net(X))
    assert "of that network the modules stem.part" in (folder / SOURCE).read_text()
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(X), net(X))
    found = export(net, X, tmp_path / "out", ("safetensors",))
    assert [one.max_abs_difference for one in found] == [0.0, 0.0]
    description: dict[str, Any] = json.loads((folder / NETWORK).read_text())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (SOURCE, WEIGHTS):
        (elsewhere / file).write_bytes((folder / file).read_bytes())
    for changed, message in (
        ({"name": "no_such_package:net"}, "no_such_package"),
        ({"name": "tests.small:small_net"}, r"calls stem.part .* code is as it was"),
        ({"parts": {}}, "calls modules of the original network as they are, and got none"),
    ):
        (elsewhere / NETWORK).write_text(json.dumps({**description, **changed}))
        with pytest.raises(InvalidInput, match=message):
            load_subnet(elsewhere)


def test_statistics_of_a_batch_norm_in_the_part_are_those_of_the_subnet() -> None:
    supernet = make_elastic(around("branching"), X, SETTINGS["graph"])
    before = supernet.model.part.norm.running_mean.clone()
    supernet.train()
    with supernet.subnet(supernet.space.smallest()):
        supernet(X)
    assert torch.equal(supernet.model.part.norm.running_mean, before)
    config = supernet.space.smallest()
    statistics = recalibrate(supernet, config, [(X, torch.zeros(3).long())])
    net = extract(supernet.eval(), config, statistics=statistics)
    assert not torch.equal(net.part.norm.running_mean, before)
    assert type(net.part) is Branching
    assert type(net.part.norm) is nn.BatchNorm2d
