"""An LC-Net in a run folder, without pickle, and back from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from search_spaces import InvalidInput
from search_spaces.knob import whole_number
from subnet_search.dynamic.layer_channel import LayerChannelNet
from subnet_search.dynamic.storing import DESCRIPTION, FOLDER, Stored, read_description, verify
from subnet_search.elastic import make_elastic
from subnet_search.models import load_model, load_weights
from subnet_search.record import Run
from subnet_search.settings import ElasticSettings, ModelSettings

WEIGHTS = "layers.safetensors"


def store_layer_channel(
    run: Run,
    net: LayerChannelNet,
    model: ModelSettings,
    elastic: ElasticSettings,
    input_size: Sequence[int],
    points: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Writes the net into `dynamic/` of a run; `dynamic.json` comes last, so that without it nothing is there.

    Args:
        run: open for writing.
        net: trained.
        model: the network that it is of.
        elastic: how that was converted.
        input_size: of one image.
        points: operating points as plain data, each with its "threshold".
        facts: whatever else is to stand in `dynamic.json`; "channel_groups" of the settings is read back.
    """
    run.delete(f"{FOLDER}/{DESCRIPTION}")
    state = {name: t.detach().cpu().clone().contiguous() for name, t in net.state_dict().items()}
    run.write(f"{FOLDER}/{WEIGHTS}", safetensors.torch.save(state))
    described = {
        "method": "lc",
        "model": {"name": model.name, "options": dict(model.options)},
        "elastic": elastic.model_dump(mode="json"),
        "input": list(input_size),
        "channel_groups": max((g.parts for block in net.blocks for g in block.groups), default=2),
        "blocks": [block.path for block in net.blocks],
        "groups": [[group.name for group in block.groups] for block in net.blocks],
        "largest_macs": net.total_macs,
        "points": list(points),
    }
    run.write_json(f"{FOLDER}/{DESCRIPTION}", {**described, **facts})


def load_layer_channel(folder: str | Path, point: int = 0) -> Stored:
    """The LC-Net of a run, `load_layer_channel("runs/NAME/dynamic").net`, at one of its operating points.

    Raises:
        InvalidInput: a file is missing or damaged, or does not fit; no such operating point.
    """
    folder = Path(folder)
    verify(folder, [WEIGHTS])
    told = read_description(folder, "lc")
    points = tuple(told["points"])
    try:
        model = load_model(told["model"]["name"], None, told["model"]["options"])
        example = torch.zeros(1, *told["input"])
        supernet = make_elastic(model.eval(), example, ElasticSettings(**told["elastic"]))
        net = LayerChannelNet(supernet, int(told["channel_groups"]), groups=told.get("groups"))
        if points and not 0 <= whole_number(point, "the operating point") < len(points):
            raise InvalidInput(f"{folder} has operating points 0 to {len(points) - 1}, got {point}")
        load_weights(net, folder / WEIGHTS).eval()
        if points:
            net.threshold = float(points[point]["threshold"])
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise InvalidInput(f"{folder / DESCRIPTION} describes no LC-Net: {error!r}; make it again") from error
    return Stored(net, points, told)
