from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces import InvalidInput
from subnet_search.dynamic.building import Slimming
from subnet_search.dynamic.gate_training import train_gates
from subnet_search.dynamic.onnx_parts import export_ways
from subnet_search.dynamic.points import set_price
from subnet_search.dynamic.storing import load_slimming, store_slimming
from subnet_search.dynamic.storing_layers import load_layer_channel
from subnet_search.elastic.supernet import Supernet
from subnet_search.record import create_run
from subnet_search.settings import DynamicSettings, ModelSettings
from tests.dynamic.made import IMAGES, gate_splits, slimming_of
from tests.small import small_supernet
from tests.vit import vit_supernet

POINTS = [{"price": 0.25}, {"price": -1.5}]


def stored(folder: Path, kind: str) -> tuple[Slimming, Path]:
    supernet: Supernet = small_supernet() if kind == "small_net" else vit_supernet()
    paths = ("bn", "block1") if kind == "small_net" else ()
    slimming = slimming_of(supernet, paths, count=2, attention=True, values=kind == "tiny_vit")
    home = "tests.small" if kind == "small_net" else "tests.vit"
    with create_run(folder / "run", "") as run:
        store_slimming(
            run, slimming, supernet, ModelSettings(name=f"{home}:{kind}"), POINTS, {"split": "search_val"}
        )
    return slimming, folder / "run" / "dynamic"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small_net", "tiny_vit"])
def test_a_net_read_back_gives_the_same_routes_and_answers(kind: str, tmp_path: Path) -> None:
    slimming, folder = stored(tmp_path, kind)
    for number, point in enumerate(POINTS):
        loaded = load_slimming(folder, number)
        set_price(slimming.net, point["price"])
        with torch.inference_mode():
            wanted, found = slimming.net.run(IMAGES), loaded.net.run(IMAGES)  # type: ignore[operator]
        assert torch.equal(wanted[1], found[1])
        assert torch.equal(wanted[0], found[0])
    assert loaded.net.macs == slimming.net.macs
    assert loaded.points == tuple(POINTS)
    with pytest.raises(InvalidInput, match="operating points 0 to 1, got 2"):
        load_slimming(folder, 2)


@pytest.mark.slow
def test_a_damaged_or_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    _, folder = stored(tmp_path, "small_net")
    with pytest.raises(InvalidInput, match=r"dynamic\.json cannot be read"):
        load_slimming(tmp_path)
    path = folder / "gates.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InvalidInput, match=r"corrupt: .*gates\.safetensors"):
        load_slimming(folder)
    told = json.loads((folder / "dynamic.json").read_text("utf-8"))
    del told["gates"]
    elsewhere = folder.rename(tmp_path / "copy")
    (elsewhere / "dynamic.json").write_text(json.dumps(told), "utf-8")
    with pytest.raises(InvalidInput, match="describes no dynamic net"):
        load_slimming(elsewhere)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"method": "ds", "points": 3}', '{"method": ["ds"], "points": []}']
)
def test_a_description_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "dynamic.json").write_text(text, "utf-8")
    for load in (load_slimming, load_layer_channel):
        with pytest.raises(InvalidInput, match=r"dynamic\.json describes no dynamic net; make it again"):
            load(tmp_path)


def test_a_net_of_the_other_method_is_refused_with_the_function_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "dynamic.json").write_text('{"method": "lc", "points": []}', "utf-8")
    with pytest.raises(InvalidInput, match='of method "lc", not "ds"; read it with load_layer_channel'):
        load_slimming(tmp_path)
    (tmp_path / "dynamic.json").write_text('{"method": "ds", "points": []}', "utf-8")
    with pytest.raises(InvalidInput, match='of method "ds", not "lc"; read it with load_slimming'):
        load_layer_channel(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small_net", "tiny_vit"])
def test_the_loop_in_onnx_runtime_takes_the_same_ways_to_the_same_answers(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    slimming, _ = stored(tmp_path, kind)
    set_price(slimming.net, 0.25)
    files = export_ways(slimming.net, IMAGES[:1], tmp_path / "onnx")
    assert {"head.onnx", "gate_head.onnx", "run_ways.py", "ways.json"} <= {path.name for path in files}
    spec = importlib.util.spec_from_file_location("run_ways", tmp_path / "onnx" / "run_ways.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net = module.Ways(tmp_path / "onnx")
    with torch.inference_mode():
        answers, ways = slimming.net.run(IMAGES)
    for i in range(len(IMAGES)):
        logits, way = net(IMAGES[i : i + 1].numpy())
        assert way == slimming.net.leaves[int(ways[i])]
        np.testing.assert_allclose(logits[0], answers[i].numpy(), atol=1e-4)


def test_trained_gates_that_weigh_channels_at_two_places_can_be_read_back(tmp_path: Path) -> None:
    supernet = small_supernet()
    slimming = slimming_of(supernet, ("bn", "block1"), count=2, attention=True, values=True)
    settings = DynamicSettings(epochs=2, attention=True, device="cpu")
    splits = gate_splits()
    train_gates(slimming, splits, settings, calibration=list(splits.calibration))
    with create_run(tmp_path / "run", "") as run:
        store_slimming(run, slimming, supernet, ModelSettings(name="tests.small:small_net"), POINTS, {})
    set_price(slimming.net, POINTS[0]["price"])
    loaded = load_slimming(tmp_path / "run" / "dynamic").net
    with torch.inference_mode():
        wanted, found = slimming.net.run(IMAGES), loaded.run(IMAGES)  # type: ignore[operator]
    assert torch.equal(wanted[1], found[1])
    assert torch.equal(wanted[0], found[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"price": 0.25', '"price": NaN', "NaN is no number"),
        ('"hidden": 32', '"hidden": -4', "describes no dynamic net"),
        ('"channels": 8', '"channels": 10000000000000', "describes no dynamic net"),
        ('"input": [\n  1', '"input": [\n  -1', "describes no dynamic net"),
    ],
)
def test_a_changed_description_of_a_copy_is_refused(old: str, new: str, problem: str, tmp_path: Path) -> None:
    _, folder = stored(tmp_path, "small_net")
    copy = folder.rename(tmp_path / "copy")
    text = (copy / "dynamic.json").read_text("utf-8")
    assert old in text
    (copy / "dynamic.json").write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(InvalidInput, match=problem):
        load_slimming(copy)
    (copy / "dynamic.json").write_text(text, "utf-8")
    with pytest.raises(InvalidInput, match=r"the operating point must be a whole number, got 1\.5"):
        load_slimming(copy, 1.5)  # type: ignore[arg-type]
