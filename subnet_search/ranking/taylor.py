"""Ranking by what the loss would lose, to first order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from search_spaces import InvalidInput
from subnet_search.batches import device_of, input_size, to_device
from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import evaluation_mode
from subnet_search.ranking.scores import Ranking, best_first, new_scores, per_input, weighted
from subnet_search.training.losses import cross_entropy


def taylor_ranking(supernet: Supernet, batches: Iterable[Batch]) -> Ranking:
    """Ranks units by the squared first-order change of the loss when they are taken away.

    Taking unit u away zeroes the weights that read it, so the change is  sum of w * dL/dw  over these; the
    score is its square, summed over batches. Gradients are those of the largest net in evaluation mode;
    nothing in the supernet changes.

    Source:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, arXiv:1906.10771. Unlike
        the paper, which sums over the weights that write a channel, the sum is over those that read it: there
        it is exactly the derivative by a gate on the channel, also where several layers write a coupled
        group.

    Returns:
        For each group the order `[group.units]`, best first.

    Raises:
        InvalidInput: no batch, or batches of another size than the conversion's example.
    """
    readers = {name: _mixing_readers(supernet, name) for name in supernet.groups}
    layers = {path: layer for found in readers.values() for path, layer in found.items()}
    weights = [layer.weight for layer in layers.values()]
    scores, num_batches = new_scores(supernet), 0
    with evaluation_mode(supernet), _requiring_gradients(weights), supernet.subnet(supernet.space.largest()):
        for images, labels in to_device(batches, device_of(supernet), input_size(supernet.example)):
            loss = cross_entropy(supernet(images), labels)
            gradients = torch.autograd.grad(loss, weights)
            products = {
                path: per_input(layer, (layer.weight * gradient).detach().double())
                for (path, layer), gradient in zip(layers.items(), gradients, strict=True)
            }
            for name, found in readers.items():
                changes = [supernet.unit_sums(name, path, products[path], side="in") for path in found]
                scores[name] += torch.stack(changes).sum(dim=0).square()
            num_batches += 1
    if num_batches == 0:
        raise InvalidInput("taylor needs at least one batch to rank by, got none")
    return best_first(scores)


def _mixing_readers(supernet: Supernet, name: str) -> dict[str, _ConvNd | nn.Linear]:
    """The layers in which a group's channels end; those that hand them on (depthwise) if there is no other."""
    group = supernet.groups[name]
    layers = weighted(supernet, group.readers)
    return {path: layer for path, layer in layers.items() if path not in group.writers} or layers


@contextmanager
def _requiring_gradients(weights: list[Tensor]) -> Iterator[None]:
    """Lets frozen weights have gradients for a while."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
