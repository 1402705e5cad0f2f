"""Random flips and shifts of a whole batch at once, drawn from torch's global generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_flip(images: Tensor) -> Tensor:
    """Mirrors about half of the images `[B, C, H, W]` left to right."""
    flipped = torch.rand(len(images)) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def random_crop(images: Tensor) -> Tensor:
    """Shifts each image `[B, C, H, W]` by up to an eighth of its size; what comes in is 0 (black).

    Source:
        Padding and cutting at random as in He et al., arXiv:1512.03385, section 4.2 (4 pixels of 32).
    """
    count, channels, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    tops = torch.randint(2 * pad_y + 1, (count,))
    lefts = torch.randint(2 * pad_x + 1, (count,))
    rows = tops[:, None] + torch.arange(height)  # [B, H]
    columns = lefts[:, None] + torch.arange(width)  # [B, W]
    pixels = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # [B, H, W], into the padded image
    cut = padded.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(-1, channels, -1))
    return cut.view(count, channels, height, width)
