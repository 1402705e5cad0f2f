"""Where the data for benchmarks are; no torch."""

from __future__ import annotations

import os
from pathlib import Path

from search_spaces import InvalidInput


def data_folder() -> Path:
    """Where the real data sets are: $SUBNET_SEARCH_DATA, else shared/data beside the checkout."""
    folder = Path(os.environ.get("SUBNET_SEARCH_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        raise InvalidInput(f"the real data are not in {folder}; name their folder in $SUBNET_SEARCH_DATA")
    return folder.resolve()
