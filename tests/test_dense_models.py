"""Other tasks than classification: segmentation, detection, several inputs, answers that are dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import subnet_search as ss
from search_spaces import InvalidInput
from subnet_search.measure import count_macs, count_params
from tests.test_examples import blocks, run_block

GUIDE = "dense-models.md"
QUICK = ss.TrainSettings(epochs=1, lr=0.01, device="cpu", precision="fp32")


def made_masks(count: int, side_px: int, seed: int, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    """Images of noise with a brighter square, and masks that say where it is."""
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.normal(size=(count, 3, side_px, side_px)).astype(np.float32))
    masks = torch.zeros(count, side_px, side_px, dtype=torch.int64)
    for image, mask in zip(images, masks, strict=True):
        row, column = rng.integers(0, side_px // 2, 2)
        label = int(rng.integers(1, num_classes))
        mask[row : row + side_px // 2, column : column + side_px // 2] = label
        image += label * (mask > 0)
    return images, masks


def made_boxes(count: int, side_px: int, seed: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, masks = made_masks(count, side_px, seed)
    targets = []
    for mask in masks:
        rows, columns = mask.nonzero(as_tuple=True)
        box = torch.tensor([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]).float()
        targets.append({"boxes": box, "labels": torch.tensor([1])})
    return list(images), targets


def pair_batches(seed: int, named: bool, count: int = 16) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    images, vectors = (torch.randn(count, *size, generator=generator) for size in ((3, 16, 16), (4,)))
    targets = {"kind": torch.arange(count) % 5, "weight": vectors.sum(dim=1, keepdim=True)}
    inputs = {"image": images, "vector": vectors} if named else (images, vectors)
    return [(inputs, targets)]


def call(net: nn.Module, inputs: Any) -> Any:
    return net(**inputs) if isinstance(inputs, dict) else net(*inputs)


def both_losses(answer: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(answer["kind"], targets["kind"]) + F.mse_loss(answer["weight"], targets["weight"])


def trained_further(net: nn.Module, loss_of: Callable[[nn.Module], Tensor], steps: int = 5) -> list[float]:
    """The losses of so many steps of a copy."""
    tuned = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(tuned)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def proved(
    supernet: ss.Supernet,
    config: Any,
    statistics: ss.Statistics,
    folder: Path,
    batches: Iterable[Any],
    score: Callable[[nn.Module, Any], float],
) -> nn.Module:
    """The sub-net, extracted, stored and proved."""
    net = ss.extract(supernet, config, statistics=statistics).eval()
    save_file(net.state_dict(), folder / "net.safetensors")
    proof = ss.prove(
        supernet,
        config,
        statistics,
        net,
        build=lambda: ss.extract(supernet, config, statistics=statistics).eval(),
        weights=folder / "net.safetensors",
        batches=batches,
        score=score,
    )
    assert proof.passed, proof
    assert proof.accuracy_stored == score(net, batches)
    return net


@pytest.mark.parametrize("named", [False, True])
def test_a_net_with_two_inputs_and_a_dict_of_answers_goes_the_whole_road(named: bool, tmp_path: Path) -> None:
    supernet = run_block(blocks(GUIDE, "python")[-1])["supernet"]
    if named:
        image, vector = supernet.example
        model = type(supernet.model)()
        supernet = ss.make_elastic(model, {"image": image, "vector": vector})
    train, val = pair_batches(0, named), pair_batches(1, named)

    def error(net: nn.Module, batches: Any = val) -> float:
        with torch.no_grad():
            return sum(float(both_losses(call(net, inputs), targets)) for inputs, targets in batches)

    before = error(supernet, train)
    splits = ss.Splits(train=train, search_val=val, test=pair_batches(2, named))
    step = ss.SandwichStep(distill=False, loss=both_losses)
    ss.train(supernet, splits, step, QUICK.model_copy(update={"epochs": 6}))
    assert error(supernet.eval(), train) < before

    evaluator = ss.TaskEvaluator(supernet, error, (ss.Objective("error", "min"), "macs"), calibration=train)
    result = ss.search(supernet.space, evaluator, budget=ss.Budget(4), progress=False)
    assert len(result.evaluations) == 4
    assert all(found.ok for found in result.evaluations)

    config = supernet.space.smallest()
    net = proved(supernet, config, ss.recalibrate(supernet, config, train), tmp_path, val, error)
    losses = trained_further(net, lambda tuned: both_losses(call(tuned, train[0][0]), train[0][1]))
    assert losses[-1] < losses[0]
    exported = ss.export(net, supernet.example, tmp_path, ("safetensors", "pt2"))
    assert [file.format for file in exported] == ["safetensors", "pt2"]


def test_soft_answers_and_a_loss_of_ones_own_exclude_each_other() -> None:
    with pytest.raises(InvalidInput, match="a loss of your own needs distill=False"):
        ss.SandwichStep(loss=both_losses)


def test_batches_whose_parts_differ_in_length_are_refused() -> None:
    supernet = run_block(blocks(GUIDE, "python")[-1])["supernet"]
    [((images, vectors), targets)] = pair_batches(0, named=False)
    splits = ss.Splits(train=[((images, vectors[:9]), targets)], search_val=[], test=[])
    with pytest.raises(InvalidInput, match="one target per input, got 16 inputs, 9 targets"):
        ss.train(supernet, splits, ss.SandwichStep(distill=False, loss=both_losses), QUICK)


def test_images_alone_are_asked_for_where_a_metric_reads_logits() -> None:
    supernet = run_block(blocks(GUIDE, "python")[-1])["supernet"]
    train, val = pair_batches(0, named=False), pair_batches(1, named=False)
    with pytest.raises(InvalidInput, match="TaskEvaluator"):
        ss.make_evaluator(supernet, ss.Splits(train=train, search_val=val, test=[]))


@pytest.mark.slow
def test_the_guides_segmentation_network_goes_the_whole_road(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(GUIDE, "python")[:3])
    for long, short in {
        "= 21, 224": "= 4, 64",
        "num_classes=NUM_CLASSES": "num_classes=NUM_CLASSES, weights_backbone=None",
        "epochs=30": 'epochs=1, device="cpu"',
        "Budget(300)": "Budget(3)",
    }.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    train, val, test = ([made_masks(8, 64, seed)] for seed in range(3))
    names = run_block(code, train_batches=train, val_batches=val, test_batches=test)
    supernet, best, measure = names["supernet"], names["best"], names["mean_iou_percent"]
    assert all(0 <= found.values[0] <= 100 for found in names["result"].front)
    statistics = names["evaluator"].statistics_of(best)

    def score(net: nn.Module, batches: Any) -> float:
        with torch.no_grad():
            return float(measure(net))

    net = proved(supernet, best, statistics, tmp_path, val, score)
    assert 2 * count_macs(net, supernet.example) <= supernet.coverage["largest"]["macs"]
    [written] = ss.export(net, supernet.example, tmp_path / "onnx", ("onnx",))
    assert written.max_abs_difference < 1e-3
    assert {file.name for file in (tmp_path / "segmenter").iterdir()} == {"net.safetensors", "net.pt2"}


@pytest.mark.slow
def test_the_guides_detector_is_searched_with_the_users_metric_and_gets_a_smaller_backbone() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "min_size": 64, "max_size": 64}
    options |= {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}
    code = blocks(GUIDE, "python")[3]
    for long, short in {"Budget(300)": "Budget(3)", "num_classes=3": "num_classes=3, **options"}.items():
        assert code.count(long) == 1
        code = code.replace(long, short)
    train, val = ([made_boxes(2, 64, seed)] for seed in (0, 1))
    names = run_block(code, options=options, train_batches=train, val_batches=val)
    supernet, detector, best = names["supernet"], names["detector"], names["best"]
    assert "depth" in supernet.coverage["freedoms"]
    assert supernet.coverage["smallest"]["macs"] < 0.1 * supernet.coverage["largest"]["macs"]
    assert len(names["result"].evaluations) == 3
    assert all(found.ok for found in names["result"].evaluations)

    row = supernet.space.encode([best])
    assert count_params(detector.backbone) == supernet.costs.params(row)[0]
    wanted = next(found.values[0] for found in names["result"].front if found.config == best)
    with torch.no_grad():
        assert float(names["mean_best_iou_percent"](detector.eval())) == pytest.approx(wanted, abs=1e-3)
    [(images, targets)] = train
    losses = trained_further(detector, lambda net: sum(net(images, copy.deepcopy(targets)).values()), 3)  # type: ignore[arg-type,return-value]
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_thawed_batch_norms_compute_the_same_and_leave_a_backbone_its_own_classes() -> None:
    code = blocks(GUIDE, "python")[3]
    names = run_block(code[: code.index("\ndetector =")])
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    ).eval()
    for norm in backbone.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    thawed = copy.deepcopy(backbone)
    names["thaw"](thawed)
    images = torch.randn(2, 3, 64, 64)
    for name, wanted in backbone(images).items():
        torch.testing.assert_close(thawed(images)[name], wanted, rtol=1e-3, atol=1e-4)
    supernet = ss.make_elastic(thawed, images)
    assert supernet.coverage["form"] == "own classes"
    assert supernet.uses_batch_norm
    assert supernet(torch.randn(1, 3, 96, 32))["0"].shape[-2:] == (24, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_segmentation_networks_of_torchvision_convert(name: str) -> None:
    options = {"weights": None, "weights_backbone": None, "num_classes": 4, "aux_loss": True}
    model = getattr(segmentation, name)(**options).eval()
    images = made_masks(2, 64, seed=0)[0]
    supernet = ss.make_elastic(model, images).eval()
    with torch.no_grad():
        answer = supernet(images)
        assert all(torch.equal(answer[key], wanted) for key, wanted in model(images).items())
    assert set(answer) == {"out", "aux"}
    assert supernet.coverage["reachable_macs_share"] > 0.95

    config = supernet.space.smallest()
    net = ss.extract(supernet, config, statistics=ss.recalibrate(supernet, config, [images]))
    row = supernet.space.encode([config])
    assert count_macs(net, images[:1]) == supernet.costs.macs(row)[0] < 0.1 * count_macs(model, images[:1])
    loss = F.cross_entropy(supernet.train()(images)["aux"], torch.zeros(2, 64, 64, dtype=torch.int64))
    loss.backward()
