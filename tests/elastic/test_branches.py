from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.elastic.branches import TriangularNet, make_triangular
from subnet_search.elastic.nested_branches import NestedResNeXt
from subnet_search.measure.counter import count_macs, count_params
from subnet_search.small_models import SmallResNet, triangular_resnet
from tests.toys import make_toy

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """With statistics and scales that differ from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
    return net.eval()


def resnet(branches: int = 4, sizes: list[int] | None = None) -> TriangularNet:
    net = triangular_resnet((2, 2), 8, branches, num_classes=5, size_px=8, sizes=sizes)
    shaken(net)
    return net


@pytest.mark.parametrize("branches", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_rows_give_what_the_one_pass_gives(branches: int) -> None:
    net = resnet(branches)
    for whole, row in zip(net(X), net.rows(X), strict=True):
        torch.testing.assert_close(row, whole, rtol=1e-5, atol=1e-5)


def test_a_group_depends_on_no_later_one() -> None:
    net = resnet()
    before = net(X)
    with torch.no_grad():
        for module in net.body.modules():
            if isinstance(module, nn.BatchNorm2d):  # of the last quarter of each layer
                module.bias[-module.num_features // 4 :] += 1.0
    after = net(X)
    for k in range(3):
        assert torch.equal(before[k], after[k])
    assert not torch.allclose(before[3], after[3])


@pytest.mark.slow
def test_one_row_more_computes_one_row_and_its_cost_is_exact() -> None:
    net, x = resnet(), X[:1]

    class Upto(nn.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.net, self.k = net, k

        def forward(self, x: Tensor) -> Tensor:
            rows = self.net.rows(x)
            return [next(rows) for _ in range(self.k)][-1]

    counted = [count_macs(Upto(k), x) for k in range(1, 5)]
    assert [sum(net.row_macs[:k]) for k in range(1, 5)] == counted
    assert net.costs.macs(net.space.encode([{"branches": k} for k in range(1, 5)])).tolist() == counted
    assert sum(net.row_macs) < 0.7 * count_macs(net, x)  # the pattern's share, 10 / 16 of all but the stem


def test_params_of_a_subnet_are_those_on_and_below_the_diagonal() -> None:
    net = resnet(branches=2)
    for path, module in list(net.body.named_modules()):
        if isinstance(module, nn.ReLU):  # dead units would have no gradient
            parent, _, name = path.rpartition(".")
            setattr(net.body.get_submodule(parent), name, nn.SiLU())
    torch.stack([z.square().sum() for z in net(X)]).sum().backward()
    used = sum(int((p.grad != 0).sum()) for p in net.parameters() if p.grad is not None)
    assert used == net.params(2)
    net.zero_grad()
    net(X)[0].square().sum().backward()
    used = sum(int((p.grad != 0).sum()) for p in net.parameters() if p.grad is not None)
    assert used == net.params(1)
    table = net.costs.evaluate(net.space.encode([{"branches": 1}, {"branches": 2}]))
    assert table["params"].tolist() == [net.params(1), net.params(2)]
    assert (table["weight_bytes"] > 4 * table["params"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("toy", ["plain", "residual", "added in place", "reused"])
def test_plain_networks_are_converted(toy: str) -> None:
    model = make_toy(toy)
    state = copy.deepcopy(model.state_dict())
    net = make_triangular(model, X[:1], branches=4)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for whole, row in zip(net.eval()(X), net.rows(X), strict=True):
        torch.testing.assert_close(row, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_depthwise_convolutions_keep_to_their_group() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 5),
    )  # fmt: skip
    net = make_triangular(model.eval(), X[:1], branches=4)
    for whole, row in zip(net(X), net.rows(X), strict=True):
        torch.testing.assert_close(row, whole, rtol=1e-5, atol=1e-5)
    whole = [count_macs(net, X[:1]), sum(net.row_macs)]
    assert whole[1] < whole[0]


@pytest.mark.slow
def test_a_copy_runs_its_own_weights() -> None:
    net = resnet()
    list(net.rows(X))
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    for whole, row in zip(other(X), other.rows(X), strict=True):
        torch.testing.assert_close(row, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_heads_of_several_levels_begin_anew_where_the_classes_change() -> None:
    net = resnet(sizes=[2, 2, 5, 5])
    answers = net(X)
    assert [z.shape[1] for z in answers] == [2, 2, 5, 5]
    for whole, row in zip(answers, net.rows(X), strict=True):
        torch.testing.assert_close(row, whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(InvalidInput, match="no polynomial of their number"):
        _ = net.costs
    with pytest.raises(InvalidInput, match=r"never falling, got \[5, 5, 2, 2\]"):
        resnet(sizes=[5, 5, 2, 2])


class Softened(nn.Module):
    """Mixes channels in a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).softmax(1).mean((2, 3)))


def test_what_cannot_be_sliced_is_refused_with_the_rule() -> None:
    x = X[:1]
    with pytest.raises(InvalidInput, match=r"the 10 channels of 0 do not fall into 4 equal groups"):
        make_triangular(nn.Sequential(nn.Conv2d(3, 10, 3), nn.Flatten(), nn.Linear(360, 5)), x, 4)
    with pytest.raises(InvalidInput, match="GroupNorm, which may mix the channels"):
        make_triangular(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 5)), x, 4
        )
    with pytest.raises(InvalidInput, match=r"Softened mixes the channels of all groups"):
        make_triangular(Softened(), x, 4)
    with pytest.raises(InvalidInput, match="must be that of its last linear layer"):
        make_triangular(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), x, 4)
    with pytest.raises(InvalidInput, match="at least 2, got 1"):
        make_triangular(SmallResNet((1,), 8), x, 1)
    with pytest.raises(InvalidInput, match=r"must be a batch such as .*, got \[3, 8, 8\]"):
        make_triangular(SmallResNet((1,), 8), X[0], 4)


def test_rows_need_evaluation_mode_and_the_channels_of_the_example() -> None:
    net = resnet()
    for wrong in (X[:, :1], X[0]):  # rows of a weight fit fewer channels, too
        with pytest.raises(InvalidInput, match=r"must be a batch \[B, 3, 8, 8\], got"):
            next(net.rows(wrong))
    with pytest.raises(InvalidInput, match=r"call eval\(\) first"):
        next(net.train().rows(X))


@pytest.mark.slow
def test_nested_branches_are_networks_of_their_own() -> None:
    net = NestedResNeXt((1, 1), 8, 2, branches=4, num_classes=5, size_px=8).eval()
    shaken(net)
    before = [net(X, k) for k in range(1, 5)]
    with torch.no_grad():
        for block in net.blocks:
            for conv in (block.conv1, block.conv2):
                conv.weight[-conv.out_channels // 4 :] += 1.0  # the last branch
    for k in range(1, 4):
        assert torch.equal(net(X, k), before[k - 1])
    assert not torch.allclose(net(X), before[3])

    class Upto(nn.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.net, self.k = net, k

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x, self.k)

    x = net.space.encode([{"branches": k} for k in range(1, 5)])
    assert net.costs.macs(x).tolist() == [count_macs(Upto(k), X[:1]) for k in range(1, 5)]
    whole = net.costs.params(x)[3]
    only = NestedResNeXt((1, 1), 8, 8, branches=2, num_classes=5, size_px=8)
    assert whole < count_params(net)  # norms and classifiers of thinner sub-nets are not its own
    assert only.branches == 2
    with pytest.raises(InvalidInput, match="from 1 to 4, got 5"):
        net(X, 5)


def test_smaller_images_are_refused_where_a_weight_is_as_large_as_the_image() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5))
    net = make_triangular(model, X[:1], branches=4).eval()
    with pytest.raises(InvalidInput, match="reads 4 of them here, 192 inputs, and got 108"):
        next(net.rows(X[:, :, :6, :6]))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 5))
    net = make_triangular(model, X[:1], branches=4).eval()
    with pytest.raises(InvalidInput, match="reads 1 of them here, 128 inputs, and got 72"):
        next(net.rows(X[:, :, :6, :6]))


class InPlace(nn.Module):
    """A shortcut that reads a tensor before an activation changes it, and a convolution that reads it after."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.stem = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)
        self.shortcut, self.inside, self.again = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.norm(x))
        shortcut = self.shortcut(input=x)
        y = self.inside(self.relu(x)) + self.again(x)
        return self.head((y + shortcut).mean((2, 3)))


def test_what_is_changed_in_place_is_read_as_in_the_one_pass() -> None:
    model = InPlace()
    net = make_triangular(shaken(model), X[:1], branches=4)
    for whole, row in zip(net(X), net.rows(X), strict=True):
        torch.testing.assert_close(row, whole, rtol=1e-5, atol=1e-5)
        row.zero_()  # belongs to who gets it
    assert model.relu.inplace
    with torch.no_grad():  # the last sub-net reads all that is left of the weights
        for name in ("inside", "again", "shortcut"):
            model.get_submodule(name).weight.mul_(net.body.get_submodule(name).allowed)  # type: ignore[arg-type, operator]
    torch.testing.assert_close(net(X)[-1], model(X), rtol=1e-5, atol=1e-5)


def test_costs_are_counted_in_any_precision_and_leave_modes_alone() -> None:
    net, wanted = resnet(), resnet().row_macs
    net.double().train()
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    norm.eval()
    assert net.row_macs == wanted
    assert net.training
    assert not norm.training
