from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces import InvalidInput
from search_spaces.presets import SkipPaths
from subnet_search import extract, load_subnets, make_elastic, recalibrate, save_subnets, train
from subnet_search.dynamic import DynamicNet, save_dynamic
from subnet_search.elastic import Supernet
from subnet_search.elastic.sub_paths import find_skip_paths
from subnet_search.elastic.switchable import add_switchable_norms, switchable_norms
from subnet_search.measure.passes import SharedPasses
from subnet_search.settings import ElasticSettings, ModelSettings, TrainSettings
from subnet_search.small_models import SmallResNet
from subnet_search.training.skip_paths import SkipPathStep, _pooled, divergence, make_skip_aware
from tests.small import small_splits

OWN = ElasticSettings(min_share=0.5, step=4, form="own classes")


def adaptive(width: int = 8, seed: int = 0) -> tuple[Supernet, SkipPaths]:
    torch.manual_seed(seed)
    net = SmallResNet((2, 2), width, 4, in_channels=1)
    supernet = make_elastic(net, torch.zeros(1, 1, 8, 8), OWN)
    return supernet, make_skip_aware(supernet)


def make_different(supernet: Supernet) -> None:
    """Lets both norms of a pair answer differently."""
    for _, norm in switchable_norms(supernet.model):
        torch.nn.init.uniform_(norm.at_skip.weight, 0.3, 2.0)
        torch.nn.init.uniform_(norm.at_skip.bias, -1, 1)


def test_norms_of_mandatory_blocks_listen_to_their_own_stage() -> None:
    supernet, paths = adaptive()
    assert [path for path, _ in switchable_norms(supernet.model)] == [
        f"layer{stage}.0.bn{norm}" for stage in (1, 2) for norm in (1, 2)
    ]
    for name, config in paths.configs().items():
        supernet.activate(config)
        flags = [norm.switched for _, norm in switchable_norms(supernet.model)]
        assert flags == [name[0] == "T"] * 2 + [name[1] == "T"] * 2
    assert not any(norm.at_skip.weight is norm.weight for _, norm in switchable_norms(supernet.model))


@pytest.mark.parametrize(
    "name", ["FT", *(pytest.param(n, marks=pytest.mark.slow) for n in ("FF", "TF", "TT"))]
)
def test_subnets_are_cut_out_with_the_norms_that_they_use(name: str, tmp_path: Path) -> None:
    supernet, paths = adaptive()
    make_different(supernet)
    x, config = torch.randn(16, 1, 8, 8), paths.configs()[name]
    statistics = recalibrate(supernet, config, [x])
    net = extract(supernet, config, statistics=statistics).eval()
    supernet.eval()
    with supernet.subnet(config, statistics):
        wanted = supernet(x)
    torch.testing.assert_close(net(x), wanted)
    assert not any("at_skip" in key for key in net.state_dict())
    other = copy.deepcopy(supernet)
    with other.subnet(config, statistics):
        torch.testing.assert_close(other(x), wanted)

    file = tmp_path / "set.safetensors"
    save_subnets(file, supernet, [(config, statistics)])
    loaded = load_subnets(file, adaptive(seed=1)[0].eval())
    torch.testing.assert_close(loaded.extract(config)(x), wanted)
    build = "subnet_search.small_models:SmallResNet"
    options = {"blocks": [2, 2], "width": 8, "num_classes": 4, "in_channels": 1}
    save_dynamic(file, supernet, [(config, statistics)], model=ModelSettings(name=build, options=options))
    torch.testing.assert_close(DynamicNet.load(file, latencies_ms=[1.0])(x), wanted)


def test_passes_that_share_their_beginning_do_not_share_norms() -> None:
    supernet, paths = adaptive()
    make_different(supernet)
    x, labels = torch.randn(16, 1, 8, 8), torch.zeros(16, dtype=torch.long)
    passes = SharedPasses(
        supernet, [(x, labels)], [(x, labels)], device=torch.device("cpu"), memory_bytes=2**24
    )
    for config in paths.configs().values():
        logits, _, statistics = passes.answers(config)
        supernet.eval()
        with supernet.subnet(config, recalibrate(supernet, config, [x])):
            torch.testing.assert_close(logits, supernet(x), atol=1e-4, rtol=1e-4)
        assert statistics.config_key == config.key


def losses_by_hand(supernet: Supernet, paths: SkipPaths, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    with supernet.subnet(supernet.space.largest()):
        whole = supernet(x)
    with supernet.subnet(paths.base):
        base = supernet(x)
    p, q = whole.detach().softmax(1), base.softmax(1)
    return 0.5 * F.cross_entropy(whole, y), 0.5 * (p * (p / q).log()).sum(1).mean()


def test_a_step_leaves_the_gradients_of_the_two_nets() -> None:
    supernet, paths = adaptive()
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 4
    supernet.train()
    first, second = losses_by_hand(supernet, paths, x, y)
    (first + second).backward()
    wanted = {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}
    supernet.zero_grad()
    found = SkipPathStep(paths)(supernet, (x, y), np.random.default_rng(0))
    assert found == pytest.approx((first + second).item(), rel=1e-5)
    for name, parameter in supernet.named_parameters():
        if name in wanted:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5)
    assert supernet.model.get_parameter("layer1.0.bn1.at_skip.weight").grad.abs().sum() > 0


def test_labels_have_their_share_of_what_the_base_net_learns() -> None:
    supernet, paths = adaptive()
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % 4
    supernet.train()
    first, second = losses_by_hand(supernet, paths, x, y)
    with supernet.subnet(paths.base):
        labels = 0.5 * F.cross_entropy(supernet(x), y)
    found = SkipPathStep(paths, hard=0.25)(supernet, (x, y), np.random.default_rng(0))
    assert found == pytest.approx((first + 0.75 * second + 0.25 * labels).item(), rel=1e-5)


@pytest.mark.slow
def test_features_are_compared_and_few_logits_suffice() -> None:
    supernet, paths = adaptive()
    batch = torch.randn(12, 1, 8, 8), torch.arange(12) % 4
    plain, with_features, two = (
        step(copy.deepcopy(supernet), batch, np.random.default_rng(0))
        for step in (SkipPathStep(paths), SkipPathStep(paths, features=1.0), SkipPathStep(paths, top=2))
    )
    assert with_features > plain
    assert two != plain
    equal = torch.randn(3, 5)
    assert divergence(equal, equal).item() == pytest.approx(0, abs=1e-6)
    for wrong in ({"alpha": 1.0}, {"temperature": 0.0}, {"top": 1}, {"features": -1.0}, {"hard": 1.5}):
        with pytest.raises(InvalidInput):
            SkipPathStep(paths, **wrong)  # type: ignore[arg-type]


def test_a_graph_cannot_switch_norms() -> None:
    net = SmallResNet((1,), 4, 4, in_channels=1)
    supernet = make_elastic(net, torch.zeros(1, 1, 8, 8), ElasticSettings(step=2, form="graph"))
    with pytest.raises(InvalidInput, match='form="own classes"'):
        add_switchable_norms(supernet, {})


@pytest.mark.slow
def test_combinations_that_were_never_trained_answer_nearly_as_well() -> None:
    supernet, paths = adaptive()
    splits = small_splits(num_train=192)
    train(supernet, splits, SkipPathStep(paths), TrainSettings(epochs=12, lr=0.1, device="cpu"))
    supernet.eval()
    found = {}
    for name, config in paths.configs().items():
        with supernet.subnet(config, recalibrate(supernet, config, splits.calibration)):
            right = [(supernet(x).argmax(1) == y).float().mean() for x, y in splits.test]
        found[name] = float(torch.stack(right).mean())
    assert min(found.values()) > 0.8, found
    with pytest.raises(dataclasses.FrozenInstanceError):
        paths.stages = ()  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "mobilenet_v2", "resnet50"])
def test_torchvisions_networks_become_adaptive(name: str) -> None:
    import torchvision

    options = {"image_size": 32, "num_layers": 8, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    if name == "vit_b_16":
        net = torchvision.models.VisionTransformer(patch_size=8, num_classes=7, **options)
        torch.nn.init.normal_(net.heads.head.weight)
    elif name == "swin_t":
        net = torchvision.models.SwinTransformer(
            [4, 4], 16, [2, 2, 2, 2], [1, 1, 2, 2], [4, 4], num_classes=7
        )
    else:
        net = torchvision.models.get_model(name, num_classes=7)
    x = torch.randn(4, 3, 32, 32)
    settings = ElasticSettings(width=False, form="own classes")
    supernet = make_elastic(net, x[:1], settings)
    paths = make_skip_aware(supernet)
    expected = {"vit_b_16": [(1, 1)] * 4, "swin_t": [(1, 1)] * 4, "resnet50": [(2, 1), (2, 2), (3, 3), (2, 1)],
                "mobilenet_v2": [(1, 1), (2, 1), (2, 2), (2, 1), (2, 1)]}  # fmt: skip
    assert [(len(s.mandatory), len(s.skippable)) for s in paths.stages] == expected[name]
    loss = SkipPathStep(paths, features=0.1)(supernet.train(), (x, torch.arange(4)), np.random.default_rng(0))
    assert np.isfinite(loss)
    supernet.eval()
    for config in (paths.base, paths.config([n % 2 == 0 for n in range(len(paths.stages))])):
        statistics = recalibrate(supernet, config, [x])
        net = extract(supernet, config, statistics=statistics)
        with supernet.subnet(config, statistics):
            torch.testing.assert_close(net(x), supernet(x), rtol=1e-3, atol=1e-3)


class Skippable(torch.nn.Module):
    """A residual block of one convolution over images or sequences."""

    def __init__(self, channels: int, convolution: type = torch.nn.Conv2d) -> None:
        super().__init__()
        self.conv = convolution(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


class Numbered(torch.nn.Module):
    """Blocks as attributes, whose numbers begin with 1, on sequences `[B, 4, L]`."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = (Skippable(4, torch.nn.Conv1d) for _ in range(3))
        self.head = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block3(self.block2(self.block1(x))).mean(2))


def test_stages_hold_only_blocks_that_are_there() -> None:
    depth = ElasticSettings(width=False, form="own classes")
    supernet = make_elastic(Numbered(), torch.zeros(1, 4, 18), depth)
    [stage] = find_skip_paths(supernet).stages
    assert (stage.mandatory, stage.skippable) == (("block1", "block2"), ("block3",))
    stem = [torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()]
    rest = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 4)]
    net = torch.nn.Sequential(*stem, Skippable(4), Skippable(4), *rest)
    [stage] = find_skip_paths(make_elastic(net, torch.zeros(1, 1, 8, 8), depth)).stages
    assert (stage.mandatory, stage.skippable) == (("3",), ("4",))


def test_features_of_sequences_are_averaged_over_their_length() -> None:
    block, x = Skippable(4, torch.nn.Conv1d), torch.randn(2, 4, 18)
    assert torch.equal(_pooled(x, block), x.mean(2))
    assert torch.equal(_pooled(x, torch.nn.Linear(18, 18)), x.mean(1))  # tokens
