"""Builds a stored sub-net again, without search, supernet or tracing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.elastic import Supernet, apply_plan, layer_plan
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.operations.source import build_from_source, graph_source
from subnet_search.models import load_model, load_weights
from subnet_search.record import Run
from subnet_search.record.run import CHECKSUMS
from subnet_search.settings import ModelSettings

NETWORK, SOURCE, WEIGHTS = "network.json", "model.py", "net.safetensors"


def describe_network(model: ModelSettings, supernet: Supernet, config: SubnetConfig) -> dict[str, Any]:
    """What `rebuild_network` needs, as plain data: the original network's name and the sub-net's sizes.

    A sub-net of the graph form needs its source, too; of that the description has the SHA-256.
    """
    known = {"name": model.name, "options": dict(model.options)}
    source = network_source(supernet, config)
    if source is None:
        return {**known, **layer_plan(supernet, config)}
    return {**known, "form": "graph", "source_sha256": _sum_of(source)}


def network_source(supernet: Supernet, config: SubnetConfig) -> str | None:
    """The content of a sub-net's `model.py`: a class `SubNet`; None for one of the model's own classes."""
    if not isinstance(supernet.model, RunsGraph):
        return None
    return graph_source(supernet, supernet.space.canonical(config))[0]


def write_network(
    run: Run, place: str, model: ModelSettings, supernet: Supernet, config: SubnetConfig
) -> Callable[[], nn.Module]:
    """Writes `network.json`, and in the graph form `model.py`, into the folder `place` of a run.

    Returns:
        What builds the sub-net's structure from these files.
    """
    source = network_source(supernet, config)
    if source is not None:
        run.write(f"{place}/{SOURCE}", source)
    run.write_json(f"{place}/{NETWORK}", describe_network(model, supernet, config))

    def build() -> nn.Module:
        stored = None if source is None else run.read(f"{place}/{SOURCE}").decode()
        return rebuild_network(run.read_json(f"{place}/{NETWORK}"), stored)

    return build


def rebuild_network(description: Mapping[str, Any], source: str | None = None) -> nn.Module:
    """The sub-net's structure; its weights wait to be loaded.

    Args:
        description: from `describe_network`.
        source: from `network_source`; it is executed.

    Raises:
        InvalidInput: the original network cannot be built, or the description does not fit it; the source is
            another one than was described.
    """
    if is_graph(description):
        if source is None or _sum_of(source) != description.get("source_sha256"):
            raise InvalidInput(
                f"{SOURCE} is {'missing' if source is None else 'not the one'} that {NETWORK} describes: it was "
                "changed, or is of another sub-net; copy both from the run again"
            )
        return build_from_source(source, f"<{SOURCE} {_sum_of(source)[:12]}>")
    if not isinstance(description, Mapping) or not {"name", "options", "layers", "skipped"} <= set(
        description
    ):
        raise InvalidInput("the description of a sub-net must name name, options, layers and skipped")
    return apply_plan(load_model(description["name"], None, description["options"]), description)


def is_graph(description: Any) -> bool:
    """Whether a sub-net is described that has a source of its own."""
    return isinstance(description, Mapping) and description.get("form") == "graph"


def load_subnet(folder: str | Path) -> nn.Module:
    """A sub-net of a run, as a plain network in evaluation mode: `load_subnet("runs/quickstart/subnets/KEY")`.

    Where the folder has a `model.py`, that file is code, and it is executed. In a run folder this is done only if all
    files have the checksums that the run noted; a folder that was copied elsewhere has but the SHA-256 in its own
    `network.json`, which shows damage and not malice: load none from people whom you do not trust.

    Args:
        folder: holds `network.json`, `net.safetensors` and perhaps `model.py`; it may have been copied elsewhere.
            Without a `model.py` the original network's code must be importable.

    Raises:
        InvalidInput: a file is missing or damaged, or does not fit.
    """
    folder = Path(folder)
    path = folder / NETWORK
    try:
        description = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{path} cannot be read: {error}; give the folder of an exported sub-net, RUN/subnets/KEY"
        ) from error
    names = [NETWORK, WEIGHTS, *([SOURCE] if is_graph(description) else [])]
    _verify(folder.resolve(), names)
    source = _read_source(folder / SOURCE) if is_graph(description) else None
    try:
        net = rebuild_network(description, source)
    except InvalidInput as error:
        raise InvalidInput(f"{folder}: {error}") from None
    load_weights(net, folder / WEIGHTS).eval()
    net.calibrated = True  # type: ignore[assignment]
    return net


def _verify(folder: Path, names: list[str]) -> None:
    """Compares files with their checksums, if the folder is one of a run."""
    if folder.parent.name != "subnets" or not (folder.parents[1] / CHECKSUMS).is_file():
        return
    with Run(folder.parents[1], write=False) as run:
        for name in names:
            run.verify(f"subnets/{folder.name}/{name}")


def _read_source(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{path} cannot be read: {error}; the sub-net's structure stands there: copy it from the run again"
        ) from error


def _sum_of(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()
