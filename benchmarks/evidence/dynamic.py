"""Networks that decide for each input how much of them runs, beside static sub-nets and controls of the same supernet.

One network on one data set with one seed is a folder with a file for each finished part, so a broken-off call goes on
with the next part. What is compared comes from one supernet, so its training is the same for all; nothing was chosen on
test.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.evidence.dynamic_page import COMMAND, hull, whole, write_page
from benchmarks.evidence.pss_bench import BEDS, MEANS, STDS
from benchmarks.evidence.published import RESULTS, published, restore
from benchmarks.evidence.small_vit import SmallViT
from search_spaces import InvalidInput, SubnetConfig
from subnet_search import extract, finetune, make_elastic, rank, recalibrate, taylor_ranking, train
from subnet_search.batches import Steps, first_images
from subnet_search.data import Splits, load_splits
from subnet_search.deciding import OneWay
from subnet_search.dynamic.building import Slimming, make_slimming
from subnet_search.dynamic.cutting import place_at
from subnet_search.dynamic.gate_training import Gathered, gather, train_gates
from subnet_search.dynamic.layer_channel import LayerChannelNet
from subnet_search.dynamic.layer_channel_training import look, macs_model, threshold_for, train_layer_channel
from subnet_search.dynamic.points import price_for, reachable, ways_at
from subnet_search.dynamic.routes import Routes, uniform_routes
from subnet_search.elastic import Supernet
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.measure import LatencyMeter
from subnet_search.measure.accuracy import answers
from subnet_search.memory import keep_freed_memory
from subnet_search.models import load_model
from subnet_search.record import create_run, open_run
from subnet_search.record.atomic import write_whole
from subnet_search.settings import (
    DataSettings,
    DynamicSettings,
    ElasticSettings,
    FinetuneSettings,
    ModelSettings,
    TrainSettings,
)
from subnet_search.small_models import resnet20
from subnet_search.training import Among, BootstrapStep, PlainStep, SandwichStep, Step
from subnet_search.training.loop import length_of

RUNS = Path("runs") / "dynamic"
SEEDS = (61, 62, 63)  # on 60 the gates' loss and the number of routes were tried, looking at test
LAYER_EPOCHS, LAYER_LR, LAYER_TARGETS = 3, 0.02, (0.35, 0.5, 0.65, 0.8)
BATCH, STATISTICS_IMAGES, LEVELS, ROUTES, POINTS = 128, 2000, 8, 4, 5
SANDWICH_EPOCHS = 6  # of the control; the bootstrapped supernet gets as many forward multiply-adds


@dataclass(frozen=True)
class Network:
    """A network of the grid, and how long it is trained alone before it becomes a supernet."""

    title: str
    build: Callable[[int, int], nn.Module]  # channels and size of an image
    elastic: ElasticSettings
    epochs: int
    lr: float


NETWORKS = {
    "resnet": Network(
        "ResNet-20, width 8",
        lambda channels, size: resnet20(width=8, in_channels=channels),
        ElasticSettings(step=1, min_share=0.25),
        6,
        0.1,
    ),
    "vit": Network("ViT, 4 blocks of 48", SmallViT, ElasticSettings(step=4, min_share=0.25), 8, 0.05),
}
SANDWICH = {"loss": "sandwich"}
VARIANTS: dict[str, dict[str, Any]] = {
    "values": {},
    "values, eight routes": {"routes": 8},
    "values, eight routes, later gate": {"routes": 8, "least_before": 0.3},
    "DS": SANDWICH,
    "DS, give up": {**SANDWICH, "hard": "give_up"},
    "DS, no guide": {**SANDWICH, "guide": 0.0},
    "DS, attention": {**SANDWICH, "attention": True, "epochs": 15},
    "DS, later gate": {**SANDWICH, "least_before": 0.3},
}


@dataclass
class Bed:
    """One network, data set and seed: data, the supernet, and the sub-nets it was trained for."""

    network: Network
    name: str
    seed: int
    folder: Path

    def __post_init__(self) -> None:
        bed = BEDS[self.name]
        self.splits: Splits = load_splits(
            DataSettings(
                source=f"npz:{bed.source()}",
                batch_size=BATCH,
                search_val_share=0.1,
                gate_share=0.05,
                seed=self.seed,
                mean=MEANS[bed.channels],
                std=STDS[bed.channels],
                augment=bed.augment,
            ),
            ModelSettings(name="subnet_search.small_models:resnet20"),
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = self.network.build(bed.channels, bed.size)
        example = torch.zeros(1, bed.channels, bed.size, bed.size)
        self.supernet: Supernet = make_elastic(model, example, self.network.elastic)
        self.place = place_at(self.supernet)
        space, levels = self.supernet.space, np.linspace(1, 0.25, LEVELS)
        behind = uniform_routes(self.supernet, [self.place], LEVELS).configs.values()
        everywhere = [space.uniform(float(level)) for level in levels]
        found = dict.fromkeys([space.largest(), *behind, *everywhere])
        macs = self.supernet.costs.macs(space.encode(list(found)))
        self.family: list[SubnetConfig] = [list(found)[i] for i in np.argsort(-macs, kind="stable")]

    def images(self) -> list[Any]:
        assert self.splits.calibration is not None
        return first_images(self.splits.calibration, STATISTICS_IMAGES, self.seed)

    def shares(self, configs: Sequence[SubnetConfig]) -> np.ndarray:
        space = self.supernet.space
        macs = self.supernet.costs.macs(space.encode([space.largest(), *configs]))
        return np.asarray(macs[1:] / macs[0])

    def weights(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def load(self, name: str) -> None:
        self.supernet.model.load_state_dict(safetensors.torch.load_file(self.weights(name)))
        self.supernet.eval()

    def trained(self, name: str) -> None:
        """The network alone, then ranked, then as a supernet: bootstrapped, or by the sandwich rule at equal cost."""
        if not self.weights("teacher").exists():
            net = self.network
            settings = TrainSettings(epochs=net.epochs, lr=net.lr, seed=self.seed)
            self._store("teacher", PlainStep(), settings)
        sampling = Among(tuple(self.family))
        mean, least = self.shares(self.family[1:]).mean(), self.shares(self.family[-1:])[0]
        sandwich = 1 + least + 2 * mean
        bootstrap = sandwich + 1  # the averaged net's answers
        epochs = round(SANDWICH_EPOCHS * sandwich / bootstrap)
        steps: dict[str, tuple[Step, int]] = {
            "sandwich": (SandwichStep(sampling=sampling), SANDWICH_EPOCHS),
            "bootstrap": (BootstrapStep(sampling=sampling), epochs),
        }
        step, count = steps[name]
        if not self.weights(name).exists():
            self.load("teacher")
            self.supernet.reorder(rank(self.supernet, self.images()[:8], taylor_ranking))
            settings = TrainSettings(epochs=count, lr=self.network.lr / 2, seed=self.seed)
            self._store(name, step, settings)
        self.load(name)

    def _store(self, name: str, step: Step, settings: TrainSettings) -> None:
        """Trains, from the last checkpoint if there is one, and keeps the weights."""
        start_s, folder = time.perf_counter(), self.folder / "run"
        with open_run(folder) if (folder / "settings.toml").exists() else create_run(folder, "") as run:
            train(self.supernet, self.splits, step, settings, run, checkpoint=name)
        print(f"{self.folder}: {name} in {time.perf_counter() - start_s:.0f} s", flush=True)
        state = {key: tensor.contiguous().clone() for key, tensor in self.supernet.model.state_dict().items()}
        write_whole(self.weights(name), safetensors.torch.save(state))


def static(bed: Bed) -> dict[str, Any]:
    """Every sub-net of the family: on search-validation, by which those to compare with are chosen, and on test."""
    images, rows = bed.images(), []
    for config, share in zip(bed.family, bed.shares(bed.family).tolist(), strict=True):
        with bed.supernet.subnet(config, recalibrate(bed.supernet, config, images)):
            right = {name: right_on(bed.supernet, bed.splits, name) for name in ("search_val", "test")}
        percents = {name: 100 * float(found.mean()) for name, found in right.items()}
        rows.append({"key": config.key, "share": share, **percents, "right": packed(right["test"])})
    return {"rows": rows}


def right_on(net: nn.Module, splits: Splits, name: str) -> np.ndarray:
    logits, targets = answers(net, getattr(splits, name))
    found: np.ndarray = (logits.argmax(1) == targets).numpy()
    return found


def packed(right: np.ndarray) -> str:
    return np.packbits(right).tobytes().hex()


def routes_of(bed: Bed, count: int = ROUTES, least_before: float | None = None) -> tuple[Routes, float]:
    place = bed.place if least_before is None else place_at(bed.supernet, least_before=least_before)
    return uniform_routes(bed.supernet, [place], count), place.macs_share


def gated(bed: Bed, options: Mapping[str, Any]) -> dict[str, Any]:
    """One variant of gates: its operating points, beside random routing with the same mix."""
    given = dict(options)
    routes, before = routes_of(bed, given.pop("routes", ROUTES), given.pop("least_before", None))
    settings = DynamicSettings(device="cpu", seed=bed.seed, **given)
    slimming = make_slimming(
        bed.supernet,
        routes,
        bed.images(),
        attention=settings.attention,
        values=settings.loss == "values",
        seed=bed.seed,
    )
    losses = train_gates(slimming, bed.splits, settings, calibration=bed.images())
    seen, test = (gather(slimming.net, getattr(bed.splits, name)) for name in ("search_val", "test"))
    low, high = reachable(slimming)
    points = []
    for target in np.linspace(low, high, POINTS + 2)[1:-1]:
        price = price_for(slimming, seen, float(target))
        points.append(
            measured(
                slimming, seen, test, ways_at(slimming.net, seen, price), ways_at(slimming.net, test, price)
            )
        )
    return {
        "before": before,
        "place": routes.paths[0],
        "reachable": [low, high],
        "losses": list(losses),
        "routes": [100 * float(x) for x in test.right.double().mean(dim=0)],
        "cheapest right": 100 * float(test.right.any(dim=1).double().mean()),
        "points": points,
    }


def measured(
    slimming: Slimming, seen: Gathered, test: Gathered, on_val: Tensor, on_test: Tensor
) -> dict[str, Any]:
    shares = slimming.shares()
    right = test.right.gather(1, on_test[:, None])[:, 0].numpy()
    mix = torch.bincount(on_test, minlength=len(shares)).double() / len(on_test)
    val = seen.right.gather(1, on_val[:, None])[:, 0]
    return {
        "share": float(shares[on_test].mean()),
        "search_val_share": float(shares[on_val].mean()),
        "search_val": 100 * float(val.double().mean()),
        "test": 100 * float(right.mean()),
        "right": packed(right),
        "mix": mix.tolist(),
        "random": 100 * float((test.right.double() @ mix).mean()),
    }


def cascade(bed: Bed) -> dict[str, Any]:
    """The smallest route first; where its largest probability is low, the largest one, too, behind the same head."""
    routes, before = routes_of(bed)
    slimming = make_slimming(bed.supernet, routes, bed.images(), seed=bed.seed)
    seen, test = (gather(slimming.net, getattr(bed.splits, name)) for name in ("search_val", "test"))
    gate = slimming.net.gate(()).macs() / slimming.largest_macs
    least, most = (float(slimming.shares()[i]) - gate for i in (0, -1))
    both = most + least - before  # the head runs once
    sure = {
        name: one.answers[:, 0].softmax(1).amax(1).numpy() for name, one in (("val", seen), ("test", test))
    }
    points = []
    for target in np.linspace(least, most, POINTS + 2)[1:-1]:
        again = (target - least) / (both - least)
        bar = float(np.quantile(sure["val"], again))
        harder = torch.from_numpy(sure["test"] < bar)
        right = torch.where(harder, test.right[:, -1], test.right[:, 0]).numpy()
        share = least + (both - least) * float(harder.double().mean())
        val = torch.where(torch.from_numpy(sure["val"] < bar), seen.right[:, -1], seen.right[:, 0])
        points.append(
            {
                "share": share,
                "search_val": 100 * float(val.double().mean()),
                "test": 100 * float(right.mean()),
                "right": packed(right),
            }
        )
    return {"points": points}


def tuned(bed: Bed) -> dict[str, Any]:
    """Controls of the LC-Net, which is trained on: static sub-nets, at the same price and with the same teacher."""
    known = hull(json.loads((bed.folder / "static.json").read_text("utf-8"))["rows"])
    keys = {min(known, key=lambda row: abs(row["share"] - target))["key"] for target in (*LAYER_TARGETS, 1.0)}
    configs, images, rows = [config for config in bed.family if config.key in keys], bed.images(), []
    for config, share in zip(configs, bed.shares(configs).tolist(), strict=True):
        net = extract(bed.supernet, config, bed.supernet.example, recalibrate(bed.supernet, config, images))
        steps = round(
            LAYER_EPOCHS * length_of(bed.splits.train) * 2 / (1 + share)
        )  # a teacher's answers are paid, too
        part = dataclasses.replace(bed.splits, train=Steps(bed.splits.train, steps, bed.seed))
        settings = FinetuneSettings(epochs=1, lr=LAYER_LR, warmup_epochs=0.05, device="cpu", seed=bed.seed)
        net = finetune(net, part, settings, teacher=bed.supernet).net
        right = {name: right_on(net, bed.splits, name) for name in ("search_val", "test")}
        percents = {name: 100 * float(found.mean()) for name, found in right.items()}
        rows.append({"key": config.key, "share": share, **percents, "right": packed(right["test"])})
    return {"rows": rows}


def layers(bed: Bed) -> dict[str, Any]:
    """An LC-Net from the supernet's largest net, trained for some epochs more; networks of their own classes alone."""
    if isinstance(bed.supernet.model, RunsGraph):
        return {"points": []}
    net = LayerChannelNet(bed.supernet, seed=bed.seed)
    cost = macs_model(net)
    settings = DynamicSettings(method="lc", epochs=LAYER_EPOCHS, lr=LAYER_LR, device="cpu", seed=bed.seed)
    losses = train_layer_channel(net, bed.splits, settings, cost, teacher=bed.supernet)
    on_val = functools.cache(lambda threshold: look(net, bed.splits.search_val, cost, threshold))
    points = []
    for target in LAYER_TARGETS:
        try:
            threshold = threshold_for(on_val, target)
        except InvalidInput as unreachable:
            print(unreachable, flush=True)
            continue
        test, val = look(net, bed.splits.test, cost, threshold), on_val(threshold)
        points.append(
            {
                "share": float(test.costs.mean()),
                "spread": float(test.costs.std()),
                "search_val": 100 * float(val.right.mean()),
                "test": 100 * float(test.right.mean()),
                "right": packed(test.right),
            }
        )
    return {"points": points, "epochs": LAYER_EPOCHS, "losses": list(losses)}


def speed() -> None:
    """ResNet-50 at 224 pixels, one thread, batch 1, weights by chance: the time of each way beside the whole net's."""
    path = RUNS / "speed.json"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = load_model("torchvision:resnet50", None, {}).eval()
    example = torch.randn(1, 3, 224, 224)
    supernet = make_elastic(model, example, ElasticSettings(step=32, min_share=0.25))
    routes = uniform_routes(supernet, [place_at(supernet)], 4)
    slimming = make_slimming(supernet, routes, [(torch.randn(4, 3, 224, 224), torch.zeros(4))])
    meter = LatencyMeter(model, example)
    rows = []
    for way, share in zip(slimming.net.leaves, slimming.shares().tolist(), strict=True):
        found = meter(OneWay(slimming.net, way))
        share_ms = [
            value / meter.reference.median_ms for value in (found.median_ms, found.low_ms, found.high_ms)
        ]
        rows.append({"share": share, "time": share_ms[0], "low": share_ms[1], "high": share_ms[2]})
    told = {"place": routes.paths[0], "rows": rows, "whole_ms": meter.reference.median_ms}
    write_whole(path, (json.dumps(told) + "\n").encode())
    print(json.dumps(told), flush=True)


def parts() -> dict[str, Callable[[Bed], dict[str, Any]]]:
    """All parts of one bed by file name, the most important first; each works on the bootstrapped supernet."""
    found: dict[str, Callable[[Bed], dict[str, Any]]] = {"static": static}
    for name, options in VARIANTS.items():
        found[name] = functools.partial(gated, options=options)
    found["cascade"] = cascade
    found["static, tuned"] = tuned
    found["LC"] = layers
    return found


def run_bed(network: str, name: str, seed: int) -> None:
    """All parts of one bed that are not there yet."""
    folder = RUNS / f"{network}-{name}" / str(seed)
    if not folder.exists() and str(seed) in whole().get(title_of(network, name), {}):
        return
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {part: work for part, work in parts().items() if not (folder / f"{part}.json").exists()}
    if not wanted and (folder / "static, sandwich.json").exists():
        return
    bed = Bed(NETWORKS[network], name, seed, folder)
    bed.trained("bootstrap")
    for part, work in wanted.items():
        start_s = time.perf_counter()
        found = work(bed)
        seconds = time.perf_counter() - start_s
        write_whole(folder / f"{part}.json", (json.dumps({**found, "seconds": seconds}) + "\n").encode())
        print(f"{folder}: {part} in {seconds:.0f} s", flush=True)
    publish()
    bed.trained("sandwich")
    write_whole(folder / "static, sandwich.json", (json.dumps(static(bed)) + "\n").encode())


def title_of(network: str, bed: str) -> str:
    return f"{NETWORKS[network].title}, {BEDS[bed].title}"


def publish() -> None:
    """Makes the page from all that is there."""
    beds: dict[str, Any] = {}
    for network, name in itertools.product(NETWORKS, BEDS):
        for folder in sorted((RUNS / f"{network}-{name}").glob("*")):
            found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
            if "static" in found:
                beds.setdefault(title_of(network, name), {})[folder.name] = found
    speeds = json.loads((RUNS / "speed.json").read_text("utf-8")) if (RUNS / "speed.json").exists() else None
    write_page(
        beds,
        tuple(VARIANTS),
        len(SEEDS),
        list(itertools.starmap(title_of, itertools.product(NETWORKS, BEDS))),
        speeds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("network", nargs="?", choices=(*NETWORKS, "speed"), help="default: all")
    parser.add_argument("bed", nargs="?", choices=tuple(BEDS), help="default: all")
    parser.add_argument("seeds", nargs="*", type=int, help=f"default: {', '.join(map(str, SEEDS))}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if known := published("dynamic").get("speed"):
        restore([(RUNS / "speed.json", known)])
    if arguments.network in (None, "speed"):
        speed()
    if arguments.network == "speed":
        publish()
        return
    networks = [arguments.network] if arguments.network else list(NETWORKS)
    beds = [arguments.bed] if arguments.bed else list(BEDS)
    for seed, network, name in itertools.product(arguments.seeds or SEEDS, networks, beds):
        run_bed(network, name, seed)
        publish()
    publish()
    print((RESULTS / "dynamic.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
