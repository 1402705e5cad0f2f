"""Sub-nets of every family go through torch.compile and answer as they do without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torchvision.models import ConvNeXt, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.ops import Permute

import subnet_search as ss
from tests.elastic.graph_toys import randomised
from tests.small import EXAMPLE, SmallNet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile builds C++ code: g++ is not installed"),
]
IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small_convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=10)


def small_vit() -> nn.Module:
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )


def small_swin() -> nn.Module:
    """One block with shifted windows between patches and a classifier."""
    block = SwinTransformerBlock(16, 2, [4, 4], [2, 2])
    before, after = (
        (nn.Conv2d(3, 16, 4, 4), Permute([0, 2, 3, 1])),
        (Permute([0, 3, 1, 2]), nn.AdaptiveAvgPool2d(1)),
    )
    return nn.Sequential(*before, block, *after, nn.Flatten(), nn.Linear(16, 10))


def small_coatnet() -> nn.Module:
    maxxvit = pytest.importorskip("timm.models.maxxvit")
    config = maxxvit.MaxxVitCfg(
        embed_dim=(16, 32),
        depths=(1, 1),
        block_type=("C", "T"),
        stem_width=(8, 16),
        transformer_cfg=maxxvit.MaxxVitTransformerCfg(dim_head=8, rel_pos_type="bias"),
    )
    model: nn.Module = maxxvit.MaxxVit(config, img_size=32, num_classes=10)
    return model


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("build", "example", "form"),
    [
        (SmallNet, EXAMPLE, "own classes"),
        (small_convnext, IMAGE, "graph"),
        (small_vit, IMAGE, "graph"),
        (small_swin, IMAGE, "graph"),
        (small_coatnet, IMAGE, "graph"),
    ],
    ids=["cnn", "convnext", "vit", "swin", "hybrid"],
)
def test_a_compiled_subnet_answers_as_it_does_in_eager_mode(
    build: Callable[[], nn.Module], example: torch.Tensor, form: str
) -> None:
    torch.manual_seed(0)
    supernet = ss.make_elastic(
        randomised(build()).eval(), example, ss.ElasticSettings(step=2, min_share=0.25)
    )
    assert supernet.coverage["form"] == form
    config = supernet.space.uniform(0.5)
    images = torch.randn(4, *example.shape[1:])
    net = ss.extract(supernet, config, statistics=ss.recalibrate(supernet, config, [images])).eval()
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        wanted = net(images)
        assert (wanted[0] - wanted[1]).abs().max() > 1e-3  # the answer depends on the image
        torch.testing.assert_close(compiled(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
