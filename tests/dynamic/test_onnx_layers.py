"""LC-Nets as ONNX files with their loop."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces import SubnetSearchError
from subnet_search import make_elastic
from subnet_search.dynamic.layer_channel import LayerChannelNet
from subnet_search.dynamic.onnx_layers import export_layers
from subnet_search.elastic.supernet import Supernet
from tests.dynamic.made import IMAGES
from tests.dynamic.test_layer_channel import scattered
from tests.small import EXAMPLE, SmallNet, small_supernet
from tests.vit import vit_supernet


def loop_in(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("run_layers", folder / "run_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Layers(folder)


@pytest.mark.slow
@pytest.mark.parametrize("made", [small_supernet, vit_supernet])
def test_the_loop_decides_and_answers_as_the_net_does(made: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    supernet: Supernet = made()
    net = scattered(LayerChannelNet(supernet.eval(), 3))
    with torch.inference_mode():
        net.decide(IMAGES, sliced=False)
        assert net.decisions.layers is not None
        net.threshold = float(net.decisions.layers[:, 0].median())
        wanted = net(IMAGES)
        kept = torch.stack([net.decisions.kept[i] for i in range(len(net.blocks))], dim=1)
    files = export_layers(net, [IMAGES[:20]], tmp_path, variants=1)
    assert any("block_" in path.name and "all" not in path.name for path in files)
    run = loop_in(tmp_path)
    ways = set()
    for row in range(24):
        logits, way = run(IMAGES[row : row + 1].numpy())
        np.testing.assert_allclose(logits[0], wanted[row].numpy(), rtol=1e-3, atol=1e-4)
        assert [one is not None for one in way] == [bool(one) for one in kept[row]]
        ways.add(way)
    assert len(ways) > 2


class LeadsPast(SmallNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.bn(self.stem(x)).relu()
        x = self.block2(self.block1(stem)) + stem
        return self.classifier(self.head(self.depthwise(x)).relu().mean((2, 3)))


def test_what_leads_past_the_blocks_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = LayerChannelNet(make_elastic(LeadsPast().eval(), EXAMPLE).eval())
    with pytest.raises(SubnetSearchError, match=r'leads past them .* leave "onnx" out'):
        export_layers(net, [IMAGES], tmp_path)
