"""Ranking by what the loss would lose, to first order."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from search_spaces import InvalidInput
from subnet_search.batches import device_of, input_size, to_device
from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.ranking.gates import Gates
from subnet_search.ranking.scores import Ranking, best_first
from subnet_search.training.losses import cross_entropy


def taylor_ranking(supernet: Supernet, batches: Iterable[Batch]) -> Ranking:
    """Ranks units by the squared first-order change of the loss when they are taken away.

    With a gate on unit u wherever its channels end, the change is the derivative of the loss by that gate; the score
    is its square, summed over batches. Gradients are those of the largest net in evaluation mode; nothing in the
    supernet changes.

    Source:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019, arXiv:1906.10771. Unlike
        the paper, which sums over the weights that write a channel, the gate is where channels are read: there it
        is exact, also where several layers write a coupled group.

    Returns:
        For each group the order `[group.units]`, best first.

    Raises:
        InvalidInput: no batch, or batches of another size than the conversion's example.
    """
    gates, device = Gates(supernet), device_of(supernet)
    scores, num_batches = torch.zeros(gates.count, dtype=torch.float64), 0
    with gates.open():
        for images, labels in to_device(batches, device, input_size(supernet.example)):
            gates.shift = torch.zeros(len(images), gates.count, device=device, requires_grad=True)
            loss = cross_entropy(supernet(images), labels)
            (gradient,) = torch.autograd.grad(loss, [gates.shift], allow_unused=True, materialize_grads=True)
            scores += gradient.double().sum(dim=0).square().cpu()
            num_batches += 1
    if num_batches == 0:
        raise InvalidInput("taylor needs at least one batch to rank by, got none")
    return best_first(gates.by_name(scores)[0])
