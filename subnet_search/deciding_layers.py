"""The dynamic stage by method "lc": blocks and groups of channels are left out for each input."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from search_spaces import InvalidInput
from subnet_search.batches import on_device, resolve_device
from subnet_search.dynamic.layer_channel import LayerChannelNet
from subnet_search.dynamic.layer_channel_training import (
    CostModel,
    Looked,
    latency_model,
    look,
    macs_model,
    reachable_costs,
    threshold_for,
    train_layer_channel,
)
from subnet_search.dynamic.onnx_layers import check_pieces, export_layers
from subnet_search.dynamic.storing import FOLDER
from subnet_search.dynamic.storing_layers import store_layer_channel
from subnet_search.record.atomic import telling_what_failed
from subnet_search.settings import LATENCY, DynamicSettings
from subnet_search.workbench import Workbench

CHECKPOINT = f"{FOLDER}/checkpoint"
PATTERN_IMAGES = 512  # of training, on which is counted which parts of channels are kept together
ALIKE = 0.01  # standard deviation of an input's cost, as a share of the whole network's: all decisions are the same


def make_layer_channel(
    bench: Workbench, settings: DynamicSettings, facts: Mapping[str, Any], begin: Callable[[], None]
) -> None:
    """Trains an LC-Net from the supernet's largest net, and finds the thresholds of its operating points.

    Args:
        bench: of a run whose search is done.
        settings: how.
        facts: what is to stand in the net's description.
        begin: called when nothing is left that could be refused, before training.

    Raises:
        InvalidInput: no block can be skipped, or a target is out of reach.
    """
    if settings.places:
        raise InvalidInput(
            f'places are where the gates of method "ds" stand, got {", ".join(settings.places)} with method "lc", '
            "which scores every block that may be skipped; leave them out, or keep blocks whole with [elastic] "
            "exclude"
        )
    run, splits, supernet = bench.run, bench.splits, bench.supernet
    net, device = (
        LayerChannelNet(supernet, settings.channel_groups, settings.seed),
        resolve_device(settings.device),
    )
    bench.say(
        f"  {len(net.blocks)} blocks are scored, in {net.base_macs / net.total_macs:.2f} of the MACs nothing is"
    )
    with on_device(device, net):
        timed = settings.unit == LATENCY
        cost = latency_model(net, bench.example.to(device), settings.seed) if timed else macs_model(net)
    targets = tuple(target / cost.whole if timed else target for target in settings.targets)
    _check_targets(net, cost, bench.example, targets)
    if "onnx" in bench.recipe.export.formats:
        check_pieces(net, bench.example)
    begin()
    losses = train_layer_channel(net, splits, settings, cost, run, teacher=supernet, checkpoint=CHECKPOINT)
    with on_device(device, net):

        @cache
        def on_val(threshold: float) -> Looked:
            return look(net, splits.search_val, cost, threshold)

        low, high = reachable_costs(on_val)
        targets = targets or tuple(np.linspace(low, min(high, 1.0), settings.points + 2)[1:-1].tolist())
        points = [_point(net, cost, on_val, threshold_for(on_val, target), target) for target in targets]
        for point in points:  # the one look at test, after everything is chosen
            point["test"] = _told(cost, look(net, splits.test, cost, point["threshold"]))
    notes = [
        f"at {point['target']:.3f} all inputs cost nearly the same: the scores do not depend on the input. Train "
        "longer (epochs), or with an aim nearer to this target"
        for point in points
        if point["spread_cost"] < ALIKE
    ]
    for note in notes:
        bench.say(f"  {note}")
    more = {
        "split": "search_val",
        "losses": list(losses),
        "unit": cost.unit,
        "whole": cost.whole,
        "notes": notes,
    }
    found = {**facts, **more, "reachable": [low, high], "lines": [list(line) for line in cost.lines]}
    size = bench.example.shape[1:]
    if "onnx" in bench.recipe.export.formats:
        _export(bench, net, points[0]["threshold"])
    store_layer_channel(run, net, bench.recipe.model, bench.recipe.elastic, size, points, found)
    for ending in (".json", ".safetensors"):
        run.delete(CHECKPOINT + ending)
    for point in points:
        bench.say(
            f"  {point['mean_cost']:.3f} of the {cost.unit} on average: {point['top1_percent']:.2f} % on "
            f"search-validation, {point['test']['top1_percent']:.2f} % on test"
        )


def _export(bench: Workbench, net: LayerChannelNet, threshold: float) -> None:
    """Pieces, scores and blocks as ONNX, with the loop that runs them at the first operating point's threshold."""
    net.to("cpu")
    images = [images for images, _ in bench.calibration(PATTERN_IMAGES)]
    with telling_what_failed(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        for path in export_layers(net, images, folder, threshold):
            bench.run.adopt(f"{FOLDER}/onnx/{path.name}", path)


def _check_targets(net: LayerChannelNet, cost: CostModel, example: Tensor, targets: Sequence[float]) -> None:
    """Refuses targets that no threshold could reach, however the scores were trained."""
    nothing = look(net, [(example, torch.zeros(len(example), dtype=torch.int64))], cost, 1.0)
    least, unit = float(nothing.costs.mean()), 1.0
    told = "of the whole network's multiply-adds"
    if cost.unit == LATENCY:
        unit, told = cost.whole, "milliseconds"
    for target in targets:
        if not least <= target < 1:
            raise InvalidInput(
                f"a mean cost of {target * unit:g} {told} cannot be reached: without any block it is "
                f"{least * unit:.4g}, and the whole network's is {unit:.4g}; choose a target in between"
            )


def _point(
    net: LayerChannelNet, cost: CostModel, on_val: Any, threshold: float, target: float
) -> dict[str, Any]:
    seen: Looked = on_val(threshold)
    used = {block.path: float(share) for block, share in zip(net.blocks, seen.used, strict=True)}
    return {"target": target, "threshold": threshold, **_told(cost, seen), "blocks": used}


def _told(cost: CostModel, seen: Looked) -> dict[str, Any]:
    found = {
        "mean_cost": float(seen.costs.mean()),
        "spread_cost": float(seen.costs.std()),
        "mean_macs": float(seen.macs.mean()),
        "spread_macs": float(seen.macs.std()),
        "top1_percent": 100.0 * float(seen.right.mean()),
    }
    return found | ({"mean_latency_ms": found["mean_cost"] * cost.whole} if cost.unit == LATENCY else {})
