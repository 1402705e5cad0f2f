"""The walk over the zoo: every network in a process of its own, every result kept, every end a finding."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.evidence.zoo import _shard
from benchmarks.zoo import walk as walking
from benchmarks.zoo.exports import look_at_exports
from benchmarks.zoo.look import kind_of, look, no_branch_silent
from benchmarks.zoo.names import TIMM, family_of, names_of
from benchmarks.zoo.page import as_page, summary
from benchmarks.zoo.walk import Folder, Limits, one, walk
from subnet_search.measure import describe_device
from subnet_search.measure.counter import macs_by_operator

STAMP = {"date": "2026-01-01", "torch": "2", "torchvision": "0", "timm": "1", "wrong": []}
FOUND = {
    **STAMP, "status": "converted", "kind": "CNN", "macs": 2_000_000_000, "params": 7, "form": "graph",
    "freedoms": ["inner width"], "reachable_macs_share": 0.97, "smallest_macs_share": 0.1, "smallest_params_share": 0.2,
    "subnets": "100", "subnets_log10": 2.0, "cpu_s": 3.0, "fixed": [],
}  # fmt: skip
PARTLY = {
    "status": "partly", "wrong": ["onnx: no such operator"], "formats": {"pt2": {"bytes": 9}, "onnx": {"reason": "no"}}
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "load_exporter", lambda: None)
    monkeypatch.setattr(walking, "versions", dict)


def looks(monkeypatch: pytest.MonkeyPatch, how: Callable[[str], Any]) -> None:
    monkeypatch.setattr(walking, "look", how)


def test_a_broken_off_walk_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, folder = tmp_path / "log", Folder(tmp_path / "zoo")

    def noted(name: str) -> dict[str, Any]:
        with log.open("a") as file:
            file.write(name + "\n")
        return {**FOUND, "status": "failed" if name == "x:b" else "converted", "reason": "it does"}

    looks(monkeypatch, noted)
    walk(["x:a", "x:b"], folder, Limits())
    walk(["x:a", "x:b", "x:c"], folder, Limits())
    assert log.read_text().split() == ["x:a", "x:b", "x:c"]
    walk(["x:a", "x:b", "x:c"], folder, Limits(), lambda known: known["status"] == "failed")
    assert log.read_text().split()[3:] == ["x:b"]
    found = folder.result("x:c")
    assert found is not None
    assert found["name"] == "x:c"
    assert found["code"] == walking.code_version()


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raises() -> None:
    raise ValueError("no such layer")


def computes() -> None:
    while True:
        pass


def needs_memory() -> None:
    held = [torch.ones(2**26) for _ in range(16)]  # 4 GiB
    time.sleep(20)
    del held


@pytest.mark.parametrize(
    ("does", "status", "reason"),
    [
        (crash, "stopped", "its process ended with code -9"),
        (raises, "failed", "ValueError at test_walk.py"),
        pytest.param(computes, "stopped", "needs more than 1 s of a core", marks=pytest.mark.slow),
        (needs_memory, "stopped", "needs more than 1.5 GiB"),
    ],
)
def test_every_end_of_a_process_is_a_finding(
    does: Callable[[], None], status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks(monkeypatch, lambda name: does())
    found = one(
        "x:a", Limits(cpu_s=1 if does is computes else 60, memory_gib=1.5 if does is needs_memory else 64)
    )
    assert found["status"] == status
    assert found["reason"].startswith(reason)


def test_shards_are_numbered_from_one() -> None:
    names = list(range(10))
    parts = [names[i - 1 :: n] for i, n in (_shard(f"{i}/3") for i in (1, 2, 3))]
    assert sorted(name for part in parts for name in part) == names
    with pytest.raises(Exception, match=r"1 <= i <= n, got '0/3'"):
        _shard("0/3")


def test_one_network_of_each_family_of_timm_is_looked_at() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    known = set(timm.list_modules())
    assert len(TIMM) >= 75
    for family, name in TIMM.items():
        assert family not in known or name in timm.list_models(module=family), family  # older ones lack some


def test_every_name_has_a_family() -> None:
    assert {family_of(name) for name in names_of("torchvision")} >= {"resnet", "vision_transformer", "maxvit"}
    assert [family_of(name) for name in names_of("timm")] == list(TIMM)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(x, x, x).mean(1)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ([nn.Conv2d(8, 8, 3), Flat()], "CNN"),
        ([nn.Conv2d(8, 8, 3), Attention()], "hybrid"),
        ([nn.Conv2d(8, 8, 1), Attention()], "transformer"),
        ([Flat(), nn.Linear(8, 8)], "MLP"),
    ],
)
def test_kinds_are_told_by_operators(body: list[nn.Module], kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), *body)
    assert kind_of(net, macs_by_operator(net, torch.randn(1, 3, 32, 32))) == kind


def test_a_branch_that_starts_at_zero_gets_a_say() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    nn.init.zeros_(net[1].weight)
    no_branch_silent(net)
    assert (net[1].weight != 0).all()
    assert net[1].running_var.unique().numel() == 8


def test_aims_name_those_that_miss_them() -> None:
    results = [
        {**FOUND, "name": "torchvision:resnet18"},
        {
            **FOUND,
            "name": "torchvision:alexnet",
            "smallest_macs_share": 0.2,
            "cpu_s": 11.0,
            "exports": PARTLY,
        },
        {**FOUND, "name": "torchvision:vit_b_16", "kind": "transformer", "smallest_macs_share": 0.2},
        {**STAMP, "name": "timm:beit_base_patch16_224", "status": "refused", "reason": "no way"},
    ]
    missed = {row["aim"]: (row["met"], row["networks"], row["missed"]) for row in summary(results)}
    assert missed["torchvision: converted (all)"] == (3, 3, {})
    assert missed["timm: converted (90 %)"] == (0, 1, {"timm:beit_base_patch16_224": "no way"})
    assert missed["smallest sub-net of CNNs and MLPs <= 15 % of the multiply-adds"] == (
        1,
        2,
        {"torchvision:alexnet": "20.0 %"},
    )
    assert missed["conversion <= 10 s"] == (2, 3, {"torchvision:alexnet": "11.0 s"})
    page = as_page(results, "the command", describe_device())
    assert (
        "| alexnet | CNN | 2.00 | graph | inner | 97.0 % | 20.0 / 20.0 % | 10^2.0 | 11.0 | yes | **no** (pt2) |"
        in page
    )
    assert missed["torch.export and ONNX of the smallest sub-net"] == (
        0,
        1,
        {"torchvision:alexnet": "onnx: no such operator"},
    )
    assert "- timm:beit_base_patch16_224: no way" in page


@pytest.mark.slow
def test_exports_are_looked_at_on_their_own() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    found = json.loads(json.dumps(look_at_exports("torchvision:squeezenet1_1")))
    assert (found["status"], found["wrong"]) == ("exported", [])
    assert found["formats"].keys() == {"pt2", "onnx"}
    assert all(0 < made["bytes"] < 10**6 for made in found["formats"].values())  # the whole network has 5 MB
    assert walking.code_version(look_at_exports) != walking.code_version()


@pytest.mark.parametrize(
    "name", ["torchvision:squeezenet1_1", pytest.param("timm:test_vit", marks=pytest.mark.slow)]
)
def test_a_network_of_the_zoo_is_right(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    found: Mapping[str, Any] = json.loads(json.dumps(look(name)))
    assert (found["status"], found["wrong"]) == ("converted", [])
    assert found["macs"] > 0
    assert int(found["subnets"]) > 10 ** int(found["subnets_log10"])
