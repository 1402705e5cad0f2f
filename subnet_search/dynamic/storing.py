"""A dynamic net in a run folder: its sub-nets, gates and operating points, without pickle; and back from there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from search_spaces import InvalidInput
from search_spaces.knob import whole_number
from subnet_search.dynamic.building import Slimming, assemble, parts_of
from subnet_search.dynamic.cutting import example_of
from subnet_search.dynamic.gates import DoubleHeadedGate
from subnet_search.dynamic.points import set_price
from subnet_search.dynamic.routes import Decisions
from subnet_search.dynamic.slimming import SlimmingNet
from subnet_search.elastic import Supernet
from subnet_search.models import load_weights
from subnet_search.rebuilding import NETWORK, SOURCE, WEIGHTS, load_subnet, write_network
from subnet_search.record import Run
from subnet_search.record.run import CHECKSUMS
from subnet_search.settings import ModelSettings

FOLDER, DESCRIPTION, GATES = "dynamic", "dynamic.json", "gates.safetensors"
READERS = {"ds": "load_slimming", "lc": "load_layer_channel"}  # by method


def store_slimming(
    run: Run,
    slimming: Slimming,
    supernet: Supernet,
    model: ModelSettings,
    points: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Writes the net into `dynamic/` of a run; `dynamic.json` comes last, so that without it nothing is there.

    Args:
        run: open for writing.
        slimming: with trained gates.
        supernet: that its routes are of.
        model: the network that the supernet is of.
        points: operating points as plain data, each with its "price".
        facts: whatever else is to stand in `dynamic.json`.
    """
    run.delete(f"{FOLDER}/{DESCRIPTION}")
    routes, net = slimming.routes, slimming.net
    for leaf in net.leaves:
        place = f"{FOLDER}/subnets/{routes.configs[leaf].key}"
        state = {
            name: t.detach().cpu().clone().contiguous()
            for name, t in slimming.plain[leaf].state_dict().items()
        }
        run.write(f"{place}/{WEIGHTS}", safetensors.torch.save(state))
        write_network(run, place, model, supernet, routes.configs[leaf])
    state = {name: t.detach().cpu().clone().contiguous() for name, t in net.gates.state_dict().items()}
    run.write(f"{FOLDER}/{GATES}", safetensors.torch.save(state))
    run.write_json(
        f"{FOLDER}/{DESCRIPTION}", {**describe(slimming, supernet), "points": list(points), **facts}
    )


def describe(slimming: Slimming, supernet: Supernet) -> dict[str, Any]:
    """All of a dynamic net but its tensors, as plain data."""
    net, routes = slimming.net, slimming.routes
    return {
        "method": "ds",
        "paths": list(routes.paths),
        "input": list(example_of(supernet).shape[1:]),
        "largest_macs": slimming.largest_macs,
        "routes": [
            {
                "decisions": list(leaf),
                "key": routes.configs[leaf].key,
                "macs": macs,
                "config": dict(routes.configs[leaf]),
            }
            for leaf, macs in zip(net.leaves, net.macs, strict=True)
        ],
        "gates": [
            {
                "after": list(prefix),
                "axis": net.gate(prefix).axis,
                "channels": net.gate(prefix).squeeze.in_features,
                "hidden": net.gate(prefix).squeeze.out_features,
                "attention": net.gate(prefix).attention is not None,
                "values": net.gate(prefix).values,
                "costs": net.gate(prefix).cost.tolist(),
            }
            for prefix in net.prefixes()
        ],
    }


@dataclass(frozen=True)
class Stored:
    """A dynamic net read back: the net, its operating points and all else that `dynamic.json` says."""

    net: nn.Module
    points: tuple[Mapping[str, Any], ...]
    description: Mapping[str, Any]


def load_slimming(folder: str | Path, point: int | None = None) -> Stored:
    """The dynamic net of a run: `load_slimming("runs/NAME/dynamic").net`, ready to run.

    As with `load_subnet`, a `model.py` in there is code that is executed: load none from people whom you do not trust.

    Args:
        folder: RUN/dynamic, or a copy of it.
        point: which of the operating points the gates are to hold; by default the one that was stored first.

    Raises:
        InvalidInput: a file is missing or damaged, or does not fit; no such operating point.
    """
    folder = Path(folder)
    verify(folder)
    told = read_description(folder, "ds")
    points = tuple(told["points"])
    number = 0 if point is None else whole_number(point, "the operating point")
    if points and not 0 <= number < len(points):
        raise InvalidInput(f"{folder} has operating points 0 to {len(points) - 1}, got {point}")
    try:
        net = _rebuilt(folder, told)
        if points:
            set_price(net, float(points[number]["price"]))
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise InvalidInput(
            f"{folder / DESCRIPTION} describes no dynamic net: {error!r}; make it again"
        ) from error
    return Stored(net, points, told)


def read_description(folder: Path, method: str) -> dict[str, Any]:
    """What `dynamic.json` says of a net of that method.

    Raises:
        InvalidInput: it cannot be read, or is of something else; the message names the function that reads that.
    """
    try:
        told = json.loads((folder / DESCRIPTION).read_text("utf-8"), parse_constant=_no_number)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{folder / DESCRIPTION} cannot be read: {error}; give the folder RUN/dynamic of a run that has a "
            "dynamic net"
        ) from error
    found = told.get("method") if isinstance(told, dict) else None
    if not isinstance(found, str) or found not in READERS or not isinstance(told.get("points"), list):
        raise InvalidInput(f"{folder / DESCRIPTION} describes no dynamic net; make it again")
    if found != method:
        raise InvalidInput(
            f'{folder} holds a net of method "{found}", not "{method}"; read it with {READERS[found]}'
        )
    return dict(told)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _rebuilt(folder: Path, told: Mapping[str, Any]) -> SlimmingNet:
    leaves: dict[Decisions, str] = {tuple(route["decisions"]): route["key"] for route in told["routes"]}
    plain = {leaf: load_subnet(folder / "subnets" / key) for leaf, key in leaves.items()}
    parts = parts_of(plain, told["paths"], torch.zeros(1, *told["input"]))
    gates = {
        tuple(gate["after"]): DoubleHeadedGate(
            gate["channels"],
            gate["axis"],
            gate["costs"],
            gate["hidden"],
            gate["attention"],
            gate.get("values", False),  # nets of earlier versions had none
        )
        for gate in told["gates"]
    }
    with_gates = {tuple(route["decisions"]): int(route["macs"]) for route in told["routes"]}
    along = {leaf: sum(gates[leaf[:depth]].macs() for depth in range(len(leaf))) for leaf in with_gates}
    net = assemble(plain, parts, gates, {leaf: macs - along[leaf] for leaf, macs in with_gates.items()})
    load_weights(net.gates, folder / GATES)
    return net


def verify(folder: Path, others: Iterable[str] = ()) -> None:
    """Compares the files of a dynamic net with their checksums, if the folder is one of a run."""
    parent = folder.resolve().parent
    if folder.resolve().name != FOLDER or not (parent / CHECKSUMS).is_file():
        return
    with Run(parent, write=False) as run:
        for name in run.names():
            own = name.startswith(f"{FOLDER}/") and name.rpartition("/")[2] in (
                DESCRIPTION, GATES, NETWORK, SOURCE, WEIGHTS, *others
            )  # fmt: skip
            if own:
                run.verify(name)
