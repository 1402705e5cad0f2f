"""Somebody else's network: the published CIFAR-10 ResNet-20 on a JPEG copy of its data, on which it lost ten points."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.evidence.road import Evidence, data_folder, main
from subnet_search.recipe import Recipe, parse_recipe

DECODED = Path("runs") / "cifar10_jpeg.npz"
RECIPE = """
name = "own-network-seed{seed}"
seed = {seed}

[model]
name = "subnet_search.small_models:resnet20"
weights = "{folder}/cifar10-resnet-weights/resnet20.npz"
epochs = 2
lr = 0.02

[data]
source = "npz:{decoded}"
batch_size = 128
search_val_share = 0.1
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
augment = "crop+flip"

[train]
epochs = 3
lr = 0.02

[rank]
ranker = "taylor"

[device]
threads = 1

[evaluate]
calibration_images = 1024

[search]
evaluations = 150
choose = 3

[finetune]
epochs = 1
"""


def recipe_of(seed: int) -> Recipe:
    return parse_recipe(RECIPE.format(seed=seed, folder=data_folder(), decoded=decoded()))


def decoded() -> Path:
    """The images as plain arrays in an .npz file, made from the JPEG files where it is not there yet."""
    if not DECODED.exists():
        arrays: dict[str, np.ndarray] = {}
        for part in ("train", "test"):
            with np.load(
                data_folder() / "cifar10-jpeg" / f"cifar10_{part}_jpeg.npz", allow_pickle=False
            ) as file:
                jpeg, offset, arrays[f"y_{part}"] = (file[name] for name in ("jpeg", "offset", "label"))
            files = [jpeg[begin:end].tobytes() for begin, end in itertools.pairwise(offset)]
            arrays[f"x_{part}"] = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
        DECODED.parent.mkdir(exist_ok=True)
        unfinished = DECODED.with_suffix(".part.npz")
        np.savez(unfinished, allow_pickle=False, **arrays)
        unfinished.replace(DECODED)
    return DECODED.resolve()


EVIDENCE = Evidence(
    name="own_network",
    head="""# Somebody else's network: the published CIFAR-10 ResNet-20

A ResNet-20 that others trained on CIFAR-10 (91.78 % there) is given to the road with its weights and a JPEG copy of the
data (quality 75; **never to be compared with figures on CIFAR-10 itself**): two epochs of fine-tuning on that copy,
then ranked, trained as a supernet (3 epochs), searched, and the chosen sub-nets fine-tuned (1 epoch), one thread: about
an hour on one core. Search-validation (5,000 of the training images) chose; test was read after that. Top-1 in
percent.

Made by `{command}` (resumable; `{command} SEED` for one seed).
""",
    recipe_of=recipe_of,
    seeds=(30,),
    shares=(0.3,),
    alone_epochs=0,
)

if __name__ == "__main__":
    main(EVIDENCE)
