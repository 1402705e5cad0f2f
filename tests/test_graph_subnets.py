"""Sub-nets of the graph form, measured, stored and built again: here they need a source beside their weights."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.data import Splits
from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.extraction import extract
from subnet_search.elastic.folding import find_folds
from subnet_search.elastic.operations.source import build_from_source
from subnet_search.elastic.spans import cut_into_spans
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.exporting import export
from subnet_search.finetuning import finetune
from subnet_search.measure import (
    count_macs,
    count_params,
    make_evaluator,
    prove,
    top1_percent,
)
from subnet_search.measure.prove import Proof
from subnet_search.models import load_weights
from subnet_search.rebuilding import (
    NETWORK,
    SOURCE,
    WEIGHTS,
    describe_network,
    load_subnet,
    network_source,
    rebuild_network,
    write_network,
)
from subnet_search.record import create_run
from subnet_search.settings import ElasticSettings, EvaluateSettings, FinetuneSettings, ModelSettings
from subnet_search.subnet_sets import load_subnets, save_subnets
from subnet_search.workbench import save_weights
from tests.small import EXAMPLE, small_net, small_splits
from tests.vit import vit_supernet

MODEL = ModelSettings(name="tests.vit:tiny_vit")
SETTINGS = EvaluateSettings(calibration_images=40, device="cpu", precision="fp32")


@functools.cache
def _converted(seed: int) -> Supernet:
    settings = ElasticSettings(min_share=0.25, step=2, form="graph")
    return make_elastic(small_net(seed), EXAMPLE, settings)


def normed_supernet(seed: int = 0) -> Supernet:
    """A network with batch norm, in graph form though it would not need it."""
    return copy.deepcopy(_converted(seed))


MAKERS = {"transformer": vit_supernet, "batch norm": normed_supernet}


def all_training_images(splits: Splits) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(splits.calibration or ())


# measured


@pytest.mark.parametrize("name", MAKERS)
def test_an_evaluation_is_that_of_the_extracted_net(name: str) -> None:
    supernet, splits = MAKERS[name](), small_splits()
    evaluator = make_evaluator(
        supernet, splits, settings=SETTINGS.model_copy(update={"calibration_images": 48})
    )
    space = supernet.space
    for config in (space.largest(), *space.sample(np.random.default_rng(0), 3), space.smallest()):
        statistics = recalibrate(supernet, config, all_training_images(splits))
        net = extract(supernet, config, EXAMPLE, statistics)
        wanted = (top1_percent(net, splits.search_val), count_macs(net, EXAMPLE), count_params(net))
        assert evaluator(config).values == wanted


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_evaluation_does_not_depend_on_what_was_measured_before(name: str, precision: str) -> None:
    settings = SETTINGS.model_copy(update={"precision": precision})
    configs = MAKERS[name]().space.sample(np.random.default_rng(0), 4)
    forth, back = (make_evaluator(MAKERS[name](), small_splits(), settings=settings) for _ in range(2))
    found = {config: forth(config).values for config in configs}
    assert {config: back(config).values for config in reversed(configs)} == found
    assert forth.context == back.context


def test_a_graph_runs_whole_as_a_trace_of_it_would_hold_the_numbers_of_one_subnet() -> None:
    for make in MAKERS.values():
        assert len(cut_into_spans(make().eval(), lambda numbers: True, float("inf"))) == 1


def test_batch_norms_are_folded_as_in_the_other_form() -> None:
    other = make_elastic(small_net(), EXAMPLE, ElasticSettings(min_share=0.25, step=2))
    found = [[fold[::2] for fold in find_folds(net.model)] for net in (normed_supernet(), other)]
    assert found[0] == found[1] != []
    assert find_folds(vit_supernet().model) == []


# tuned


@pytest.mark.parametrize("name", MAKERS)
def test_fine_tuning_learns_and_leaves_the_supernet_alone(name: str) -> None:
    supernet, splits = MAKERS[name](), small_splits()
    config = supernet.space.uniform(0.75)
    net = extract(supernet, config, EXAMPLE, recalibrate(supernet, config, all_training_images(splits)))
    before = {key: tensor.clone() for key, tensor in supernet.state_dict().items()}
    settings = FinetuneSettings(epochs=4, lr=0.05, device="cpu", teacher_share=0.1)
    result = finetune(net, splits, settings, teacher=supernet)
    assert result.losses[-1] < result.losses[0]
    assert all(torch.equal(tensor, before[key]) for key, tensor in supernet.state_dict().items())
    assert not torch.equal(result.net(EXAMPLE), net(EXAMPLE))


def test_an_extracted_net_can_be_copied_and_pickled() -> None:
    net = extract(vit_supernet().eval(), vit_supernet().space.uniform(0.5))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(EXAMPLE), net(EXAMPLE))
        assert type(other) is type(net)
        assert other.calibrated is True


# stored


class Stored:
    """A sub-net in the folder `subnets/KEY` of a run."""

    def __init__(self, folder: Path, share: float = 0.5, supernet: Supernet | None = None) -> None:
        self.supernet = (supernet or vit_supernet()).eval()
        self.config = self.supernet.space.uniform(share)
        self.net = extract(self.supernet, self.config)
        self.place = f"subnets/{self.config.key}"
        with create_run(folder, "") as run:
            save_weights(run, f"{self.place}/{WEIGHTS}", self.net)
            write_network(run, self.place, MODEL, self.supernet, self.config)
        self.folder = folder / self.place

    def copied(self, folder: Path) -> Path:
        """The three files elsewhere, where no run tells their checksums."""
        folder.mkdir()
        for name in (NETWORK, SOURCE, WEIGHTS):
            (folder / name).write_bytes((self.folder / name).read_bytes())
        return folder


def test_a_subnet_is_loaded_from_its_run_and_from_a_copy(tmp_path: Path) -> None:
    stored = Stored(tmp_path / "run")
    x = torch.randn(3, 1, 8, 8)
    for folder in (stored.folder, stored.copied(tmp_path / "copy")):
        net = load_subnet(folder)
        assert torch.equal(net(x), stored.net(x))
        assert not net.training
        assert count_params(net) == count_params(stored.net)


@pytest.mark.slow
def test_it_is_loaded_without_this_package(tmp_path: Path) -> None:
    stored = Stored(tmp_path / "run")
    folder = stored.copied(tmp_path / "copy")
    guide = (Path(__file__).parent.parent / "docs" / "guides" / "own-model.md").read_text("utf-8")
    lines = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)[-1]
    code = (
        f"import sys; sys.path.insert(0, '.')\n{lines}"
        "import torch\n"
        "x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)\n"
        "assert not [m for m in sys.modules if m.startswith(('subnet_search.', 'search_spaces', 'tests'))]\n"
        "print(net(x).flatten().tolist())\n"
    )
    command = [sys.executable, "-I", "-c", code]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120).stdout
    assert json.loads(told) == pytest.approx(stored.net(EXAMPLE).flatten().tolist(), abs=1e-6)


def test_an_export_has_the_source_beside_the_weights(tmp_path: Path) -> None:
    net = extract(vit_supernet().eval(), vit_supernet().space.uniform(0.5))
    found = export(net, EXAMPLE, tmp_path, ("safetensors",))
    assert [(e.format, e.path.name) for e in found] == [
        ("safetensors", "net.safetensors"),
        ("source", "model.py"),
    ]
    assert all(e.bytes == e.path.stat().st_size for e in found)
    again = load_weights(build_from_source((tmp_path / "model.py").read_text()), tmp_path / WEIGHTS).eval()
    assert torch.equal(again(EXAMPLE), net(EXAMPLE))


def test_a_copy_with_line_ends_of_another_system_is_the_same(tmp_path: Path) -> None:
    folder = Stored(tmp_path / "run").copied(tmp_path / "copy")
    source = (folder / SOURCE).read_bytes()
    (folder / SOURCE).write_bytes(source.replace(b"\n", b"\r\n"))
    load_subnet(folder)


def changed(folder: Path) -> None:
    (folder / SOURCE).write_text((folder / SOURCE).read_text().replace("gelu", "relu"))


def missing(folder: Path) -> None:
    (folder / SOURCE).unlink()


def binary(folder: Path) -> None:
    (folder / SOURCE).write_bytes(b"\xff\x00\xfe")


def foreign(folder: Path) -> None:
    other = vit_supernet()
    source = network_source(other, other.space.smallest())
    assert source is not None
    (folder / SOURCE).write_text(source)


def described(folder: Path, source: str) -> None:
    """A source of one's own, with a description to match."""
    network = json.loads((folder / NETWORK).read_text())
    network["source_sha256"] = hashlib.sha256(source.encode()).hexdigest()
    (folder / NETWORK).write_text(json.dumps(network))
    (folder / SOURCE).write_text(source)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "changed": (changed, r"model\.py is not the one that network\.json describes"),
    "missing": (missing, r"model\.py cannot be read: .* copy it from the run again"),
    "binary": (binary, r"model\.py cannot be read"),
    "foreign": (foreign, r"model\.py is not the one"),
    "no Python": (lambda folder: described(folder, "class SubNet(:"), "is no source of a sub-net: SyntaxError"),
    "no network": (lambda folder: described(folder, "SubNet = int"), "its SubNet is no network"),
    "no class": (lambda folder: described(folder, "x = 1"), "is no source of a sub-net: KeyError"),
    "an end": (lambda folder: described(folder, "raise SystemExit(0)"), "is no source of a sub-net: SystemExit"),
    "another": (
        lambda folder: described(folder, "from torch import nn\nclass SubNet(nn.Linear):\n def __init__(self):\n"
        "  super().__init__(2, 2)\n"),
        "the weights do not fit SubNet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_foreign_source_is_refused(name: str, tmp_path: Path) -> None:
    folder = Stored(tmp_path / "run").copied(tmp_path / "copy")
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(InvalidInput, match=message) as refused:
        load_subnet(folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("name", [SOURCE, NETWORK, WEIGHTS])
def test_in_a_run_nothing_is_executed_that_has_not_its_checksum(name: str, tmp_path: Path) -> None:
    stored = Stored(tmp_path / "run")
    told = tmp_path / "told"
    if name == SOURCE:
        described(stored.folder, f"open({str(told)!r}, 'w').close()\n")  # both files, so that they agree
    else:
        content = (stored.folder / name).read_bytes()
        (stored.folder / name).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(InvalidInput, match=r"corrupt: .*changed after it was written|cannot be read"):
        load_subnet(stored.folder)
    assert not told.exists()


def test_what_a_description_of_the_graph_form_needs() -> None:
    supernet = vit_supernet()
    config = supernet.space.smallest()
    network, source = describe_network(MODEL, supernet, config), network_source(supernet, config)
    assert network["form"] == "graph"
    assert source is not None
    assert sum(p.numel() for p in rebuild_network(network, source).parameters()) == count_params(
        extract(supernet, config)
    )
    with pytest.raises(InvalidInput, match=r"model\.py is missing"):
        rebuild_network(network)
    assert network_source(make_elastic(small_net(), EXAMPLE), config) is None


# proved


def proof_of(stored: Stored, source: str | None = None, weights: Path | None = None) -> Proof:
    network = describe_network(MODEL, stored.supernet, stored.config)
    source = source or network_source(stored.supernet, stored.config)
    assert source is not None
    network["source_sha256"] = hashlib.sha256(source.encode()).hexdigest()
    return prove(
        stored.supernet,
        stored.config,
        None,
        stored.net,
        build=lambda: rebuild_network(network, source),
        weights=weights or stored.folder / WEIGHTS,
        batches=small_splits().search_val,
    )


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_right_subnet_is_proved(share: float, tmp_path: Path) -> None:
    stored = Stored(tmp_path / "run", share)
    proof = proof_of(stored)
    row = stored.supernet.space.encode([stored.config])
    assert proof.passed
    assert proof.form == "graph"
    assert proof.params == proof.params_promised == stored.supernet.costs.params(row)[0]
    assert proof.macs == proof.macs_promised == stored.supernet.costs.macs(row)[0]


def test_a_source_that_computes_something_else_fails_the_proof(tmp_path: Path) -> None:
    stored = Stored(tmp_path / "run")
    source = network_source(stored.supernet, stored.config)
    assert source is not None
    assert "aten.gelu" in source
    proof = proof_of(stored, source.replace("aten.gelu", "aten.relu").replace(", approximate='none'", ""))
    assert (proof.reload_equal, proof.passed) == (False, False)


# many in one file


@pytest.mark.parametrize("name", MAKERS)
def test_many_subnets_lie_in_one_file(name: str, tmp_path: Path) -> None:
    supernet = MAKERS[name]().eval()
    configs: list[SubnetConfig] = [supernet.space.largest(), supernet.space.uniform(0.5)]
    pairs = [(c, recalibrate(supernet, c, all_training_images(small_splits()))) for c in configs]
    save_subnets(tmp_path / "set.safetensors", supernet, pairs)
    found = load_subnets(tmp_path / "set.safetensors", MAKERS[name](seed=1).eval())
    x = torch.randn(4, 1, 8, 8)
    for config, statistics in pairs:
        net: nn.Module = found.extract(config)
        assert torch.equal(net(x), extract(supernet, config, statistics=statistics)(x))
