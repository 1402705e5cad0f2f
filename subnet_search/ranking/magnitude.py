"""Rankings by the size of weights; they look at no data."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from search_spaces import InvalidInput
from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.ranking.scores import Ranking, Scores, best_first, filters, new_scores, norms


def l1_ranking(supernet: Supernet, batches: Iterable[Batch]) -> Ranking:
    """Ranks units by the L1 norm of the filters that write them.

    The score of unit u is  sum over the weights that write it of |W[u]|_1 / mean over filters of |W|_1.

    Source:
        Li et al., "Pruning Filters for Efficient ConvNets", 2017, arXiv:1608.08710. Unlike the paper, all
        weights that write a coupled group have a say, and an equal one.

    Returns:
        For each group the order `[group.units]`, best first; `batches` are not read.
    """
    return best_first(_l1_scores(supernet))


def bn_scale_ranking(supernet: Supernet, batches: Iterable[Batch]) -> Ranking:
    """Ranks units by the absolute scale of the batch norms that they pass; groups without one by L1 norm.

    The score of unit u is  sum over its batch norms of |gamma_u|.

    Source:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017,
        arXiv:1708.06519.

    Returns:
        For each group the order `[group.units]`, best first; `batches` are not read.

    Raises:
        InvalidInput: no group has a batch norm.
    """
    scores, fallback, found = new_scores(supernet), _l1_scores(supernet), False
    for name, group in supernet.groups.items():
        layers = norms(supernet, group.readers)
        for path, layer in layers.items():
            scores[name] += supernet.unit_sums(name, path, layer.weight.detach().abs(), side="in")
        scores[name] = scores[name] if layers else fallback[name]
        found = found or bool(layers)
    if not found:
        raise InvalidInput(
            f"bn_scale needs batch norm, and none is in the groups of {type(supernet.model).__name__}; "
            'use the ranker "taylor" or "l1"'
        )
    return best_first(scores)


@torch.no_grad()
def _l1_scores(supernet: Supernet) -> Scores:
    scores = new_scores(supernet)
    for name, group in supernet.groups.items():
        for found in filters(supernet, group).values():
            norm = found.sums(found.weight.double().abs())
            scores[name] += found.per_unit(group, norm / norm.mean().clamp_min(1e-30))
    return scores
