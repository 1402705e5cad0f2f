"""The parameter-free shortcut of small-image ResNets, as a module whose channels may shrink."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """Takes every `stride`-th pixel and pads the channels with zeros, half before and half after.

    Which input channel feeds which output channel is data (`sources`, -1 for zero), so both sides may be
    reordered and shrunk independently of each other: a missing input channel reads as zero.

    Source: option A of He et al., "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
    """

    sources: Tensor  # int64 [out_channels]

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        before = (out_channels - in_channels) // 2
        sources = torch.full((out_channels,), -1, dtype=torch.int64)
        sources[before : before + in_channels] = torch.arange(in_channels)
        self.register_buffer("sources", sources)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, in_channels, H, W]` to `[B, out_channels, ceil(H / stride), ceil(W / stride)]`."""
        return self.gather(x, self.sources)

    def gather(self, x: Tensor, sources: Tensor) -> Tensor:
        """The forward with the given sources `[out_channels]`."""
        x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, 1))
        zero_channel = x.shape[1] - 1
        return x.index_select(1, torch.where(sources < 0, zero_channel, sources))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + "sources", self.sources)  # weights published elsewhere do not have it
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"
