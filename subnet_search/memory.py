"""How this process treats memory: freed memory kept, images stored channels last where that is faster."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from subnet_search.modes import evaluation_mode

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
TOP_PAD_BYTES = 2**26


def keep_freed_memory() -> bool:
    """Lets glibc's allocator keep what is freed, for the rest of this process; whether that was possible.

    By default it hands every large buffer back to the system, and each use of a new one then begins with page
    faults: up to 40 % of a small network's time. Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD_BYTES))
    return all(mallopt(option, value) == 1 for option, value in options)


def runs_channels_last(net: nn.Module, images: Tensor) -> bool:
    """Whether images `[B, C, H, W]` should go through `net` channels last: on a CPU, if its forward lets them.

    A `.view` that flattens a feature map refuses that order, of one grey channel only if weights are stored so too.
    In evaluation mode, where nothing changes.
    """
    if images.ndim != 4 or images.device.type != "cpu" or not images.is_floating_point():
        return False
    try:
        with evaluation_mode(net), torch.random.fork_rng(devices=[]):
            for stored in (False, True):  # evaluation leaves weights as they are, training does not
                with channels_last(net, stored), torch.inference_mode():
                    net(in_order(images[:2], True))
    except RuntimeError:
        return False
    return True


@contextmanager
def channels_last(net: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Stores the weights `[out, in, H, W]` of `net` channels last for a while, if `wanted`; values stay."""
    weights = [p for p in net.parameters() if p.ndim == 4 and p.is_contiguous()] if wanted else []
    try:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()


def in_order(images: Tensor, last: bool) -> Tensor:
    """The images, channels last if `last`."""
    return images.contiguous(memory_format=torch.channels_last) if last else images
