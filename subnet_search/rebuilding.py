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
from subnet_search.elastic.extraction import resize
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.operations.source import GraphSource, build_from_source, graph_source
from subnet_search.models import load_model, load_weights
from subnet_search.record import Run
from subnet_search.record.run import CHECKSUMS
from subnet_search.settings import ModelSettings

NETWORK, SOURCE, WEIGHTS = "network.json", "model.py", "net.safetensors"


def describe_network(model: ModelSettings, supernet: Supernet, config: SubnetConfig) -> dict[str, Any]:
    """What `rebuild_network` needs, as plain data: the original network's name and the sub-net's sizes.

    A sub-net of the graph form needs its source, too; of that the description has the SHA-256. Where it calls modules
    of the original network as they are, these are its `parts`. Where sub-nets take images of several sizes, `input_px`
    is height and width of those of this one.
    """
    known: dict[str, Any] = {"name": model.name, "options": dict(model.options)}
    if (size_px := supernet.size_px(supernet.space.canonical(config))) is not None:
        known["input_px"] = list(size_px)
    found = _graph_source(supernet, config)
    if found is None:
        return {**known, **layer_plan(supernet, config)}
    described = {**known, "form": "graph", "source_sha256": _sum_of(found.text)}
    return {**described, "parts": found.parts} if found.parts else described


def network_source(supernet: Supernet, config: SubnetConfig) -> str | None:
    """The content of a sub-net's `model.py`: a class `SubNet`; None for one of the model's own classes."""
    found = _graph_source(supernet, config)
    return None if found is None else found.text


def _graph_source(supernet: Supernet, config: SubnetConfig) -> GraphSource | None:
    if not isinstance(supernet.model, RunsGraph):
        return None
    return graph_source(supernet, supernet.space.canonical(config))


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
    net = _rebuilt(description, source)
    if (size_px := description.get("input_px")) is not None:
        net.input_px = _checked_size(size_px)  # type: ignore[assignment]
    return net


def _checked_size(size_px: Any) -> tuple[int, int]:
    is_list = isinstance(size_px, list) and len(size_px) == 2
    if not is_list or not all(isinstance(side, int) and side > 0 for side in size_px):
        raise InvalidInput(
            f"input_px of {NETWORK} must be height and width in pixels, got {size_px!r}; export the sub-net again"
        )
    return size_px[0], size_px[1]


def _rebuilt(description: Mapping[str, Any], source: str | None) -> nn.Module:
    if is_graph(description):
        if source is None or _sum_of(source) != description.get("source_sha256"):
            raise InvalidInput(
                f"{SOURCE} is {'missing' if source is None else 'not the one'} that {NETWORK} describes: it was "
                "changed, or is of another sub-net; copy both from the run again"
            )
        return build_from_source(source, f"<{SOURCE} {_sum_of(source)[:12]}>", _parts(description))
    if not isinstance(description, Mapping) or not {"name", "options", "layers", "skipped"} <= set(
        description
    ):
        raise InvalidInput("the description of a sub-net must name name, options, layers and skipped")
    return apply_plan(load_model(description["name"], None, description["options"]), description)


def _parts(description: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The modules of the original network that a sub-net calls as they are."""
    sizes = description.get("parts")
    if not sizes:
        return {}
    try:
        model = load_model(description["name"], None, description["options"])
        parts = {path: model.get_submodule(path) for path in sizes}
        for path, changed in sizes.items():
            if changed:
                resize(parts[path], changed)
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"the sub-net calls {', '.join(sizes)} of the network that it was made from, and these cannot be built: "
            f"{error}; load it where that network's code is as it was"
        ) from error
    return parts


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
            Without a `model.py`, and where that calls modules of the original network as they are, the original
            network's code must be importable.

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
