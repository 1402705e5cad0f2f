"""Which freedoms conversion finds in torchvision's networks: the table beside this file was written by hand.

Layers in a row, concatenated and shuffled or not, have an inner width; additions make a stream; residual blocks
may be skipped; attention has heads, and a linear layer before another in a residual branch is an MLP (but for the one
that makes the position tables of Swin V2: an inner width). Images of six sevenths are possible but for tables
of positions, grids that have to come out even (maxvit) and the auxiliary head of inception_v3, a window too large.
`make zoo` looks at all networks, the slow tests at those below ten billion multiply-adds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from benchmarks.zoo.look import lower_px
from subnet_search.elastic.convert import make_elastic
from subnet_search.models import load_model
from subnet_search.settings import ElasticSettings

EXPECTED: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "expected_freedoms.json").read_text("utf-8")
)
RESULTS = Path(__file__).parents[2] / "reports" / "results" / "zoo.json"
QUICK = [
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
]
SMALLER = [  # one of a family, tried with smaller images too; `make zoo` tries all
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0",
    "swin_t", "vit_b_32",
]  # fmt: skip
QUICK_SMALLER = ["resnet18"]
SIDES_PX = {"inception_v3": 299}  # of the others 224; freedoms do not depend on it
LARGEST_MACS = 10_000_000_000


def published() -> dict[str, dict[str, Any]]:
    """What `make zoo` last found, by name."""
    stored = json.loads(RESULTS.read_text("utf-8"))["networks"]
    return {
        name: found
        for found in stored
        for source, _, name in [found["name"].partition(":")]
        if source != "timm"
    }


def not_too_large() -> list[str]:
    found = published()
    return [name for name in EXPECTED if name in found and found[name]["macs"] < LARGEST_MACS]


def test_the_table_names_every_network_of_torchvision() -> None:
    assert set(EXPECTED) == set(torchvision.models.list_models(module=torchvision.models))


def test_what_is_published_has_the_freedoms_of_the_table() -> None:
    found = published()
    expected = {name: set(freedoms) for name, freedoms in EXPECTED.items() if name in found}
    for name, freedoms in expected.items():
        if "resolution" not in found[name]:  # published before smaller images were tried
            freedoms.discard("resolution")
    assert {name: set(found[name]["freedoms"]) for name in expected} == expected


@pytest.mark.parametrize(
    "name",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in not_too_large() if name not in QUICK)],
)
def test_a_network_has_the_freedoms_of_the_table(name: str) -> None:
    assert freedoms_of(name, ()) == set(EXPECTED[name]) - {"resolution"}


@pytest.mark.parametrize(
    "name", [*QUICK_SMALLER, *(pytest.param(name, marks=pytest.mark.slow) for name in SMALLER)]
)
def test_smaller_images_are_possible_where_the_table_says_so(name: str) -> None:
    assert freedoms_of(name, (lower_px(SIDES_PX.get(name, 224)),)) == set(EXPECTED[name])


def freedoms_of(name: str, resolution: tuple[int, ...]) -> set[str]:
    torch.manual_seed(0)
    side_px = SIDES_PX.get(name, 224)
    model, example = load_model(f"torchvision:{name}"), torch.randn(1, 3, side_px, side_px)
    return set(make_elastic(model, example, ElasticSettings(resolution=resolution)).coverage["freedoms"])
