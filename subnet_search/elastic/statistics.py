"""Batch-norm statistics of one sub-net, as a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.batches import call_with, moved
from subnet_search.modes import evaluation_mode

if TYPE_CHECKING:
    from subnet_search.elastic.layers import ElasticBatchNorm
    from subnet_search.elastic.supernet import Supernet


@dataclass(frozen=True, eq=False)
class Statistics:
    """Running means and variances of the kept channels of one sub-net.

    `values` is keyed by the names of the sub-net's own state dict, "layer1.0.bn1.running_mean" and so on.
    """

    config_key: str
    values: Mapping[str, Tensor]

    def of(self, path: str) -> tuple[Tensor, Tensor] | None:
        """Mean and variance of one layer, or None for a layer that this sub-net skips."""
        mean = self.values.get(f"{path}.running_mean")
        return None if mean is None else (mean, self.values[f"{path}.running_var"])


@torch.no_grad()
def recalibrate(supernet: Supernet, config: SubnetConfig, batches: Iterable[Any]) -> Statistics:
    """Measures the batch-norm statistics of one sub-net.

    Batch-norm layers alone normalise with the batch and average its mean and (unbiased) variance with equal
    weight per batch; everything else runs in evaluation mode. Nothing in the supernet changes.

    Args:
        supernet: the shared weights.
        config: the sub-net.
        batches: unaugmented training batches: inputs, or (inputs, targets) pairs. Where the network takes several
            inputs, such pairs, with a tuple or dict of inputs; targets may be None.

    Source:
        Yu, Huang, "Universally Slimmable Networks", arXiv:1903.05134, section 3.3.

    Raises:
        InvalidInput: there was no batch, one with a single value per channel, or the statistics are not finite.
    """
    config = supernet.space.canonical(config)
    if not supernet.uses_batch_norm:
        return Statistics(config.key, {})
    device = next(supernet.model.parameters()).device
    with evaluation_mode(supernet), supernet.subnet(config):
        inputs = (batch[0] if isinstance(batch, tuple | list) else batch for batch in batches)
        values, answers = collect(
            supernet.batch_norms, partial(call_with, supernet), (moved(x, device) for x in inputs)
        )
    if not answers:
        raise InvalidInput("recalibrate needs at least one batch of training inputs, got none")
    return Statistics(config.key, values)


def collect(
    norms: Mapping[str, ElasticBatchNorm], part: Callable[[Any], Any], inputs: Iterable[Any]
) -> tuple[dict[str, Tensor], list[Any]]:
    """Averages the statistics of `norms` while `part` of the active sub-net, in evaluation mode, sees `inputs`.

    Args:
        norms: the batch norms of that part, by path.
        part: runs them.
        inputs: batches of what comes into the part.

    Returns:
        The values of `Statistics` of the layers that ran, and what the part made of each batch.

    Raises:
        InvalidInput: a batch with a single value per channel, or statistics that are not finite.
    """
    for norm in norms.values():
        norm.start_collecting()
    outputs: list[Any] = []
    try:
        for batch in inputs:
            try:
                outputs.append(part(batch))
            except ValueError as error:  # torch's: a variance needs two values
                raise InvalidInput(
                    f"batch-norm statistics cannot be measured on a batch of {len(tree_leaves(batch)[0])}: {error}; "
                    "give larger batches"
                ) from error
        seen = {path: norm.collected for path, norm in norms.items() if norm.batches_collected}
    finally:
        for norm in norms.values():
            norm.collected, norm.batches_collected = None, 0
    values = {
        f"{path}.{name}": tensor
        for path, pair in seen.items()
        if pair is not None
        for name, tensor in zip(("running_mean", "running_var"), pair, strict=True)
    }
    broken = next((name for name, tensor in values.items() if not tensor.isfinite().all()), None)
    if broken:
        raise InvalidInput(f"the statistics {broken} are not finite; check inputs and weights")
    return values, outputs


def save_statistics(statistics: Statistics, path: str | Path) -> None:
    """Writes the statistics as a safetensors file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in statistics.values.items()}
    save_file(tensors, str(path), metadata={"config_key": statistics.config_key})


def load_statistics(path: str | Path) -> Statistics:
    """Reads what `save_statistics` wrote; a broken file raises `InvalidInput`."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            return Statistics(
                metadata["config_key"], {name: file.get_tensor(name) for name in list(file.keys())}
            )
    except (SafetensorError, OSError, KeyError) as error:
        raise InvalidInput(f"{path} holds no statistics: {error}; delete it and recalibrate") from error
