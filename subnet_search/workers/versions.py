"""What must be the same in all processes of a search."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTIONS = ("subnet-search", "torch", "torchvision", "numpy")


def own_versions() -> Mapping[str, str]:
    """Versions of Python, of this package and of what values depend on, in this process."""
    return {"python": ".".join(platform.python_version_tuple()[:2])} | {
        n: _installed(n) for n in DISTRIBUTIONS
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def difference(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """How versions differ, in words; "" where they do not."""
    other = [name for name in mine if mine[name] != theirs.get(name)]
    return ", ".join(f"{name} {theirs.get(name, 'none')} instead of {mine[name]}" for name in other)
