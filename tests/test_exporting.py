from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.statistics import recalibrate
from subnet_search.exporting import FORMATS, export
from subnet_search.measure import count_params
from subnet_search.measure.runtimes.onnx_files import open_session, session_answers
from tests.small import EXAMPLE, small_splits, small_supernet

BATCHES = small_splits().calibration
assert BATCHES is not None


def subnet(share: float = 0.5) -> nn.Module:
    supernet = small_supernet()
    config = supernet.space.uniform(share)
    return extract(supernet, config, EXAMPLE, recalibrate(supernet, config, BATCHES))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return self.layer(image) * scale


class Windows(nn.Module):
    """Attention in each of some windows: `[B, heads, windows, tokens, channels]`, or with `dims` 3 without heads."""

    def __init__(self, dims: int, masked: bool) -> None:
        super().__init__()
        self.read, self.dims = nn.Linear(4, 12), dims
        mask = torch.ones(6, 6).tril().bool() if masked else None
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:  # [B, 3, 2, 6, 4]
        q, k, v = self.read(x if self.dims == 5 else x[:, 0, 0]).chunk(3, dim=-1)
        if self.dims == 3:
            return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=self.mask)
        return F.scaled_dot_product_attention(q, k, v, self.mask, scale=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "masked"), [(5, True), (3, True), pytest.param(5, False, marks=pytest.mark.slow)]
)
def test_attention_of_any_number_of_dimensions_goes_to_onnx(dims: int, masked: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net, example = Windows(dims, masked).eval(), torch.randn(2, 3, 2, 6, 4)
    (found,) = export(net, example, tmp_path, ("onnx",))
    assert found.max_abs_difference < 1e-6
    session = open_session(found.path)
    (answer,) = session_answers(session)(((example[:1],), {}))
    assert answer.std() > 0.1
    torch.testing.assert_close(answer, net(example[:1]), atol=1e-6, rtol=1e-6)


def test_every_file_says_its_size_and_agrees_with_the_net(tmp_path: Path) -> None:
    found = export(subnet().train(), EXAMPLE, tmp_path / "new" / "folder")
    assert [(e.format, e.path.name) for e in found] == [
        ("safetensors", "net.safetensors"),
        ("pt2", "net.pt2"),
    ]
    assert found[0].max_abs_difference == 0
    assert found[1].max_abs_difference < 1e-5
    assert all(e.bytes == e.path.stat().st_size for e in found)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "net.pt2",
        "net.safetensors",
    ]


def test_the_weights_file_holds_the_nets_state(tmp_path: Path) -> None:
    net = subnet()
    export(net, EXAMPLE, tmp_path, ("safetensors",))
    stored = load_file(tmp_path / "net.safetensors")
    assert stored.keys() == net.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in net.state_dict().items())


def test_files_are_as_small_as_the_subnet(tmp_path: Path) -> None:
    nets = {share: subnet(share) for share in (0.25, 1.0)}
    sizes = {}
    for share, net in nets.items():
        state = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
        weights, program = export(net, EXAMPLE, tmp_path / str(share))
        assert state <= weights.bytes < state + 8000
        with zipfile.ZipFile(program.path) as archive:
            inside = sum(info.file_size for info in archive.infolist() if "weight_" in info.filename)
        assert state <= inside + 8 * 8 <= state + 4096
        sizes[share] = weights.bytes
    assert count_params(nets[0.25]) < 0.2 * count_params(nets[1.0])
    assert sizes[0.25] < sizes[1.0]


def test_the_program_takes_any_batch_size_and_holds_no_pickle(tmp_path: Path) -> None:
    net = subnet().eval()
    (exported,) = export(net, EXAMPLE, tmp_path, ("pt2",))
    program = torch.export.load(exported.path).module()
    for size in (1, 2, 5):
        x = torch.randn(size, 1, 8, 8)
        torch.testing.assert_close(program(x), net(x))
    with zipfile.ZipFile(exported.path) as archive:
        assert [
            i.filename for i in archive.infolist() if i.filename.endswith((".pkl", ".pt")) and i.file_size
        ] == []


@pytest.mark.slow
def test_onnx_runtime_computes_what_the_net_computes(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = subnet().eval()
    (exported,) = export(net, EXAMPLE, tmp_path, ("onnx",))
    assert exported.max_abs_difference < 1e-5
    session = runtime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    for size in (1, 4):
        x = np.random.default_rng(0).standard_normal((size, 1, 8, 8), dtype=np.float32)
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
        np.testing.assert_allclose(found, net(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("named", [True, False])
def test_nets_with_several_inputs_can_be_written(named: bool, tmp_path: Path) -> None:
    inputs = {"image": torch.randn(1, 4), "scale": torch.ones(1, 1)}
    (exported,) = export(TwoInputs(), inputs if named else tuple(inputs.values()), tmp_path, ("pt2",))
    program = torch.export.load(exported.path).module()
    three = {"image": torch.randn(3, 4), "scale": torch.ones(3, 1)}
    assert (program(**three) if named else program(*three.values())).shape == (3, 2)


def test_the_net_is_left_untouched(tmp_path: Path) -> None:
    net = subnet().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    export(net, EXAMPLE, tmp_path)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_tied_weights_can_be_stored(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    (exported,) = export(net, torch.zeros(1, 4), tmp_path, ("safetensors",))
    assert exported.max_abs_difference == 0


def test_what_cannot_be_written_is_refused_before_anything_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match=r"unknown format 'onxx'; did you mean 'onnx'"):
        export(subnet(), EXAMPLE, tmp_path, ("safetensors", "onxx"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r'not installed here; pip install "subnet-search\[onnx\]"'):
        export(subnet(), EXAMPLE, tmp_path, ("safetensors", "onnx"))
    supernet = small_supernet()
    with pytest.raises(InvalidInput, match=r"cannot be exported; pass statistics="):
        export(extract(supernet, supernet.space.smallest(), EXAMPLE), EXAMPLE, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Forgetful(nn.Module):
    """Answers differently at every call, so no file can agree with it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


def test_a_net_that_a_format_cannot_express_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        SubnetSearchError, match=r'Branching cannot be written as "pt2": .*Leave that format out'
    ):
        export(Branching(), torch.ones(1, 3), tmp_path, ("pt2",))
    with pytest.raises(SubnetSearchError, match=r'written as "safetensors" answers differently by 1;'):
        export(Forgetful(), torch.ones(1, 3), tmp_path, ("safetensors",))
    assert list(tmp_path.iterdir()) == []


def test_of_errors_in_errors_the_innermost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def advises(net: nn.Module, example: object, path: Path) -> None:
        try:
            raise ValueError("no rule for that operator.")
        except ValueError as error:
            raise RuntimeError("step 3 of 3 failed, please file a report") from error

    monkeypatch.setitem(FORMATS, "onnx", advises)
    monkeypatch.setattr("subnet_search.exporting.check_formats", lambda names: None)
    with pytest.raises(SubnetSearchError, match=r'as "onnx": no rule for that operator\. Leave'):
        export(nn.Linear(3, 2), torch.ones(1, 3), tmp_path, ("onnx",))
