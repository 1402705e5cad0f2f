"""Losses against labels and against the answers of another network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces import InvalidInput


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy against labels, averaged over the batch.

    Args:
        logits: `[B, num_classes]`.
        labels: class numbers `[B]`, or probabilities `[B, num_classes]`.

    Raises:
        InvalidInput: a label is no class of the network (seen on the CPU), or the network gave no tensor.
    """
    if not isinstance(logits, Tensor):
        raise InvalidInput(
            f"the network must answer with one tensor of logits, got {type(logits).__name__}; turn auxiliary "
            "heads off (torchvision: aux_logits=False), or train with a step of your own"
        )
    try:
        return F.cross_entropy(at_least_float(logits), labels)
    except IndexError:
        raise InvalidInput(
            f"labels must be class numbers from 0 to {logits.shape[1] - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}; give the network as many outputs as there are classes"
        ) from None


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy against soft targets, -sum_c p_c log softmax(z)_c, averaged over the batch.

    Args:
        logits: z `[B, num_classes]`.
        probabilities: p `[B, num_classes]`, rows that sum to one.
    """
    return -(probabilities * F.log_softmax(at_least_float(logits), dim=1)).sum(dim=1).mean()


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Soft cross-entropy with a teacher's answers at temperature T, times T^2 to keep the gradients' size.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.

    Args:
        logits: `[B, num_classes]`.
        teacher_logits: `[B, num_classes]`; no gradient reaches them.
        temperature: T; larger is softer.
    """
    teacher = (at_least_float(teacher_logits.detach()) / temperature).softmax(dim=1)
    return temperature**2 * soft_cross_entropy(at_least_float(logits) / temperature, teacher)


def at_least_float(logits: Tensor) -> Tensor:
    """The same numbers in single precision, or in double where they are: half precision is too coarse here."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
