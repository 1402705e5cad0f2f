"""The dynamic stage of a run: a net that decides for each input how much of it runs, from the searched supernet."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.batches import on_device, resolve_device
from subnet_search.deciding_layers import make_layer_channel
from subnet_search.dynamic.building import Slimming, make_slimming
from subnet_search.dynamic.cutting import Place, place_at
from subnet_search.dynamic.gate_training import GateCollapse, Gathered, collapse_of, gather, train_gates
from subnet_search.dynamic.onnx_parts import export_ways
from subnet_search.dynamic.points import (
    Point,
    check_targets,
    default_targets,
    point_at,
    price_for,
    reachable,
    set_price,
    ways_at,
)
from subnet_search.dynamic.routes import Decisions, Routes, agreeing, routes_among, uniform_routes
from subnet_search.dynamic.slimming import SlimmingNet, name_of
from subnet_search.dynamic.storing import DESCRIPTION, FOLDER, store_slimming
from subnet_search.fronts import read_front
from subnet_search.measuring import measured_or_why
from subnet_search.pipeline import read_settings
from subnet_search.record import Run
from subnet_search.record.atomic import telling_what_failed
from subnet_search.settings import DynamicSettings
from subnet_search.workbench import Say, Workbench

EXAMPLES = 4  # images shown of each route, of its easiest and of its hardest
CHECKPOINT = f"{FOLDER}/checkpoint"


def change_dynamic(settings: DynamicSettings, given: Mapping[str, Any]) -> DynamicSettings:
    """The settings with those that a command line gives; None stands for what it does not give.

    Another method than the recipe's takes none of its places and milliseconds.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    if asked.get("method", settings.method) != settings.method:
        others = {"places": (), "unit": "macs"}
        if settings.unit != "macs":
            others["targets"] = ()
        asked = others | asked
    return DynamicSettings(**{**settings.model_dump(), **asked})


def make_dynamic(
    run: Run, given: Mapping[str, Any] | None = None, *, say: Say = lambda message: None
) -> None:
    """Makes the dynamic net of a run whose search is done, or does nothing if it is there with these settings.

    Args:
        run: open for writing.
        given: settings that stand over those of the recipe's [dynamic] table.
        say: is told what happens.

    Raises:
        InvalidInput: there is no gate split, a place or target that cannot be, or fewer than two routes.
    """
    bench = Workbench(run, read_settings(run), say)
    settings = change_dynamic(bench.recipe.dynamic, given or {})
    facts = {
        "settings": settings.model_dump(mode="json"),
        "weights": _checksum(bench.supernet),
    }
    if _is_made(run, facts):
        say(f"{run.folder}: dynamic is done")
        return
    say(f"{run.folder}: dynamic")
    begin = partial(_begin, run, facts)
    if settings.method == "lc":
        make_layer_channel(bench, settings, facts, begin)
        return
    _make_gates(bench, settings, facts, begin)


def _begin(run: Run, facts: Mapping[str, Any]) -> None:
    """Puts away what was made with other settings; called when all that can be refused has been looked at."""
    if not run.has(f"{FOLDER}/begun.json") or run.read_json(f"{FOLDER}/begun.json") != facts:
        _forget(run)
        run.write_json(f"{FOLDER}/begun.json", facts)


def _checksum(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_made(run: Run, facts: Mapping[str, Any]) -> bool:
    name = f"{FOLDER}/{DESCRIPTION}"
    if not run.has(name) or any(gone.startswith(f"{FOLDER}/") for gone in run.missing()):
        return False
    told = run.read_json(name)
    return all(told.get(key) == value for key, value in facts.items())


def _forget(run: Run) -> None:
    """Deletes what was made with other settings; what says that it is there goes first."""
    for name in sorted(run.names(), key=lambda name: not name.endswith(DESCRIPTION)):
        if name.startswith(f"{FOLDER}/"):
            run.delete(name)


def _make_gates(
    bench: Workbench, settings: DynamicSettings, facts: Mapping[str, Any], begin: Callable[[], None]
) -> None:
    run, splits, supernet = bench.run, bench.splits, bench.supernet
    if settings.unit != "macs":
        raise InvalidInput(
            f'targets of gates are shares of multiply-adds, got unit "{settings.unit}"; use "macs"'
        )
    if splits.gate is None:
        raise InvalidInput(
            f"run {run.folder} has no gate split, and gates learn on images that the supernet has never seen; begin a "
            "new run with [data] gate_share above 0"
        )
    places = [place_at(supernet, path) for path in settings.places] or [place_at(supernet)]
    routes = _routes(bench, settings, places)
    calibration = bench.calibration(settings.calibration_images)
    slimming = make_slimming(
        supernet,
        routes,
        calibration,
        hidden=settings.hidden,
        attention=settings.attention,
        values=settings.loss == "values",
        seed=settings.seed,
    )
    low, high = reachable(slimming)
    behind = ", ".join(
        f"{place.path} ({100 * place.macs_share:.0f} % of the MACs before it)" for place in places
    )
    bench.say(
        f"  gates after {behind}; {len(routes.leaves)} routes, {low:.3f} to {high:.3f} of the whole net's MACs"
    )
    targets = settings.targets or default_targets(slimming, settings.points)
    check_targets(slimming, targets)
    begin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GateCollapse)  # told below, as seen on search-validation
        losses = train_gates(slimming, splits, settings, run, checkpoint=CHECKPOINT, calibration=calibration)
    with on_device(resolve_device(settings.device), slimming.net):
        seen = gather(slimming.net, splits.search_val)
        points = [point_at(slimming, seen, price_for(slimming, seen, target), target) for target in targets]
        whole = point_at(slimming, seen, 0.0)
        notes = _collapses(settings, whole, points)
        for said in notes:
            bench.say(f"  {said}")
        on_test = gather(slimming.net, splits.test)  # the one look at test, after everything is chosen
    latencies = way_latencies(bench, slimming.net)
    told = [_told(slimming, point, on_test, latencies) for point in points]
    _write_examples(bench, slimming.net, seen, points)
    if "onnx" in bench.recipe.export.formats:
        _export(bench, slimming.net, points[0])
    store_slimming(
        run,
        slimming,
        supernet,
        bench.recipe.model,
        told,
        {
            **facts,
            "split": "search_val",
            "losses": list(losses),
            "as_trained": whole.to_json(),
            "routes_top1_percent": (100.0 * seen.right.double().mean(dim=0)).tolist(),
            "latency_ms": latencies,
            "reachable": [low, high],
            "notes": notes,
            "classes": splits.classes,
        },
    )
    for ending in (".json", ".safetensors"):
        run.delete(CHECKPOINT + ending)
    for row in told:
        bench.say(
            f"  {row['mean_macs'] / slimming.largest_macs:.3f} of the MACs on average: {row['top1_percent']:.2f} % on "
            f"search-validation, {row['test']['top1_percent']:.2f} % on test"
        )


def _collapses(settings: DynamicSettings, whole: Point, points: Sequence[Point]) -> list[str]:
    """What to tell of gates that decide nothing: as they were trained, or those of values at every price."""
    when, judged = "As trained, before a price of cost is set", [whole]
    if settings.loss == "values":
        when, judged = "At every target", list(points)
    found = [collapse_of(np.array(point.histogram)) for point in judged]
    return [f"{when}: {found[0]}"] if found and found[0] and all(found) else []


def _export(bench: Workbench, net: SlimmingNet, first: Point) -> None:
    """Parts and gates as ONNX, with the loop that runs them at the first operating point's price."""
    net.to("cpu")
    set_price(net, first.price)
    with telling_what_failed(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        for path in export_ways(net, bench.example, folder):
            bench.run.adopt(f"{FOLDER}/onnx/{path.name}", path)


def _routes(bench: Workbench, settings: DynamicSettings, places: Sequence[Place]) -> Routes:
    if settings.routes == "uniform":
        return uniform_routes(
            bench.supernet, places, settings.count, settings.least_share, settings.head_share
        )
    if len(places) != 1:
        raise InvalidInput(f'routes = "front" have one gate, got {len(places)} places; name one, or none')
    members = [member.config for member in read_front(bench.run)]
    chosen = agreeing(places[0], members)
    if len(chosen) < 2:
        raise InvalidInput(
            f"of the {len(members)} members of the front no two agree on all before {places[0].path!r}; set the gate "
            'earlier, or use routes = "uniform"'
        )
    return routes_among(bench.supernet, places[0], _spread(bench, chosen, settings.count))


def _spread(bench: Workbench, configs: list[Any], count: int) -> list[Any]:
    """So many of the configs, spread over their costs, the ends among them."""
    macs = bench.supernet.costs.macs(bench.space.encode(configs))
    order = np.argsort(macs)
    wanted = np.linspace(0, len(configs) - 1, min(count, len(configs))).round().astype(int)
    return [configs[order[i]] for i in dict.fromkeys(wanted.tolist())]


class OneWay(nn.Module):
    """A net with gates of which every input takes the same way; gates run all the same."""

    def __init__(self, net: SlimmingNet, way: Decisions) -> None:
        super().__init__()
        self.net, self.way = net, way
        self.input_px = getattr(net, "input_px", None)  # whoever measures it gives images of that size

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]`."""
        features = self.net.parts[name_of(())](images)
        for depth in range(len(self.way)):
            gate = self.net.gate(self.way[:depth])
            logits, weighed = gate(features)
            gate.decide(logits).tolist()
            features = self.net.parts[name_of(self.way[: depth + 1])](weighed)
        found: Tensor = features
        return found


def way_latencies(bench: Workbench, net: SlimmingNet) -> list[float | None]:
    """Milliseconds of one image along each way, gates included, measured beside the whole network.

    None for a way that could not be measured twice.
    """
    found = [
        measured_or_why(partial(bench.meter, OneWay(net, way)), f"way {way}", bench.say)[0]
        for way in net.leaves
    ]
    return [None if latency is None else latency.median_ms for latency in found]


def _told(
    slimming: Slimming, point: Point, on_test: Gathered, latencies: Sequence[float | None]
) -> dict[str, Any]:
    """An operating point as plain data: on search-validation, where its price is from, and on test."""
    test = point_at(slimming, on_test, point.price, point.target)
    mean_ms = None
    if not any(ms is None and share > 0 for ms, share in zip(latencies, point.histogram, strict=True)):
        mean_ms = sum(share * (ms or 0.0) for ms, share in zip(latencies, point.histogram, strict=True))
    return {**point.to_json(), "mean_latency_ms": mean_ms, "test": test.to_json()}


def _write_examples(bench: Workbench, net: SlimmingNet, seen: Gathered, points: Sequence[Point]) -> None:
    """Keeps images of each route at the middle operating point: the easiest and the hardest, as the first gate says."""
    if not points:
        return
    middle = points[len(points) // 2]
    ways = ways_at(net, seen, middle.price).numpy()
    easy = (
        seen.gates[()].softmax(dim=1)[:, 0].numpy()
    )  # how sure the first gate is that the cheapest way suffices
    images = torch.cat([batch for batch, _ in bench.splits.search_val])
    picked: dict[str, np.ndarray] = {}
    for way in range(len(net.leaves)):
        rows = np.flatnonzero(ways == way)
        ranked = rows[np.argsort(-easy[rows], kind="stable")]
        for name, chosen in (("easiest", ranked[:EXAMPLES]), ("hardest", ranked[::-1][:EXAMPLES])):
            picked[f"{name}_{way}"] = _as_bytes(images[torch.from_numpy(chosen.copy())])
            picked[f"{name}_{way}_classes"] = seen.labels[torch.from_numpy(chosen.copy())].numpy()
    with bench.run.writing(f"{FOLDER}/examples.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **picked)


def _as_bytes(images: Tensor) -> np.ndarray:
    """Normalised images as pixels 0 to 255, `[n, H, W, C]`, each stretched to its own range."""
    if images.ndim != 4 or not len(images):
        return np.zeros((0, 1, 1, 1), dtype=np.uint8)
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    high = images.amax(dim=(1, 2, 3), keepdim=True)
    scaled = 255 * (images - low) / (high - low).clamp_min(1e-9)
    found: np.ndarray = scaled.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return found
