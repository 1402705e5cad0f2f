"""Sub-nets of smaller images through the product: evaluated, searched, tuned, timed, exported, loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetConfig
from subnet_search import load_subnet, load_subnets, save_subnets
from subnet_search.cli import run_command
from subnet_search.elastic import Supernet, extract, make_elastic
from subnet_search.elastic.image_size import resized
from subnet_search.elastic.statistics import recalibrate
from subnet_search.exporting import export
from subnet_search.finetuning import finetune
from subnet_search.measure import make_evaluator, measure_latency, prove, top1_percent
from subnet_search.measure.passes import SharedPasses
from subnet_search.measure.timing import Protocol
from subnet_search.pipeline import inspect_model
from subnet_search.rebuilding import describe_network, rebuild_network
from subnet_search.searchers import Budget, search
from subnet_search.settings import ElasticSettings, FinetuneSettings, ModelSettings
from subnet_search.training import SandwichStep
from tests.small import EXAMPLE, small_net, small_splits

SPLITS = small_splits()
SETTINGS = ElasticSettings(min_share=0.25, step=2, resolution=(6,))


def supernet_of(seed: int = 0) -> Supernet:
    return make_elastic(small_net(seed), EXAMPLE, SETTINGS)


def at(supernet: Supernet, height: int, share: float = 0.5) -> SubnetConfig:
    return supernet.space.canonical({**supernet.space.uniform(share), "resolution": height})


def subnet(supernet: Supernet, config: SubnetConfig) -> nn.Module:
    assert SPLITS.calibration is not None
    return extract(supernet, config, statistics=recalibrate(supernet, config, SPLITS.calibration)).eval()


class Seen(nn.Module):
    """Notes the sizes of the images that a network is shown."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.sizes = net, set[tuple[int, ...]]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.add(tuple(x.shape[-2:]))
        return self.net(x)


@pytest.mark.parametrize("alike", [False, True])
def test_what_subnets_of_one_size_share_is_not_taken_for_another_size(alike: bool) -> None:
    supernet, calibration = supernet_of(), list(SPLITS.calibration or ())
    shared = SharedPasses(
        supernet, calibration, SPLITS.search_val, device=torch.device("cpu"), memory_bytes=2**26, alike=alike
    )
    assert len(shared._spans) > 1
    assert all("resolution" in (span.knobs or supernet.space.names) for span in shared._spans)
    drawn = supernet.space.sample(np.random.default_rng(0), 4)
    pairs = [supernet.space.canonical({**config, "resolution": h}) for config in drawn for h in (8, 6)]
    for config in (*pairs, *pairs[::-1]):
        logits, targets, statistics = shared.answers(config)
        alone = recalibrate(supernet, config, calibration)
        assert all(torch.equal(tensor, statistics.values[name]) for name, tensor in alone.values.items())
        net, size_px = extract(supernet, config, statistics=alone).eval(), (config["resolution"],) * 2
        with torch.no_grad():
            by_hand = torch.cat([net(resized(images, size_px)) for images, _ in SPLITS.search_val])
        torch.testing.assert_close(logits, by_hand, atol=1e-5, rtol=1e-5)
        percent = 100 * float((by_hand.argmax(1) == targets).float().mean())
        assert top1_percent(net, SPLITS.search_val) == pytest.approx(percent)


def test_a_search_over_resolutions_finds_subnets_of_both_under_its_limits() -> None:
    supernet = supernet_of()
    space, costs = supernet.space, supernet.costs
    bound = 0.6 * costs.macs(space.encode([space.largest()]))[0]
    result = search(
        space,
        make_evaluator(supernet, SPLITS, ("top1_percent", "macs")),
        budget=Budget(evaluations=24),
        limits={"macs": float(bound)},
        costs=costs,
        progress=False,
    )
    assert {evaluation.config["resolution"] for evaluation in result.evaluations} == {6, 8}
    assert costs.macs(space.encode([e.config for e in result.evaluations])).max() <= bound
    assert all(evaluation.ok for evaluation in result.evaluations)


def test_the_sandwich_trains_subnets_on_images_of_their_size() -> None:
    supernet = supernet_of()
    sizes = set[tuple[int, ...]]()
    supernet.model.register_forward_pre_hook(lambda _, given: sizes.add(tuple(given[0].shape[-2:])))
    SandwichStep(num_random=4)(supernet, next(iter(SPLITS.train)), np.random.default_rng(0))
    assert sizes == {(6, 6), (8, 8)}


def test_tuning_shows_the_teacher_whole_images_and_the_subnet_its_own() -> None:
    supernet = supernet_of()
    net = Seen(subnet(supernet, at(supernet, 6)))
    net.calibrated, net.input_px = True, (6, 6)
    teacher = Seen(small_net())
    tuned = finetune(net, SPLITS, FinetuneSettings(epochs=1, lr=0.05, device="cpu"), teacher=teacher).net
    assert (tuned.sizes, teacher.sizes, tuned.input_px) == ({(6, 6)}, {(8, 8)}, (6, 6))


def test_a_latency_is_that_of_images_of_the_size_the_net_takes() -> None:
    supernet = supernet_of()
    net = Seen(subnet(supernet, at(supernet, 6)))
    net.input_px = (6, 6)
    whole = Seen(small_net())
    protocol = Protocol(least_rounds=2, most_rounds=2, resamples=10)
    measure_latency(net, EXAMPLE, reference=whole, reference_ms=1.0, protocol=protocol)
    assert (net.sizes, whole.sizes) == ({(6, 6)}, {(8, 8)})


def test_files_take_images_of_the_subnets_size(tmp_path: Path) -> None:
    supernet = supernet_of()
    net = subnet(supernet, at(supernet, 6))
    export(net, EXAMPLE, tmp_path)
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    x = torch.randn(3, 1, 6, 6)
    assert torch.allclose(loaded(x), net(x), atol=1e-5)
    with pytest.raises(Exception, match="6"):
        loaded(torch.randn(3, 1, 8, 8))


def test_a_description_tells_the_size_and_the_proof_holds(tmp_path: Path) -> None:
    supernet = supernet_of().eval()
    config = at(supernet, 6)
    assert SPLITS.calibration is not None
    statistics = recalibrate(supernet, config, SPLITS.calibration)
    net = extract(supernet, config, statistics=statistics)
    described = json.loads(
        json.dumps(describe_network(ModelSettings(name="tests.small:small_net"), supernet, config))
    )
    assert described["input_px"] == [6, 6]
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    proof = prove(
        supernet,
        config,
        statistics,
        net,
        build=lambda: rebuild_network(described),
        weights=tmp_path / "net.safetensors",
        batches=SPLITS.search_val,
    )
    assert proof.passed
    assert rebuild_network(described).input_px == (6, 6)
    for damaged in ("6", [6], [6, 0], [6.0, 6]):
        with pytest.raises(InvalidInput, match="input_px"):
            rebuild_network({**described, "input_px": damaged})


def test_sets_of_subnets_keep_their_sizes(tmp_path: Path) -> None:
    supernet = supernet_of().eval()
    configs = [at(supernet, 8), at(supernet, 6)]
    assert SPLITS.calibration is not None
    save_subnets(
        tmp_path / "set.safetensors",
        supernet,
        [(config, recalibrate(supernet, config, SPLITS.calibration)) for config in configs],
    )
    found = load_subnets(tmp_path / "set.safetensors", supernet_of(seed=1).eval())
    assert [found.extract(config).input_px for config in found.configs] == [(8, 8), (6, 6)]
    assert torch.equal(
        found.extract(configs[1])(torch.ones(1, 1, 6, 6)),
        subnet(supernet, configs[1])(torch.ones(1, 1, 6, 6)),
    )


def test_inspect_tells_the_sizes_and_why_others_are_not_possible() -> None:
    coverage, table = inspect_model("tests.small:small_net", (1, 8, 8), (6,))
    assert coverage["resolution"] == [6, 8]
    assert "images of 6, 8 pixels" in table
    coverage, table = inspect_model("tests.vit:tiny_vit", (1, 8, 8), (4,))
    assert coverage["resolution"] == []
    assert "input: no images of 4 x 4 pixels: the network does not run on them" in table


RECIPE = """
[model]
name = "tests.small:small_net"
epochs = 1
[data]
source = "tests.small:small_splits"
[device]
threads = 1
[elastic]
min_share = 0.25
step = 2
resolution = [4, 6]
[train]
epochs = 1
[rank]
ranker = "taylor"
curve = false
[search]
searcher = "random"
evaluations = 8
limits = { macs = "50%" }
choose_under = [{ macs = "20%" }]
[finetune]
epochs = 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["random", "progressive"])
def test_the_road_of_a_recipe_with_resolutions(
    tmp_path: Path, searcher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.replace('"random"', f'"{searcher}"'))
    if searcher == "random":
        assert run_command(["run", str(recipe), "--out", str(tmp_path), "--dry-run"]) == 0
        assert "images of 4, 6, 8 pixels" in capsys.readouterr().out
    assert run_command(["run", str(recipe), "--out", str(tmp_path)]) == 0
    run = tmp_path / "small"
    assert _read(run / "coverage.json")["resolution"] == [4, 6, 8]
    (folder,) = run.glob("subnets/*")
    height = _read(folder / "config.json")["values"]["resolution"]
    assert height < 8  # all others have more than a fifth of the multiply-adds
    assert _read(folder / "network.json")["input_px"] == [height, height]
    assert _read(folder / "proof.json")["passed"]
    net = load_subnet(folder)
    assert net.input_px == (height, height)
    found = top1_percent(net, SPLITS.search_val)
    assert found == pytest.approx(_read(folder / "metrics.json")["after"]["top1_percent"])
    page = (run / "report.html").read_text()
    assert f"images of {height} pixels" in page
    assert "and images of 4, 6, 8 pixels" in page
    if searcher == "progressive":
        assert any("resolution" in step["increases"] for step in _read(run / "path.json")["elements"])


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
