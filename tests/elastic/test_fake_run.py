"""What is noted of an exported graph's values does not depend on which stand-ins for tensors ran through it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from subnet_search.elastic.operations import exported, fake_run
from subnet_search.elastic.operations.fake_run import FakeRun, MetaTensors
from tests.elastic.graph_toys import GRAPH_TOYS, example_of, make_graph_toy

QUICK = ("shuffles", "two inputs")
NOTES = ("shape", "per_row", "number", "macs", "dtype")


def notes(graph: fx.Graph) -> dict[str, Any]:
    """By node; which values share memory is told by the place of the first of them."""
    places: dict[Hashable, int] = {}
    found = {}
    for place, node in enumerate(graph.nodes):
        memory = node.meta.get("memory")
        shared = None if memory is None else places.setdefault(memory, place)
        found[node.name] = (*(node.meta.get(note) for note in NOTES), shared)
    return found


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in GRAPH_TOYS]
)
def test_notes_are_those_of_tensors_that_know_their_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, note_values = [], fake_run.note_values

    def note_both(model: nn.Module, graph: fx.Graph, parts: Any, *inputs: Any) -> None:
        FakeRun(model, graph, parts, FakeTensorMode(allow_non_fake_inputs=True)).note(*inputs)
        seen.append(notes(graph))
        note_values(model, graph, parts, *inputs)
        seen.append(notes(graph))

    monkeypatch.setattr(exported, "note_values", note_both)
    exported.read_exported(make_graph_toy(name).eval(), example_of(name))
    with_fake, as_used = seen[-2:]
    assert any(shape for shape, *_ in with_fake.values())
    assert as_used == with_fake


class Attends(nn.Module):
    """Its attention's answer has the layout that the device likes, so a reshape of it may be a view or a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.read(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class AsksForItsDevice(nn.Module):
    """A constant that is made on the processor cannot meet a tensor that is nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + torch.arange(8, device="cpu")


@pytest.mark.parametrize(
    ("model", "used"),
    [(nn.Linear(8, 8), MetaTensors), (Attends(), FakeTensorMode), (AsksForItsDevice(), FakeTensorMode)],
)
def test_where_the_device_matters_tensors_know_theirs(
    model: nn.Module, used: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    class Watched(FakeRun):
        def note(self, *inputs: Any) -> None:
            super().note(*inputs)
            modes.append(type(self.mode))

    monkeypatch.setattr(fake_run, "FakeRun", Watched)
    shape = (2, 6, 8) if isinstance(model, Attends) else (2, 8)
    exported.read_exported(model.eval(), torch.randn(shape))
    assert modes == [used]
