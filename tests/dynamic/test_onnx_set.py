from __future__ import annotations

from pathlib import Path

import pytest
import torch

from search_spaces import InvalidInput
from subnet_search import extract
from subnet_search.dynamic.dynamic_files import in_memory
from subnet_search.dynamic.onnx_set import OnnxDynamicNet, export_dynamic_onnx
from tests.dynamic.test_controller import LATENCIES, with_statistics
from tests.small import small_supernet

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
