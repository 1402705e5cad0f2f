"""Builds a stored sub-net again, without search, supernet or tracing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.elastic import Supernet, apply_plan, layer_plan
from subnet_search.models import load_model, load_weights
from subnet_search.settings import ModelSettings


def describe_network(model: ModelSettings, supernet: Supernet, config: SubnetConfig) -> dict[str, Any]:
    """What `rebuild_network` needs, as plain data: the original network's name and the sub-net's sizes."""
    return {"name": model.name, "options": dict(model.options), **layer_plan(supernet, config)}


def rebuild_network(description: Mapping[str, Any]) -> nn.Module:
    """The sub-net's structure; its weights wait to be loaded.

    Raises:
        InvalidInput: the original network cannot be built, or the description does not fit it.
    """
    if not isinstance(description, Mapping) or not {"name", "options", "layers", "skipped"} <= set(
        description
    ):
        raise InvalidInput("the description of a sub-net must name name, options, layers and skipped")
    return apply_plan(load_model(description["name"], None, description["options"]), description)


def load_subnet(folder: str | Path) -> nn.Module:
    """A sub-net of a run, as a plain network in evaluation mode: `load_subnet("runs/quickstart/subnets/KEY")`.

    Args:
        folder: holds `network.json` and `net.safetensors`; it may have been copied elsewhere. The original
            network's code must be importable.

    Raises:
        InvalidInput: a file is missing or damaged, or does not fit.
    """
    path = Path(folder, "network.json")
    try:
        description = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{path} cannot be read: {error}; give the folder of an exported sub-net, RUN/subnets/KEY"
        ) from error
    net = load_weights(rebuild_network(description), Path(folder, "net.safetensors")).eval()
    net.calibrated = True  # type: ignore[assignment]
    return net
