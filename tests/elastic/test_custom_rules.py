"""With rules of the user's, what tracing cannot follow is elastic; wrong rules are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from search_spaces import InvalidInput
from subnet_search import Passes, register_rule
from subnet_search.elastic import custom
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.flow import Flow, Layout
from subnet_search.elastic.knobs import EmptySpaceError
from subnet_search.elastic.operations.label_flow import along_axis
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import count_macs, count_params, prove
from subnet_search.ranking import l1_ranking, noise_ranking, taylor_ranking
from subnet_search.rebuilding import WEIGHTS, load_subnet, write_network
from subnet_search.record import create_run
from subnet_search.settings import ElasticSettings, ModelSettings
from subnet_search.workbench import save_weights
from tests.elastic.judges import configs, judge_extracted, judge_largest, judge_reordered

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FORMS = ("own classes", "graph")
MOSTLY_SLOW = ("own classes", pytest.param("graph", marks=pytest.mark.slow))


class OwnNorm(nn.Module):
    """Weights and a buffer for each channel, a forward that nothing follows, and a size of its own."""

    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))
        self.floor = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("shift", torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x / (self.floor + float(x.detach().std()))
        shape = (1, self.channels, 1, 1)
        return x * self.weight.view(shape) + self.bias.view(shape) + self.shift


class OwnActivation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.square().sum() > 0 else x


class OwnPool(nn.Module):
    """Halves height and width by a convolution of each channel alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.square().sum() > 0 else -x
        return nn.functional.conv2d(x, self.weight, stride=2, groups=len(self.weight))


class Mirror(nn.Module):
    """Turns the order of the channels around."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1) if x.square().sum() > 0 else x


@torch.library.custom_op("subnet_search_tests::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@swish.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _swish_gradient(ctx: Any, gradient: Tensor) -> Tensor:
    gate = ctx.x.sigmoid()
    return gradient * gate * (1 + ctx.x * (1 - gate))


swish.register_autograd(
    _swish_gradient, setup_context=lambda ctx, inputs, output: setattr(ctx, "x", inputs[0])
)


def doubled(x: Tensor) -> Tensor:
    return x * 2 if x.square().sum() > 0 else x


class Net(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.first, self.parts = nn.Conv2d(3, 16, 3, padding=1), nn.Sequential(*parts)
        self.second, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.second(self.parts(self.first(x)))).mean((2, 3)))

    def last(self, x: Tensor) -> Tensor:
        return x.relu()


class WithOperator(Net):
    def last(self, x: Tensor) -> Tensor:
        return swish(x)


class WithFunction(Net):
    def last(self, x: Tensor) -> Tensor:
        return doubled(x)


NORM = Passes(axis=1, parameters={"weight": 0, "bias": 0, "shift": 1}, sizes=("channels",))
POOL = Passes(axis=1, parameters={"weight": 0})


@pytest.fixture(autouse=True)
def _rules() -> Iterator[None]:
    before = dict(custom.RULES)
    yield
    custom.RULES.clear()
    custom.RULES.update(before)


def net() -> nn.Module:
    """Named by the description of a stored sub-net, below."""
    torch.manual_seed(0)
    return WithOperator(OwnNorm(16), OwnActivation(), OwnPool(16)).eval()


def register_all() -> None:
    for target, rule in ((OwnNorm, NORM), (OwnActivation, Passes()), (OwnPool, POOL), (swish, Passes())):
        register_rule(target, rule)


def converted(model: nn.Module, form: str) -> Supernet:
    return make_elastic(model, X, ElasticSettings(step=4, form=form)).eval()  # type: ignore[arg-type]


def fixed(supernet: Supernet) -> dict[str, str]:
    return {entry["path"]: entry["reason"] for entry in supernet.coverage["fixed"]}


@pytest.mark.parametrize("form", MOSTLY_SLOW)
def test_modules_and_operators_with_rules_are_elastic_with_their_parameters(form: str) -> None:
    model = net()
    with pytest.raises(EmptySpaceError):
        converted(model, form)
    register_all()
    supernet = converted(model, form)
    assert {name: group.size for name, group in supernet.groups.items()} == {"first": 16, "second": 12}
    assert set(supernet.groups["first"].readers) == {"parts.0", "parts.2", "second"}
    assert fixed(supernet) == {"head": "the network's output"}
    judge_largest(model, supernet, X)
    judge_reordered(supernet, X)
    for config in configs(supernet, 1):
        part, row = extract(supernet, config, X).eval(), supernet.space.encode([config])
        assert supernet.costs.macs(row)[0] == count_macs(part, X[:1])
        assert supernet.costs.params(row)[0] == count_params(part)
        supernet.zero_grad()
        for one in (supernet, part):
            with supernet.subnet(config):
                one(X).square().sum().backward()
        for name, parameter in part.named_parameters():
            whole = supernet.model.get_parameter(name).grad
            assert whole is not None
            assert parameter.grad is not None
            assert float(whole.norm()) == pytest.approx(float(parameter.grad.norm()), rel=1e-4), name
        assert {type(part.get_submodule(f"parts.{i}")) for i in range(3)} == {OwnNorm, OwnActivation, OwnPool}
        assert len(part.get_submodule("parts.0").weight) == config["first"]


@pytest.mark.parametrize("form", MOSTLY_SLOW)
def test_an_operator_without_a_rule_keeps_its_channels_and_runs(form: str) -> None:
    supernet = converted(WithOperator(), form)
    assert set(supernet.groups) == {"first"}
    assert "swish" in fixed(supernet)["second"]
    if form == "own classes":
        judge_extracted(supernet, X, configs(supernet, 1))
    else:
        assert torch.equal(extract(supernet, supernet.space.largest())(X), supernet(X))


def test_a_function_with_a_rule_is_not_looked_into() -> None:
    register_rule(doubled, Passes())
    model = WithFunction()
    supernet = converted(model, "own classes")
    assert set(supernet.groups) == {"first", "second"}
    judge_extracted(supernet, X, configs(supernet, 1))


def mirrored(flow: Any, node: fx.Node) -> Any:
    x: Any = node.args[0]
    if isinstance(flow, Flow):
        return Layout(1, flow.layout(x, 1).ids[::-1])
    return (along_axis(flow.ids_along(x, 1)[0][::-1].copy(), 1, 4),)


@pytest.mark.parametrize("form", MOSTLY_SLOW)
def test_a_rule_of_ones_own_says_where_channels_go(form: str) -> None:
    register_rule(Mirror, mirrored)
    model = Net(Mirror()).eval()
    supernet = converted(model, form)
    assert set(supernet.groups) == {"first", "second"}
    judge_largest(model, supernet, X)
    judge_reordered(supernet, X)


# wrong rules

WRONG = {
    "another order": (Mirror(), Passes(axis=1), r"Mirror is wrong: with channels in another order"),
    "no parameters": (
        OwnPool(16),
        Passes(axis=1),
        r"for OwnPool: Passes\(.*\), but with fewer channels it fails",
    ),
    "no size": (
        OwnNorm(16),
        Passes(axis=1, parameters=NORM.parameters),
        r"for OwnNorm: .* but with fewer channels it fails: shape",
    ),
    "a parameter missing": (
        OwnNorm(16),
        Passes(axis=1, parameters={"weight": 0, "shift": 1}, sizes=("channels",)),
        r"for OwnNorm: .* but with fewer channels it fails",
    ),
    "another axis": (
        OwnPool(16),
        Passes(axis=1, parameters={"weight": 1}),
        r"16 channels lie along axis 1 of weight",
    ),
    "no such parameter": (
        OwnPool(16),
        Passes(axis=1, parameters={"scale": 0}),
        r"it has a parameter 'scale'",
    ),
    "no such size": (
        OwnPool(16),
        Passes(axis=1, sizes=("channels",)),
        r"its 'channels' is the number of channels, 16",
    ),
    "in place": (OwnPool(16), Passes(), r"for OwnPool.*(say the axis|fails)"),
    "other channels come out": (nn.PixelShuffle(2), Passes(axis=1), r"16 channels pass along axis 1, but"),
}


@pytest.mark.parametrize("form", MOSTLY_SLOW)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_refused(name: str, form: str) -> None:
    part, rule, message = WRONG[name]
    register_rule(type(part), rule)
    if isinstance(part, nn.PixelShuffle):
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 16, 1), part, nn.Conv2d(4, 5, 1))
    else:
        model = Net(part)
    with pytest.raises(InvalidInput, match=message):
        converted(model.eval(), form)


@pytest.mark.parametrize(
    ("target", "rule", "message"),
    [
        (nn.Linear, Passes(), "Linear has channels of its own kind"),
        (nn.ReLU(), Passes(), "a class of modules, a function or an operator"),
        (Tensor, Passes(), "a class of modules, a function or an operator"),
        ("mylib::missing", Passes(), "there is no operator 'mylib::missing'"),
        ("relu", Passes(), "there is no operator 'relu'"),
        (doubled, Passes(axis=1, parameters={"weight": 0}), "only modules have parameters"),
        (OwnPool, "passes", "a rule is Passes"),
    ],
)
def test_what_cannot_have_a_rule_is_refused(target: Any, rule: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        register_rule(target, rule)


def test_a_rule_is_checked_when_it_is_made() -> None:
    with pytest.raises(InvalidInput, match="axis is None"):
        Passes(parameters={"weight": 0})
    with pytest.raises(InvalidInput, match=r"write \('channels',\)"):
        Passes(axis=1, sizes="channels")  # type: ignore[arg-type]


# ranked and stored


@pytest.mark.parametrize("form", MOSTLY_SLOW)
@pytest.mark.parametrize(
    "ranker", [taylor_ranking, l1_ranking, pytest.param(noise_ranking, marks=pytest.mark.slow)]
)
def test_rankings_see_through_modules_with_rules(form: str, ranker: Callable[..., Any]) -> None:
    """Channels of which nothing is read are worth nothing, however large the weights that write them."""
    register_all()
    model = net()
    dead = [1, 4, 5, 11]
    with torch.no_grad():
        model.second.weight[:, dead] = 0  # type: ignore[index]
    if ranker is l1_ranking:
        with torch.no_grad():
            model.first.weight[dead] = 0  # type: ignore[index]
    supernet = converted(model, form)
    before = supernet(X)
    ranking = ranker(supernet, [(X, torch.arange(3))] * 3)
    assert set(dead) <= set(
        ranking["first"][-5:].tolist()
    )  # another one is never above zero before the last ReLU
    supernet.reorder(ranking)
    torch.testing.assert_close(supernet(X), before)


@pytest.mark.parametrize("form", FORMS)
def test_a_stored_subnet_is_proved_and_loaded_without_the_rules(form: str, tmp_path: Path) -> None:
    register_all()
    supernet = converted(net(), form)
    config = supernet.space.uniform(0.5)
    part, place = extract(supernet, config), f"subnets/{config.key}"
    with create_run(tmp_path / "run", "") as run:
        save_weights(run, f"{place}/{WEIGHTS}", part)
        build = write_network(
            run, place, ModelSettings(name="tests.elastic.test_custom_rules:net"), supernet, config
        )
        custom.RULES.clear()
        weights = tmp_path / "run" / place / WEIGHTS
        proof = prove(
            supernet, config, None, part, build=build, weights=weights, batches=[(X, torch.arange(3))]
        )
    assert proof.passed
    assert torch.equal(load_subnet(tmp_path / "run" / place)(X), part(X))
