from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from search_spaces import InvalidInput
from subnet_search import extract, make_elastic, recalibrate
from subnet_search.dynamic.dynamic_files import in_memory
from subnet_search.dynamic.onnx_set import OnnxDynamicNet, export_dynamic_onnx
from subnet_search.settings import ElasticSettings
from tests.dynamic.test_controller import LATENCIES, with_statistics
from tests.small import EXAMPLE, small_net, small_supernet

pytest.importorskip("onnxruntime")


@pytest.mark.slow
def test_onnx_files_share_one_file_of_weights_and_answer_alike(tmp_path: Path) -> None:
    supernet = small_supernet().eval()
    pairs, x = with_statistics(supernet), torch.randn(5, 1, 8, 8)
    sizes = export_dynamic_onnx(in_memory(supernet, pairs, None), tmp_path)
    weights = sum(4 * p.numel() for p in supernet.parameters())
    assert weights <= sizes.shared == (tmp_path / "weights.bin").stat().st_size < weights + 64 * 40
    assert sizes.own == sum(path.stat().st_size for path in tmp_path.glob("*.onnx"))
    net = OnnxDynamicNet.load(tmp_path, threads=1, latencies_ms=LATENCIES)
    for budget_ms, (config, statistics) in zip(LATENCIES, pairs, strict=True):
        net.set_budget(latency_ms=budget_ms)
        torch.testing.assert_close(net(x), extract(supernet, config, statistics=statistics)(x).detach())
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InvalidInput, match="cannot be opened"):
        OnnxDynamicNet.load(tmp_path)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds no ONNX files of a dynamic network"):
        OnnxDynamicNet.load(tmp_path)


@pytest.mark.slow
def test_files_that_are_not_what_was_written_are_refused(tmp_path: Path) -> None:
    supernet = small_supernet().eval()
    pairs = with_statistics(supernet)[2:]
    export_dynamic_onnx(in_memory(supernet, pairs, None), tmp_path)
    index = (tmp_path / "index.json").read_text()
    for old, new, problem in (
        ('"format": 2', '"format": 9', "format 9"),
        ('"macs": ', '"macs": "x", "was": ', "invalid literal"),
        ('"input": [\n  1', '"input": [\n  -1', "an input of size"),
    ):
        assert old in index
        (tmp_path / "index.json").write_text(index.replace(old, new))
        with pytest.raises(InvalidInput, match=problem):
            OnnxDynamicNet.load(tmp_path, latencies_ms=[1.0])
    (tmp_path / "index.json").write_text(index)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(InvalidInput, match=r"weights\.bin is not what was written"):
        OnnxDynamicNet.load(tmp_path, latencies_ms=[1.0])


@pytest.mark.slow
def test_subnets_of_smaller_images_resize_them(tmp_path: Path) -> None:
    supernet = make_elastic(
        small_net(), EXAMPLE, ElasticSettings(min_share=0.5, step=4, resolution=(6, 8))
    ).eval()
    x = torch.randn(5, 1, 8, 8)
    config = supernet.space.smallest()
    assert config["resolution"] == 6
    pairs = [(config, recalibrate(supernet, config, [x]))]
    export_dynamic_onnx(in_memory(supernet, pairs, None), tmp_path)
    net = OnnxDynamicNet.load(tmp_path, threads=1)
    with supernet.subnet(*pairs[0]):
        torch.testing.assert_close(net(x), supernet(x).detach(), rtol=1e-4, atol=1e-4)


def test_only_single_precision_is_written(tmp_path: Path) -> None:
    supernet = small_supernet().eval()
    loaded = in_memory(supernet, with_statistics(supernet), None)
    with pytest.raises(InvalidInput, match=r"of torch\.float32, and the network of torch\.bfloat16"):
        export_dynamic_onnx(dataclasses.replace(loaded, example=loaded.example.bfloat16()), tmp_path)
