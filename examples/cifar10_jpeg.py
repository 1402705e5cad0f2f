"""A data source of one's own: CIFAR-10 as JPEG files packed into two .npz archives.

A recipe names it as `source = "examples.cifar10_jpeg:splits"` (see cifar10_resnet20.toml). By itself it decodes the
images and looks how a trained ResNet-20 does on them:

    python examples/cifar10_jpeg.py FOLDER --weights resnet20.npz
    python examples/cifar10_jpeg.py --smoke
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from subnet_search.data import Splits, describe, splits_from_arrays
from subnet_search.measure import top1_percent
from subnet_search.models import load_model
from subnet_search.settings import DataSettings

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the published weights were trained with


def splits(folder: str, batch_size: int = 128, search_val_share: float = 0.1, seed: int = 0) -> Splits:
    """The splits for a run; a [data] table's `options` are the arguments of this function.

    Args:
        folder: with cifar10_train_jpeg.npz and cifar10_test_jpeg.npz; ~ and $NAME are filled in.
        batch_size: images in a batch.
        search_val_share: share of the training images that search and choice look at.
        seed: of the split and of the order. The archives are sorted by class; `splits_from_arrays` shuffles.
    """
    place = Path(os.path.expandvars(os.path.expanduser(folder)))
    settings = DataSettings(
        batch_size=batch_size,
        search_val_share=search_val_share,
        seed=seed,
        mean=MEAN,
        std=STD,
        augment="crop+flip",
        classes=CLASSES,
    )
    arrays = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = decode(place / f"cifar10_{part}_jpeg.npz")
    return splits_from_arrays(arrays, settings, source="CIFAR-10 as JPEG")


def decode(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images `[num_images, 32, 32, 3]` and class numbers `[num_images]` of one archive."""
    with np.load(path, allow_pickle=False) as arrays:
        jpeg, offset, label = arrays["jpeg"], arrays["offset"], arrays["label"]
    images = np.empty((len(label), 32, 32, 3), dtype=np.uint8)
    for row, (start, end) in enumerate(itertools.pairwise(offset)):
        images[row] = np.asarray(Image.open(io.BytesIO(jpeg[start:end].tobytes())))
    return images, label


def write_noise(folder: Path) -> None:
    """Archives of the same form: ten images of coloured noise in each class."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        files = []
        for _ in range(100):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "JPEG")
            files.append(file.getvalue())
        np.savez(
            folder / f"cifar10_{part}_jpeg.npz",
            jpeg=np.frombuffer(b"".join(files), dtype=np.uint8),
            offset=np.cumsum([0, *map(len, files)]),
            label=np.arange(100, dtype=np.uint8) // 10,
        )


def main() -> None:
    """Says how many images there are, and how a network with the weights given does on search-validation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", default="data/cifar10-jpeg")
    parser.add_argument("--weights", help="an .npz or .safetensors file for ResNet-20")
    parser.add_argument("--smoke", action="store_true", help="use a few images of noise instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.smoke:
            write_noise(Path(scratch))
        found = splits(scratch if options.smoke else options.folder)
    print(describe(found))
    net = load_model("subnet_search.small_models:resnet20", options.weights)
    print(f"{top1_percent(net, found.search_val):.2f} % top-1 on search-validation")


if __name__ == "__main__":
    main()
