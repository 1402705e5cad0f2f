"""The double-headed gate: from features, what weighs channels and which sub-net goes on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import InvalidInput


class DoubleHeadedGate(nn.Module):
    """Chooses one of several sub-nets for each input, and weighs the channels that they get.

    With g = the mean over positions, standardised, and u = relu(W1 g), the slimming head gives logits s = W3 u + b, and
    the attention head multiplies every channel by 2 sigmoid(W2 u), which begins at one. In evaluation the choice is
    argmax(s - price * cost), the same for the same input; noise is for training alone. With `values` s goes through a
    sigmoid: it is to be the probability that the choice is right.

    Source:
        Li et al., "Dynamic Slimmable Network", 2021, arXiv:2103.13258. Unlike the authors' code, no noise is drawn in
        evaluation, the logits have a bias, and `price`, found after training, sets the mean cost; `values` are ours.

    Args:
        channels: of the features.
        axis: of the channels.
        costs: of each choice, the largest net's being 1, `[num_choices]`.
        hidden: units of u.
        attention: whether there is an attention head.
        values: whether the slimming head gives probabilities instead of logits.
    """

    def __init__(
        self,
        channels: int,
        axis: int,
        costs: Sequence[float],
        hidden: int = 32,
        attention: bool = False,
        values: bool = False,
    ) -> None:
        super().__init__()
        if len(costs) < 2:
            raise InvalidInput(f"a gate needs at least two choices, got {len(costs)}")
        self.axis, self.values = axis, values
        self.squeeze = nn.Linear(channels, hidden)
        head = nn.Linear(hidden, len(costs))
        self.slimming: nn.Module = nn.Sequential(head, nn.Sigmoid()) if values else head
        self.attention = nn.Linear(hidden, channels) if attention else None
        if self.attention is not None:
            nn.init.zeros_(self.attention.weight)
            nn.init.zeros_(self.attention.bias)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("cost", torch.tensor(list(costs), dtype=torch.float32))
        self.register_buffer("price", torch.zeros(()))
        self.mean: Tensor
        self.scale: Tensor
        self.cost: Tensor
        self.price: Tensor

    @property
    def num_choices(self) -> int:
        """How many sub-nets there are to choose from."""
        return len(self.cost)

    def pooled(self, features: Tensor) -> Tensor:
        """The mean over all positions of features `[B, ..., C, ...]`: `[B, C]`."""
        others = [axis for axis in range(1, features.ndim) if axis != self.axis]
        return features.mean(dim=others) if others else features

    def standardise(self, pooled: Tensor) -> None:
        """Measures mean and spread of pooled features `[num_images, C]`, which are taken off from then on."""
        self.mean.copy_(pooled.mean(dim=0))
        self.scale.copy_(1.0 / (pooled.std(dim=0) + 1e-5))

    def units(self, pooled: Tensor) -> Tensor:
        """What both heads read, `[B, hidden]`."""
        return F.relu(self.squeeze((pooled - self.mean) * self.scale))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, num_choices]` and the features, weighed if there is an attention head."""
        units = self.units(self.pooled(features))
        if self.attention is None:
            return self.slimming(units), features
        weights = 2.0 * torch.sigmoid(self.attention(units))  # [B, C]
        for axis in range(1, features.ndim):
            weights = weights if axis == self.axis else weights.unsqueeze(axis)
        return self.slimming(units), features * weights

    def decide(self, logits: Tensor) -> Tensor:
        """The choice for each row of logits `[B, num_choices]`: `[B]`."""
        return (logits - self.price * self.cost).argmax(dim=1)

    def macs(self) -> int:
        """Multiply-adds for one input: those of its linear layers, the product with the features not counted."""
        layers = [m for m in self.modules() if isinstance(m, nn.Linear)]
        return sum(layer.in_features * layer.out_features for layer in layers)


def straight_through(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """A Gumbel-softmax sample as one-hot rows `[B, num_choices]`, whose gradient is the soft sample's.

    Source:
        Jang, Gu, Poole, "Categorical Reparameterization with Gumbel-Softmax", 2016, arXiv:1611.01144.
    """
    return F.gumbel_softmax(logits, tau=temperature, hard=True, dim=1)
