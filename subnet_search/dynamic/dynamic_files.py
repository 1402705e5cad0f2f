"""One file with everything that a run-time needs: shared weights once, each sub-net's structure and own tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetConfig
from search_spaces.files import config_from_json, config_to_json
from subnet_search.dynamic.sharing import beginning, bytes_of, digest_of, needed_part, split_shared
from subnet_search.elastic import Statistics, Supernet, apply_plan, extract
from subnet_search.elastic.states import assign_state
from subnet_search.rebuilding import describe_network, is_graph, network_source, rebuild_network
from subnet_search.record.atomic import flush_file, put_in_place, telling_what_failed, temporary_beside
from subnet_search.settings import ModelSettings

WEIGHTS, OWN, ENTRY, FORMAT = "weights.", "own.", "dynamic", 2
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


@dataclass(frozen=True, slots=True)
class Member:
    """One sub-net of a dynamic network.

    Attributes:
        config: in the space that it comes from.
        macs: multiply-adds of one input.
        top1_percent: on search-validation, where it was told.
    """

    config: SubnetConfig
    macs: int
    top1_percent: float | None = None

    @property
    def key(self) -> str:
        """The short name of the config."""
        return self.config.key


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a file holds: networks in evaluation mode whose weights are views of shared memory where they can be.

    Attributes:
        members: in the order they were saved in.
        nets: as many.
        example: an input of zeros at batch 1.
        whole: the shared weights.
        own_bytes: of what each network has for itself.
    """

    members: tuple[Member, ...]
    nets: tuple[nn.Module, ...]
    example: Tensor
    whole: Mapping[str, Tensor]
    own_bytes: tuple[int, ...]


def save_dynamic(
    file: str | Path,
    supernet: Supernet,
    subnets: Sequence[tuple[SubnetConfig, Statistics | None]],
    *,
    model: ModelSettings | str = "",
    top1_percent: Sequence[float] | None = None,
) -> None:
    """Writes sub-nets of one supernet for `DynamicNet.load`, as one safetensors file, whole or not at all.

    Args:
        file: its folder has to be there.
        supernet: whose weights these are; it takes one tensor.
        subnets: pairs of a sub-net and its batch-norm statistics from `recalibrate` (None without batch norm).
        model: what built the network, as in a recipe: "package.module:factory", or with options. Without it whoever
            loads has to give `build`.
        top1_percent: of each sub-net on search-validation; it decides which one is better where it is given, else
            multiply-adds do.

    Raises:
        InvalidInput: no sub-net, one that comes twice or lacks statistics, a supernet of several inputs.
        SubnetSearchError: the file cannot be written.
    """
    configs = _checked(supernet, subnets, top1_percent)
    settings = ModelSettings(name=model) if isinstance(model, str) else model
    whole = supernet.model.state_dict()
    told, shapes, owns = [], [], []
    macs = supernet.costs.macs(supernet.space.encode(configs)).tolist()
    for place, (config, (_, statistics)) in enumerate(zip(configs, subnets, strict=True)):
        net = extract(supernet, config, statistics=statistics)
        if not net.calibrated:
            raise InvalidInput(
                f"sub-net {config.key} has no batch-norm statistics of its own; give those of "
                "recalibrate(supernet, config, images)"
            )
        shared, own = split_shared(net.state_dict(), whole)
        shapes.append(shared)
        owns.append(own)
        told.append({
            "config": config_to_json(config),
            "description": describe_network(settings, supernet, config),
            "source": network_source(supernet, config),
            "shared": {name: list(shape) for name, shape in shared.items()},
            "macs": macs[place],
            "top1_percent": None if top1_percent is None else float(top1_percent[place]),
        })  # fmt: skip
    tensors = {WEIGHTS + name: tensor for name, tensor in needed_part(whole, shapes).items()}
    for config, own in zip(configs, owns, strict=True):
        tensors |= {
            f"{OWN}{config.key}.{name}": t.detach().cpu().contiguous().clone() for name, t in own.items()
        }
    example = supernet.example
    assert isinstance(example, Tensor)
    about = {
        "format": FORMAT,
        "input": list(example.shape[1:]),
        "dtype": str(example.dtype).removeprefix("torch."),
        "subnets": told,
    }
    _write(Path(file), tensors, about | {"sha256": digest_of(tensors, about)})


def _write(file: Path, tensors: dict[str, Tensor], about: Mapping[str, Any]) -> None:
    temporary = temporary_beside(file)
    try:
        with telling_what_failed(file):
            save_file(tensors, str(temporary), metadata={ENTRY: json.dumps(about)})
            flush_file(temporary)
            put_in_place(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _checked(
    supernet: Supernet,
    subnets: Sequence[tuple[SubnetConfig, Statistics | None]],
    top1_percent: Sequence[float] | None,
) -> list[SubnetConfig]:
    """The canonical configs."""
    if not subnets:
        raise InvalidInput("a dynamic network needs at least one sub-net, got none")
    if not isinstance(supernet.example, Tensor):
        raise InvalidInput(
            f"a dynamic network takes one tensor, this one takes a {type(supernet.example).__name__} of inputs; wrap "
            "it in a module that takes one"
        )
    if not supernet.example.is_floating_point():
        raise InvalidInput(f"the input must be of floating-point numbers, got {supernet.example.dtype}")
    if top1_percent is not None and len(top1_percent) != len(subnets):
        raise InvalidInput(f"each of {len(subnets)} sub-nets needs its accuracy, got {len(top1_percent)}")
    if top1_percent is not None and not all(map(math.isfinite, top1_percent)):
        raise InvalidInput(f"accuracies must be finite percentages, got {list(top1_percent)}")
    configs = [supernet.space.canonical(config) for config, _ in subnets]
    if len(set(configs)) < len(configs):
        twice = next(config for config in configs if configs.count(config) > 1)
        raise InvalidInput(f"each sub-net is saved once, got {twice.key} twice; leave one of them out")
    return configs


def load_dynamic(
    file: str | Path,
    *,
    build: Callable[[], nn.Module] | None = None,
    trusted: bool = False,
    device: torch.device | None = None,
) -> Loaded:
    """Reads what `save_dynamic` wrote; no conversion, no tracing.

    Args:
        file: of `save_dynamic`.
        build: makes the original network; by default what the file names, which must be importable.
        trusted: sub-nets of the graph form are kept as source, which is executed: True says that you know where the
            file comes from.
        device: where the weights go.

    Raises:
        InvalidInput: the file is missing, damaged or of something else, holds code and is not trusted, or the network
            that it names cannot be built.
    """
    device = device or torch.device("cpu")
    try:
        with safe_open(str(file), framework="pt") as opened:
            about = json.loads((opened.metadata() or {})[ENTRY])
            tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
        check_format(about, FORMAT)
        if about.pop("sha256") != digest_of(tensors, about):
            raise ValueError("its content is not what was written")
        members = tuple(member_from(told) for told in about["subnets"])
        example = torch.zeros(1, *input_size(about), device=device, dtype=DTYPES[about["dtype"]])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{file} holds no dynamic network: {error}; write it with save_dynamic") from error
    tensors = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
    whole = {name.removeprefix(WEIGHTS): t for name, t in tensors.items() if name.startswith(WEIGHTS)}
    nets, owns = [], []
    for member, told in zip(members, about["subnets"], strict=True):
        if told.get("source") is not None and not trusted:
            raise InvalidInput(
                f"{file} holds the source of sub-net {member.key}, which would be executed; pass trusted=True if you "
                "know who made the file"
            )
        prefix = f"{OWN}{member.key}."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        try:
            nets.append(_net(told, whole, own, build).to(device))
        except (InvalidInput, KeyError, TypeError) as error:
            raise InvalidInput(f"{file}, sub-net {member.key}: {error}") from error
        owns.append(bytes_of(own))
    return Loaded(members, tuple(nets), example, whole, tuple(owns))


def check_format(about: Mapping[str, Any], wanted: int) -> None:
    """Raises `ValueError` for what another version of this project wrote."""
    if about["format"] != wanted:
        raise ValueError(f"it is of format {about['format']}, and this version reads {wanted}")


def input_size(about: Mapping[str, Any]) -> list[int]:
    """The size of one input; `ValueError` if it is none."""
    size = [int(length) for length in about["input"]]
    if min(size, default=1) < 1:
        raise ValueError(f"an input of size {size}")
    return size


def member_from(told: Mapping[str, Any]) -> Member:
    """A member from its JSON; `ValueError` if its numbers are none."""
    top1 = told["top1_percent"]
    if top1 is not None and not math.isfinite(top1):
        raise ValueError(f"an accuracy of {top1}")
    return Member(config_from_json(told["config"]), int(told["macs"]), top1)


def _net(
    told: Mapping[str, Any],
    whole: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    build: Callable[[], nn.Module] | None,
) -> nn.Module:
    description = told["description"]
    if build is not None and not is_graph(description):
        net = apply_plan(build(), description)
        if description.get("input_px") is not None:
            net.input_px = tuple(description["input_px"])  # type: ignore[assignment]
    elif not description["name"] and not (is_graph(description) and not description.get("parts")):
        raise InvalidInput(
            "the file does not name the network that it was made from; pass build=, a function that makes it"
        )
    else:
        net = rebuild_network(description, told["source"])
    state: dict[str, Tensor] = dict(own)
    for name, shape in told["shared"].items():
        view = beginning(whole[name], tuple(shape)) if name in whole else None
        if view is None:
            raise InvalidInput(f"the shared weight {name} is missing or too small; write the file again")
        state[name] = view
    assign_state(net, state)
    net.requires_grad_(False).eval()
    net.calibrated = True  # type: ignore[assignment]
    return net


def in_memory(
    supernet: Supernet,
    subnets: Sequence[tuple[SubnetConfig, Statistics | None]],
    top1_percent: Sequence[float] | None,
) -> Loaded:
    """The same without a file: the networks hold views of the supernet's own weights, which must not be trained on."""
    configs = _checked(supernet, subnets, top1_percent)
    macs = supernet.costs.macs(supernet.space.encode(configs)).tolist()
    whole = {name: tensor.detach() for name, tensor in supernet.model.state_dict().items()}
    members, nets, owns = [], [], []
    for place, (config, (_, statistics)) in enumerate(zip(configs, subnets, strict=True)):
        net = extract(supernet, config, statistics=statistics)
        if not net.calibrated:
            raise InvalidInput(
                f"sub-net {config.key} has no batch-norm statistics of its own; recalibrate it first"
            )
        shared, own = split_shared(net.state_dict(), whole)
        views = {name: beginning(whole[name], shape) for name, shape in shared.items()}
        assign_state(net, own | {name: view for name, view in views.items() if view is not None})
        nets.append(net.requires_grad_(False).eval())
        top1 = None if top1_percent is None else float(top1_percent[place])
        members.append(Member(config, macs[place], top1))
        owns.append(bytes_of(own))
    example = supernet.example
    assert isinstance(example, Tensor)
    return Loaded(tuple(members), tuple(nets), torch.zeros_like(example), whole, tuple(owns))
