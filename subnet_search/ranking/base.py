"""Which units of each channel group are worth keeping first."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from search_spaces import SubnetSearchError
from subnet_search.data import Batch
from subnet_search.elastic.supernet import Supernet
from subnet_search.ranking.magnitude import bn_scale_ranking, l1_ranking
from subnet_search.ranking.noise import noise_ranking, weight_noise_ranking
from subnet_search.ranking.scores import Ranker, Ranking
from subnet_search.ranking.taylor import taylor_ranking
from subnet_search.seeding import derive_seed


def rank(supernet: Supernet, batches: Iterable[Batch], ranker: Ranker = noise_ranking) -> Ranking:
    """Orders the units of every group, for `supernet.reorder`; the supernet itself stays as it is.

    Args:
        supernet: trained.
        batches: (input `[B, ...]`, target `[B]`) of training data without augmentation.
        ranker: the method; its result is checked here.

    Returns:
        For each group the order over its units `[group.units]`, best first, on the CPU.

    Raises:
        SubnetSearchError: the ranker left a group out or gave no permutation.
    """
    ranking = ranker(supernet, batches)
    for name, group in supernet.groups.items():
        order = ranking.get(name)
        if order is None or not torch.equal(order.cpu().sort().values, torch.arange(group.units)):
            raise SubnetSearchError(
                f"a ranker must give a permutation of the {group.units} units of group {name!r}, "
                f"got {order}; mend the ranker"
            )
    return {name: ranking[name].cpu() for name in supernet.groups}


def random_ranking(supernet: Supernet, batches: Iterable[Batch], *, seed: int = 0) -> Ranking:
    """The control every method must beat: an order by chance, from the seed and the group's name alone."""
    return {
        name: torch.from_numpy(
            np.random.default_rng(derive_seed(seed, "ranking", name)).permutation(group.units)
        )
        for name, group in supernet.groups.items()
    }


def natural_ranking(supernet: Supernet, batches: Iterable[Batch]) -> Ranking:
    """The order that the channels have already, as in methods that rank nothing (US-Net)."""
    return {name: torch.arange(group.units) for name, group in supernet.groups.items()}


RANKERS: dict[str, Ranker] = {
    "noise": noise_ranking,
    "weight_noise": weight_noise_ranking,
    "l1": l1_ranking,
    "bn_scale": bn_scale_ranking,
    "taylor": taylor_ranking,
    "random": random_ranking,
    "natural": natural_ranking,
}
