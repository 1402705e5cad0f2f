"""Many sub-nets of one supernet in one file: the shared weights once, batch-norm statistics for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetConfig
from search_spaces.files import config_from_json, config_to_json, space_from_json, space_to_json
from subnet_search.batches import device_of
from subnet_search.elastic import Statistics, Supernet, extract
from subnet_search.elastic.states import copy_state
from subnet_search.elastic.switchable import resting_norms
from subnet_search.record.atomic import flush_file, put_in_place, telling_what_failed, temporary_beside

WEIGHTS, STATISTICS = "weights.", "statistics."


@dataclass(frozen=True, eq=False)
class SubnetSet:
    """Sub-nets that a file holds, ready to be cut out.

    Attributes:
        supernet: with the file's weights.
        configs: in the order they were saved in.
    """

    supernet: Supernet
    configs: tuple[SubnetConfig, ...]
    _statistics: Mapping[str, Statistics]

    def statistics(self, config: SubnetConfig) -> Statistics:
        """The batch-norm statistics of one of the sub-nets; `InvalidInput` for any other."""
        key = self.supernet.space.canonical(config).key
        if key not in self._statistics:
            raise InvalidInput(f"the file holds no sub-net {key}; it has {', '.join(self._statistics)}")
        return self._statistics[key]

    def extract(self, config: SubnetConfig) -> nn.Module:
        """One of the sub-nets as a plain network, with the file's weights and its statistics."""
        return extract(self.supernet, config, statistics=self.statistics(config))


def save_subnets(
    file: str | Path, supernet: Supernet, statistics: Sequence[tuple[SubnetConfig, Statistics]]
) -> None:
    """Writes sub-nets and the weights that they share as one safetensors file, whole or not at all.

    Args:
        file: its folder has to be there.
        supernet: whose weights these are.
        statistics: pairs of a sub-net and its batch-norm statistics, from `recalibrate`; each sub-net once.

    Raises:
        InvalidInput: there is no sub-net, one comes twice or is of another space, or statistics are another one's.
        SubnetSearchError: the file cannot be written.
    """
    configs = _checked(supernet, statistics)
    tensors = {WEIGHTS + name: tensor for name, tensor in supernet.model.state_dict().items()}
    for config, (_, found) in zip(configs, statistics, strict=True):
        tensors |= {f"{STATISTICS}{config.key}.{name}": tensor for name, tensor in found.values.items()}
    # cloned: tied weights share memory, which the format refuses
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = {"configs": [config_to_json(c) for c in configs], "space": space_to_json(supernet.space)}
    metadata = {"subnets": json.dumps(told)}  # of several entries safetensors would shuffle the order
    file = Path(file)
    temporary = temporary_beside(file)
    try:
        with telling_what_failed(file):
            save_file(plain, str(temporary), metadata=metadata)
            flush_file(temporary)
            put_in_place(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def load_subnets(file: str | Path, supernet: Supernet) -> SubnetSet:
    """Reads what `save_subnets` wrote.

    Args:
        file: of a supernet with the same space and the same layers.
        supernet: gets the weights of the file, in place.

    Raises:
        InvalidInput: the file is missing or damaged, or of another space or network; the supernet stays as it was.
    """
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in list(opened.keys())}
        told = json.loads(metadata["subnets"])
        configs = tuple(config_from_json(data) for data in told["configs"])
        space = space_from_json(told["space"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InvalidInput(f"{file} holds no sub-nets: {error}; save them again with save_subnets") from error
    if space != supernet.space:
        raise InvalidInput(
            f"the sub-nets in {file} are of another space than the supernet's; convert the network that they came "
            "from, with the same ElasticSettings"
        )
    device = device_of(supernet)
    found = {config.key: _statistics_of(config, tensors, device) for config in configs}
    for config in configs:
        if missed := _missed(supernet, config, found[config.key]):
            raise InvalidInput(f"{file} is damaged: {missed}; save the sub-nets again with save_subnets")
    own = {name.removeprefix(WEIGHTS): t for name, t in tensors.items() if name.startswith(WEIGHTS)}
    try:
        copy_state(supernet.model, own)
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error}") from None
    return SubnetSet(supernet, configs, found)


def _statistics_of(config: SubnetConfig, tensors: Mapping[str, Tensor], device: torch.device) -> Statistics:
    prefix = f"{STATISTICS}{config.key}."
    values = {n.removeprefix(prefix): t.to(device) for n, t in tensors.items() if n.startswith(prefix)}
    return Statistics(config.key, values)


def _missed(supernet: Supernet, config: SubnetConfig, statistics: Statistics) -> str:
    """What is wrong with a sub-net's statistics: those of a batch norm that it runs are missing, or of another size."""
    skipped = tuple(f"{block}." for block in supernet.skipped_in(config))
    running = [path for path in supernet.batch_norms if not path.startswith(skipped)]
    with supernet.subnet(config):
        resting = resting_norms(supernet.model)
        parts = {path: supernet.batch_norms[path].active for path in running if path not in resting}
    whole = supernet.model.state_dict()
    for path, part in parts.items():
        width = len(whole[f"{path}.running_mean"]) if part is None else part.num_inputs
        for name in (f"{path}.running_mean", f"{path}.running_var"):
            tensor = statistics.values.get(name)
            if tensor is None or tensor.shape != (width,):
                came = "none" if tensor is None else list(tensor.shape)
                return f"sub-net {config.key} needs the statistics {name} [{width}], got {came}"
    return ""


def _checked(supernet: Supernet, statistics: Sequence[tuple[SubnetConfig, Statistics]]) -> list[SubnetConfig]:
    """The canonical configs."""
    if not statistics:
        raise InvalidInput("a file of sub-nets needs at least one, got none")
    configs: list[SubnetConfig] = []
    for config, found in statistics:
        supernet.space.check(config)
        configs.append(supernet.space.canonical(config))
        if found.config_key != configs[-1].key:
            raise InvalidInput(
                f"the statistics beside sub-net {configs[-1].key} belong to {found.config_key}; "
                "call recalibrate for each"
            )
        if missed := _missed(supernet, configs[-1], found):
            raise InvalidInput(f"{missed}; call recalibrate for this supernet")
    if len(set(configs)) < len(configs):
        twice = next(config for config in configs if configs.count(config) > 1)
        raise InvalidInput(f"each sub-net is saved once, got {twice.key} twice; leave one of them out")
    return configs
