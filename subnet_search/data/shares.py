"""Cuts one pool of images into splits by shares."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from search_spaces.errors import InvalidInput
from subnet_search.settings import DataSettings


def split_indices(
    labels: np.ndarray, settings: DataSettings, given: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Seeded, stratified, disjoint index sets that cover every image.

    Args:
        labels: `[num_images]` class of each image.
        settings: the shares and the seed.
        given: splits that the source has already ("test", "search_val"); nothing is cut off for them.

    Returns:
        "train", "search_val", "test" and "gate" (perhaps empty), ascending indices each.
    """
    test_share = 0.0 if "test" in given else settings.test_share
    val_share = 0.0 if "search_val" in given else settings.search_val_share
    if test_share + val_share >= 1:
        raise InvalidInput(
            "test_share and search_val_share must leave something to train on, "
            f"got {test_share} + {val_share}; choose smaller shares"
        )
    rng = np.random.default_rng(settings.seed)
    parts: dict[str, list[np.ndarray]] = {"test": [], "search_val": [], "gate": [], "train": []}
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        num_test, num_val = round(test_share * len(members)), round(val_share * len(members))
        num_gate = round(settings.gate_share * (len(members) - num_test - num_val))
        cuts = np.cumsum([num_test, num_val, num_gate])
        for name, part in zip(parts, np.split(members, cuts), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}
