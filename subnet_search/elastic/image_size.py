"""Images of the size that a sub-net takes: the supernet resizes them itself, for plain sub-nets this is done here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from search_spaces import InvalidInput
from subnet_search.elastic.graph import Example

Size = tuple[int, int]  # height and width in pixels
T = TypeVar("T")


def resized(given: T, size_px: Size | None) -> T:
    """What a network is given, with all images `[B, C, H, W]` in it at one size.

    Args:
        given: a tensor, or a tuple or dict of arguments.
        size_px: height and width; images that have it stay as they are, and None leaves all of them so.
    """
    return given if size_px is None else tree_map(lambda value: _image(value, size_px), given)


def _image(value: object, size_px: Size) -> object:
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.is_floating_point():
        return value
    if value.shape[-2:] == size_px:
        return value
    wide = value.float() if value.element_size() < 4 else value  # CPUs have no kernel for half precision
    found = F.interpolate(wide, size_px, mode="bilinear", antialias=True, align_corners=False)
    return found.to(value.dtype)


def as_taken(net: object, given: T) -> T:
    """What `net` is given, with images of the size that it takes.

    Only sub-nets of a supernet that offers several sizes have one, their `input_px`; all other networks are given what
    comes. Whatever feeds data of full size into a plain network goes through here.
    """
    return resized(given, getattr(net, "input_px", None))


def lower_sizes(example: Example, heights: Sequence[int]) -> dict[int, Size]:
    """The sizes below the example's, by height, the largest first.

    Args:
        example: of the network.
        heights: in pixels, in any order; the example's own may be among them.

    Raises:
        InvalidInput: the network takes something else than images, or a size makes no sense.
    """
    if not heights:
        return {}
    if not (isinstance(example, Tensor) and example.ndim == 4 and example.is_floating_point()):
        came = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise InvalidInput(
            f"resolution={tuple(heights)} needs a network that takes images [B, C, H, W] and nothing else, and such an "
            f"example, got {came}; leave resolution out"
        )
    height, width = example.shape[-2:]
    for asked in heights:
        if asked > height:
            raise InvalidInput(
                f"resolution={tuple(heights)} may not be above the height of the example, {height} pixels, got "
                f"{asked}; convert with an example of the largest size, or leave {asked} out"
            )
        if asked * width % height:
            raise InvalidInput(
                f"resolution={tuple(heights)}: images of {height} x {width} pixels would be {asked} x "
                f"{asked * width / height:g}; take multiples of {height // math.gcd(height, width)}"
            )
    lower = sorted({asked for asked in heights if asked < height}, reverse=True)
    return {asked: (asked, asked * width // height) for asked in lower}
