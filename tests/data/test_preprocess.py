"""Sizes, colours and normalisation, against torchvision, Pillow and the formula."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import functional as tv

from search_spaces import InvalidInput
from subnet_search.data.pictures import to_pixels
from subnet_search.data.preprocess import Preprocess, checked, make_preprocess
from subnet_search.settings import DataSettings, ModelSettings
from tests.data.makers import images


def test_pixels_are_read_as_0_to_1_less_the_mean_over_the_std() -> None:
    pixels = torch.from_numpy(images(5, 3, 4, 4))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    wanted = (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(Preprocess(mean, std)(pixels), wanted)
    assert Preprocess()(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist() == [[[[-1, 1]]]]


@pytest.mark.parametrize("model", ["resnet18", "efficientnet_b1", "vit_b_16"])
def test_a_picture_becomes_what_the_weights_own_transforms_make_of_it(model: str) -> None:
    picture = Image.fromarray(images(1, 300, 500, 3)[0])
    wanted = models.get_model_weights(model)["IMAGENET1K_V1"].transforms()(picture)
    settings = ModelSettings(name=f"torchvision:{model}", weights="IMAGENET1K_V1")
    preprocess = make_preprocess(DataSettings(preprocess="weights"), settings)
    pixels = to_pixels(picture, preprocess)[None]
    torch.testing.assert_close(Preprocess(preprocess.mean, preprocess.std)(pixels)[0], wanted)


@pytest.mark.parametrize("shape", [(3, 40, 60), (3, 61, 33), (1, 32, 32)])
def test_a_batch_in_memory_is_sized_as_torchvision_sizes_it(shape: tuple[int, ...]) -> None:
    pixels = torch.from_numpy(images(3, *shape))
    wanted = tv.center_crop(tv.resize(pixels, [36], antialias=True), [32, 32])
    sized = Preprocess((0.0,), (1.0,), resize=36, crop=32)(pixels)
    torch.testing.assert_close(255 * sized, wanted.float(), atol=1, rtol=0)


def test_colour_becomes_the_grey_of_pillow_and_grey_becomes_three_equal_channels() -> None:
    colour = images(4, 6, 6, 3)
    grey = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in colour])
    planes = torch.from_numpy(colour.transpose(0, 3, 1, 2).copy())
    made = Preprocess((0.0,), (1.0,), channels=1)(planes)
    torch.testing.assert_close(255 * made[:, 0], torch.from_numpy(grey).float(), atol=1, rtol=0)
    tripled = Preprocess((0.0,), (1.0,), channels=3)(made)
    assert all(torch.equal(tripled[:, channel], made[:, 0]) for channel in range(3))


def test_what_the_recipe_says_goes_before_what_the_weights_say() -> None:
    model = ModelSettings(name="torchvision:resnet18", weights="ResNet18_Weights.IMAGENET1K_V1")
    made = make_preprocess(DataSettings(preprocess="weights", size=64, augment="flip"), model)
    assert (made.resize, made.crop, made.augment, made.mean) == (64, 64, "flip", (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "got weights None of no model"),
        (ModelSettings(name="torchvision:resnet18"), "got weights None of torchvision:resnet18"),
        (ModelSettings(name="torchvision:resnet18", weights="w.safetensors"), "set size, mean and std"),
        (ModelSettings(name="own:net", weights="w.npz"), "got weights 'w.npz' of own:net"),
        (ModelSettings(name="torchvision:resnet18", weights="V9"), "'V9' cannot be had: KeyError"),
        (ModelSettings(name="torchvision:nothing", weights="DEFAULT"), "cannot be had: ValueError"),
    ],
)
def test_without_published_weights_their_transforms_are_refused(
    model: ModelSettings | None, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_preprocess(DataSettings(preprocess="weights"), model)


def test_a_broken_torchvision_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    model = ModelSettings(name="torchvision:resnet18", weights="DEFAULT")
    with pytest.raises(InvalidInput, match="Install torch and torchvision together"):
        make_preprocess(DataSettings(preprocess="weights"), model)


def test_one_mean_is_for_all_channels_and_another_number_than_these_is_refused() -> None:
    assert checked(Preprocess(mean=(0.1,)), 3).mean == (0.1,)
    assert checked(Preprocess(mean=(0.1, 0.2, 0.3), channels=3), 1).channels == 3
    with pytest.raises(InvalidInput, match=r"mean must have .* \(3\), got 2: \[0\.1, 0\.2\]"):
        checked(Preprocess(mean=(0.1, 0.2)), 3)
    with pytest.raises(InvalidInput, match=r"std must have one value.* \(1\), got 3"):
        checked(Preprocess(std=(1.0, 1.0, 1.0)), 1)
