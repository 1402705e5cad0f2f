from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.measure import check_calibrated, correct, top1_percent
from subnet_search.training import PlainStep
from tests.small import EXAMPLE, small_data, small_net, small_splits, small_supernet


class Echo(nn.Module):
    """Answers the class that its input names."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.long().flatten(), 5).float()


BATCHES = [
    (torch.tensor([[0.0], [1], [2]]), torch.tensor([0, 1, 3])),
    (torch.tensor([[4.0], [4]]), torch.tensor([3, 4])),
]


def test_correct_says_which_inputs_are_right_in_order() -> None:
    assert correct(Echo(), BATCHES).tolist() == [True, True, False, False, True]
    assert top1_percent(Echo(), BATCHES) == 60.0


def test_a_net_is_measured_in_evaluation_mode_and_every_module_gets_its_mode_back() -> None:
    net = small_net(dropout=0.9).train()
    net.block1.eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = correct(net, small_splits().search_val)
    assert net.training
    assert not net.block1.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert (found == correct(net.eval(), small_splits().search_val)).all()


def test_training_goes_on_after_a_measurement_of_the_active_subnet() -> None:
    import numpy as np

    supernet = small_supernet()
    with supernet.subnet(supernet.space.smallest()):
        top1_percent(supernet, small_splits().search_val)
        PlainStep()(supernet.train(), small_data(8, 0), np.random.default_rng(0))
    assert supernet.model.stem.weight.grad is not None


def test_an_answer_that_is_not_finite_is_an_error_and_not_an_accuracy() -> None:
    net = small_net()
    net.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(SubnetSearchError, match="not finite; its weights or statistics are broken"):
        top1_percent(net, small_splits().search_val)


def test_inputs_that_are_not_finite_are_told_from_broken_weights() -> None:
    images = torch.full((2, *EXAMPLE.shape[1:]), float("nan"))
    with pytest.raises(
        SubnetSearchError, match="not finite, as its inputs hold NaN or infinity; mend the data"
    ):
        top1_percent(small_net(), [(images, torch.tensor([0, 1]))])


def test_no_batch_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one batch"):
        top1_percent(Echo(), [])
    with pytest.raises(InvalidInput, match=r"\[1, 8, 8\], got \[1\]"):
        top1_percent(Echo(), BATCHES, torch.Size((1, 8, 8)))


def test_an_uncalibrated_net_is_refused_with_the_way_out() -> None:
    net = small_net()
    check_calibrated(net, "exported")
    net.calibrated = False  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match=r"cannot be exported; pass statistics=recalibrate"):
        check_calibrated(net, "exported")
    with pytest.raises(InvalidInput, match="cannot be evaluated"):
        top1_percent(net, small_splits().search_val)
