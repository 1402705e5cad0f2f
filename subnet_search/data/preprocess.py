"""From raw images to what the network reads: channels, size, augmentation, normalisation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces.errors import InvalidInput
from subnet_search.data.augment import random_crop, random_flip
from subnet_search.factories import torchvision_part
from subnet_search.settings import DataSettings, ModelSettings

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns colour into grey


@dataclass(frozen=True)
class Preprocess:
    """Makes batches of raw images ready: called with `[B, C, H, W]`, uint8 or float, it returns float32.

    uint8 values are read as 0 to 1. Size and augmentation act on the raw values, normalisation comes last.

    Args:
        mean, std: of each channel or one for all; subtracted, and divided by.
        channels: 3 repeats grey images, 1 makes colour ones grey; none leaves them as they are.
        resize: the shorter side gets so many pixels, if given.
        crop: the middle of so many pixels is cut out, if given.
        interpolation: "bilinear" or "bicubic", both with antialiasing.
        augment: "none", "flip", "crop" or "crop+flip".
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    channels: int | None = None
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"
    augment: str = "none"

    def __call__(self, images: Tensor) -> Tensor:
        """Raw images `[B, C, H, W]` to float32 `[B, channels, crop, crop]`."""
        images = self._sized(images)
        if "crop" in self.augment:
            images = random_crop(images)
        if "flip" in self.augment:
            images = random_flip(images)
        return self._normalised(self._recoloured(images))

    def plain(self) -> Preprocess:
        """The same without augmentation."""
        return dataclasses.replace(self, augment="none")

    def _sized(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.resize is not None and min(height, width) != self.resize:
            size = shorter_side(height, width, self.resize)
            top = 255.0 if images.dtype == torch.uint8 else None
            mode = self.interpolation
            resized = F.interpolate(images.float(), size, mode=mode, antialias=True, align_corners=False)
            images = resized if top is None else resized.round_().clamp_(0, top).to(torch.uint8)
        return images if self.crop is None else centre_crop(images, self.crop)

    def _recoloured(self, images: Tensor) -> Tensor:
        if self.channels == 3 and images.shape[1] == 1:
            return images.expand(-1, 3, -1, -1)
        if self.channels == 1 and images.shape[1] == 3:
            grey = (images.float() * images.new_tensor(LUMA, dtype=torch.float32)[:, None, None]).sum(1, True)
            return grey.round_().to(images.dtype) if images.dtype == torch.uint8 else grey
        return images

    def _normalised(self, images: Tensor) -> Tensor:
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        mean, std = (torch.tensor(values).mul_(scale)[:, None, None] for values in (self.mean, self.std))
        return images.float().sub(mean).div_(std).contiguous()


def shorter_side(height: int, width: int, pixels: int) -> tuple[int, int]:
    """Height and width when the shorter side is resized to `pixels`, rounded down as torchvision does."""
    if height <= width:
        return pixels, int(pixels * width / height)
    return int(pixels * height / width), pixels


def centre_crop(images: Tensor, pixels: int) -> Tensor:
    """The middle of `images` `[..., H, W]`, which must be that large."""
    height, width = images.shape[-2:]
    top, left = round((height - pixels) / 2), round((width - pixels) / 2)
    return images[..., top : top + pixels, left : left + pixels]


def checked(preprocess: Preprocess, channels: int) -> Preprocess:
    """`preprocess`, if its mean and std fit images of so many channels.

    Raises:
        InvalidInput: they have more values, or fewer but not one.
    """
    channels = preprocess.channels or channels
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) not in (1, channels):
            raise InvalidInput(
                f"{name} must have one value, or one for each channel of the images ({channels}), "
                f"got {len(values)}: {list(values)}"
            )
    return preprocess


def make_preprocess(settings: DataSettings, model: ModelSettings | None = None) -> Preprocess:
    """What the [data] table asks for; mean and std are 0.5 where nothing else is said.

    Raises:
        InvalidInput: it asks for what belongs to the weights, and the [model] table names no published ones.
    """
    start = Preprocess() if settings.preprocess == "recipe" else weights_preprocess(model)
    return dataclasses.replace(
        start,
        mean=settings.mean or start.mean,
        std=settings.std or start.std,
        channels=settings.channels or start.channels,
        resize=settings.size or start.resize,
        crop=settings.size or start.crop,
        augment=settings.augment,
    )


def weights_preprocess(model: ModelSettings | None) -> Preprocess:
    """The transforms that torchvision publishes with the weights of the [model] table, as for evaluation."""
    source, _, name = ("", "", "") if model is None else model.name.partition(":")
    weights = None if model is None else model.weights
    if source != "torchvision" or weights is None or weights.endswith((".safetensors", ".npz")):
        raise InvalidInput(
            f'preprocess = "weights" needs a torchvision model with published weights by name, got weights {weights!r} '
            f"of {'no model' if model is None else model.name}; set size, mean and std in [data] instead"
        )
    models = torchvision_part("models")
    try:
        preset = models.get_model_weights(name)[weights.rpartition(".")[2]].transforms()
        return Preprocess(
            tuple(preset.mean),
            tuple(preset.std),
            channels=3,
            resize=preset.resize_size[0],
            crop=preset.crop_size[0],
            interpolation=preset.interpolation.value,
        )
    except Exception as error:  # no such name, another kind of weights
        raise InvalidInput(
            f"the transforms of {name}'s weights {weights!r} cannot be had: {type(error).__name__}: {error}; set size, "
            "mean and std in [data] instead"
        ) from error
