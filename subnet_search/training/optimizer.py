"""SGD with decay where it belongs, and the learning rate over a run."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from search_spaces import InvalidInput
from subnet_search.settings import FinetuneSettings, TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings | FinetuneSettings) -> torch.optim.SGD:
    """SGD with Nesterov momentum; only weights of convolutions and linear layers decay.

    Raises:
        InvalidInput: all parameters are frozen.
    """
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, _ConvNd | nn.Linear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise InvalidInput(
            f"nothing in {type(model).__name__} can be trained: all its parameters are frozen (requires_grad is False)"
        )
    groups = [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
    )


def lr_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at a step: up linearly, then down to 0 along half a cosine.

    Args:
        step: counted from 0.
        total_steps: of the whole run.
        warmup_steps: at the end of these the peak is reached; at most `total_steps` count.
    """
    warmup_steps = min(warmup_steps, total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
