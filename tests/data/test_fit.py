"""Data and network that do not fit are told apart before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from search_spaces import InvalidInput
from subnet_search.data import Batch, Splits, TensorBatches, check_network, load_splits
from subnet_search.settings import DataSettings
from subnet_search.small_models import resnet20
from tests.data.makers import images, write_folders, write_npz


def splits(highest: int, channels: int = 3) -> Splits:
    def part(seed: int) -> TensorBatches:
        return TensorBatches(torch.zeros(4, channels, 8, 8) + seed, torch.tensor([0, 1, highest, 0]), 2)

    return Splits(part(0), part(1), part(2))


def net(outputs: int = 3, channels: int = 3) -> nn.Module:
    return resnet20(width=4, num_classes=outputs, in_channels=channels)


def test_a_network_that_fits_is_left_as_it_was() -> None:
    model = net().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert check_network(model, torch.randn(1, 3, 8, 8), splits(highest=2)) is None
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("images", "reads", "message"),
    [
        (1, 3, r"have 1 channel \(grey\), but .* reads 3 channels \(colour\); set channels = 3 in \[data\]"),
        (3, 1, r"have 3 channels \(colour\), but .* reads 1 channel \(grey\); set channels = 1 in \[data\]"),
        (3, 4, r"reads 4 channels; build the network for these images"),
    ],
)
def test_another_number_of_channels_is_refused_with_both_numbers(
    images: int, reads: int, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        check_network(net(channels=reads), torch.zeros(1, images, 8, 8), splits(2, images))


def test_labels_beyond_the_outputs_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        InvalidInput, match=r"'train' go up to 9, so .* 10 outputs .* SmallResNet has 3; .*= 10"
    ):
        check_network(net(), torch.zeros(1, 3, 8, 8), splits(highest=9))


def test_more_outputs_than_classes_are_told_and_allowed() -> None:
    told = check_network(net(outputs=100), torch.zeros(1, 3, 8, 8), splits(highest=9))
    assert told == "the network has 100 outputs for 10 classes; trained for others, it needs a new classifier"


def test_probabilities_instead_of_logits_are_told_and_allowed() -> None:
    told = check_network(nn.Sequential(net(), nn.Softmax(1)), torch.randn(1, 3, 8, 8), splits(highest=2))
    assert told is not None
    assert told.startswith("the network answers probabilities")


def test_labels_of_loaders_are_looked_at_too(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a": 5, "b": 5, "c": 5})
    folders = load_splits(DataSettings(source=f"imagefolder:{tmp_path}"))
    tensors = [
        DataLoader(TensorDataset(torch.zeros(3, 3, 8, 8) + n, torch.tensor([0, 1, 2]))) for n in range(3)
    ]
    for found in (folders, Splits(*tensors)):
        check_network(net(3), torch.zeros(1, 3, 8, 8), found)
        with pytest.raises(InvalidInput, match="go up to 2, so the network needs 3 outputs"):
            check_network(net(2), torch.zeros(1, 3, 8, 8), found)


class Other(nn.Module):
    """Fails, or answers something that is no logits."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("answer", [RuntimeError("mine"), {"logits": 1}, torch.zeros(1, 2, 8, 8)])
def test_what_is_no_classifier_is_not_judged_here(answer: object) -> None:
    check_network(Other(answer), torch.zeros(1, 3, 8, 8), splits(9))


def test_batches_of_the_users_own_are_not_judged() -> None:
    own: list[list[Batch]] = [[(torch.zeros(2, 3, 8, 8) + n, torch.tensor([7, 8]))] for n in range(3)]
    check_network(net(3), torch.zeros(1, 3, 8, 8), Splits(*own))


def test_grey_images_of_a_file_become_colour_when_asked_to(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "d.npz", x=images(20, 8, 8), y=np.arange(20) % 2)
    found = load_splits(DataSettings(source=source, channels=3))
    check_network(net(2), next(iter(found.test))[0][:1], found)
