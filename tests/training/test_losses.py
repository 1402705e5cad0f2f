from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from search_spaces import InvalidInput
from subnet_search.training.losses import cross_entropy, distillation_loss, soft_cross_entropy

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
TEACHER = torch.tensor([[0.2, 0.1, 2.0], [1.0, -1.0, 0.0]])


def test_soft_cross_entropy_is_its_formula() -> None:
    p = TEACHER.softmax(1)
    wanted = -sum(
        p[b, c] * torch.log(LOGITS[b].exp()[c] / LOGITS[b].exp().sum()) for b in range(2) for c in range(3)
    )
    torch.testing.assert_close(soft_cross_entropy(LOGITS, p), wanted / 2)


def test_soft_cross_entropy_with_one_hot_targets_is_cross_entropy() -> None:
    labels = torch.tensor([2, 1])
    soft = soft_cross_entropy(LOGITS, F.one_hot(labels, 3).float())
    torch.testing.assert_close(soft, F.cross_entropy(LOGITS, labels))


def test_distillation_is_kullback_leibler_plus_the_teachers_entropy_times_temperature_squared() -> None:
    p, log_q = (TEACHER / 3).softmax(1), (LOGITS / 3).log_softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    wanted = 9 * (F.kl_div(log_q, p, reduction="batchmean") + entropy)
    torch.testing.assert_close(distillation_loss(LOGITS, TEACHER, 3.0), wanted)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = LOGITS.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    distillation_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"from 0 to 2, got 0 to 3; give the network as many outputs"):
        cross_entropy(LOGITS, torch.tensor([0, 3]))


def test_double_precision_is_kept() -> None:
    logits, teacher = LOGITS.double(), TEACHER.double()
    for loss in (cross_entropy(logits, torch.tensor([0, 1])), distillation_loss(logits, teacher, 2.0)):
        assert loss.dtype == torch.float64
    assert cross_entropy(LOGITS.bfloat16(), torch.tensor([0, 1])).dtype == torch.float32


def test_an_answer_that_is_no_tensor_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidInput, match=r"one tensor of logits, got tuple; turn auxiliary heads off"):
        cross_entropy((LOGITS, LOGITS), torch.tensor([0, 1]))  # type: ignore[arg-type]
