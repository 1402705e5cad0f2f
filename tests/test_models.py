from __future__ import annotations

import io
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search import small_models
from subnet_search.elastic import make_elastic
from subnet_search.models import load_model, load_weights

DATA = Path(os.environ.get("SUBNET_SEARCH_DATA", Path(__file__).parents[2] / "shared" / "data"))


def test_a_torchvision_network_is_built_by_name_with_options() -> None:
    model = load_model("torchvision:resnet18", options={"num_classes": 7})
    assert model.fc.out_features == 7


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_weights_come_from_a_local_file(ending: str, tmp_path: Path) -> None:
    saved = small_models.resnet20(width=4)
    state = {name: tensor for name, tensor in saved.state_dict().items() if "sources" not in name}
    path = tmp_path / f"weights{ending}"
    if ending == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        save_file(state, path)
    loaded = load_model("subnet_search.small_models:resnet20", str(path), {"width": 4})
    assert all(torch.equal(t, saved.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_loading_weights_does_not_run_the_models_own_loading_code(tmp_path: Path) -> None:
    model = load_model("torchvision:mnasnet0_5")  # its own code demands a version number
    save_file(dict(model.state_dict()), tmp_path / "w.safetensors")
    other = load_weights(load_model("torchvision:mnasnet0_5"), tmp_path / "w.safetensors")
    assert torch.equal(next(other.parameters()), next(model.parameters()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "a model is named 'torchvision:NAME'"),
        ("torchvision:resnet19", "did you mean 'resnet18'"),
        ("no_such_package.models:net", "cannot be imported: No module named 'no_such_package'"),
        ("subnet_search.small_models:resnet21", "has no callable 'resnet21'; did you mean .*'resnet20'"),
        ("builtins:dict", "must return Module, got dict"),
        ("builtins:open", "fails: TypeError"),
    ],
)
def test_models_that_cannot_be_had_are_refused_with_a_way_out(name: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_model(name)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InvalidInput, match="unexpected keyword argument 'depth'"):
        load_model("subnet_search.small_models:resnet20", options={"depth": 3})


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04 torn"])
@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_damaged_weight_files_are_refused(content: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_weights(nn.Linear(2, 2), path)


def test_a_missing_weight_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"there is no weight file .*w\.npz"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.npz")


def test_weights_of_another_network_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InvalidInput, match=r"the weight bias must be \[2\] for Linear, got \[3\]"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")


def test_a_broken_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InvalidInput, match="Install torch and torchvision together"):
        load_model("torchvision:resnet18")


def test_a_timm_network_is_built_by_name_with_options() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    model = load_model("timm:test_vit", options={"num_classes": 7})
    assert model.head.out_features == 7


@pytest.mark.parametrize(
    ("weights", "asked"),
    [
        (None, ("test_vit", False)),
        ("DEFAULT", ("test_vit", True)),
        ("r160_in1k", ("test_vit.r160_in1k", True)),
    ],
)
def test_timms_weights_are_asked_for_by_tag(
    weights: str | None, asked: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        seen.append((name, pretrained))
        return nn.Linear(2, 2)

    timm = types.SimpleNamespace(list_models=lambda: ["test_vit"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", timm)
    load_model("timm:test_vit", weights)
    assert seen == [asked]


def test_a_timm_network_may_have_weights_of_a_file(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    saved = load_model("timm:test_vit")
    save_file(dict(saved.state_dict()), tmp_path / "w.safetensors")
    loaded = load_model("timm:test_vit", str(tmp_path / "w.safetensors"))
    assert all(torch.equal(t, saved.state_dict()[name]) for name, t in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("timm:resnet19", None, "timm has no model 'resnet19'; did you mean"),
        ("timm:test_vit", "no_such_tag", "with weights='no_such_tag' and options {} cannot be built"),
    ],
)
def test_timm_networks_that_cannot_be_had_are_refused(name: str, weights: str | None, message: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(InvalidInput, match=message):
        load_model(name, weights)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidInput, match=r"pip install 'subnet-search\[timm\]'"):
        load_model("timm:resnet18")


class Lazy(nn.Module):
    def __init__(self, seen: bool) -> None:
        super().__init__()
        self.conv, self.linear = nn.LazyConv2d(16, 3), nn.Linear(16, 3)
        if seen:
            self(torch.zeros(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().mean((2, 3)))


def test_a_lazy_network_is_refused_unless_it_has_seen_an_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lazy_test", types.SimpleNamespace(net=Lazy))
    assert make_elastic(load_model("lazy_test:net", options={"seen": True}), torch.zeros(1, 1, 8, 8)).groups
    for build in (
        lambda: load_model("lazy_test:net", options={"seen": False}),
        lambda: make_elastic(Lazy(seen=False), torch.zeros(1, 1, 8, 8)),
    ):
        with pytest.raises(
            InvalidInput, match="conv is a LazyConv2d whose size is not known yet; run the network"
        ):
            build()


@pytest.mark.parametrize(("depth", "params"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_small_resnets_have_the_published_number_of_parameters(depth: int, params: int) -> None:
    model = getattr(small_models, f"resnet{depth}")()
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "cifar10-resnet-weights").exists(), reason="the published weights are not here"
)
def test_resnet20_with_published_weights_reaches_the_published_accuracy() -> None:
    """81.03 % on the 10,000 JPEG test images, as measured by the people who gathered the data."""
    from PIL import Image

    weights = DATA / "cifar10-resnet-weights" / "resnet20.npz"
    model = load_model("subnet_search.small_models:resnet20", str(weights)).eval()
    with np.load(DATA / "cifar10-jpeg" / "cifar10_test_jpeg.npz", allow_pickle=False) as arrays:
        jpeg, offset, label = arrays["jpeg"], arrays["offset"], arrays["label"].astype(np.int64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    correct = 0
    with torch.inference_mode():
        for first in range(0, len(label), 500):
            ends = zip(offset[first : first + 500], offset[first + 1 : first + 501], strict=True)
            images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg[a:b].tobytes()))) for a, b in ends])
            x = ((torch.from_numpy(images).float() / 255 - mean) / std).permute(0, 3, 1, 2)
            correct += int((model(x).argmax(1).numpy() == label[first : first + 500]).sum())
    assert 100 * correct / len(label) == pytest.approx(81.03, abs=0.1)
