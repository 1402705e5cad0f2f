"""Where images come from, how they are split, and what is done to them on the way to the network."""

from subnet_search.data.doubts import doubts
from subnet_search.data.fit import check_files, check_network
from subnet_search.data.identity import changed, checksums
from subnet_search.data.memory import Batch, TensorBatches
from subnet_search.data.shares import split_indices
from subnet_search.data.sources import digits, load_splits, splits_from_arrays
from subnet_search.data.splits import Splits, describe

__all__ = [
    "Batch",
    "Splits",
    "TensorBatches",
    "changed",
    "check_files",
    "check_network",
    "checksums",
    "describe",
    "digits",
    "doubts",
    "load_splits",
    "split_indices",
    "splits_from_arrays",
]
