"""Fashion-MNIST: sub-nets of a ResNet-20 beside uniform, random and individually trained nets, three seeds."""

from __future__ import annotations

from benchmarks.evidence.road import Evidence, data_folder, main
from subnet_search.recipe import Recipe, parse_recipe

RECIPE = """
name = "fashion-seed{seed}"
seed = {seed}

[model]
name = "subnet_search.small_models:resnet20"
epochs = 4
options = {{ width = 8, in_channels = 1 }}

[data]
source = "npz:{folder}/fashion-mnist/fashion_mnist.npz"
batch_size = 128
search_val_share = 0.1
mean = [0.286]
std = [0.353]
augment = "flip"

[elastic]
step = 4

[train]
epochs = 5
lr = 0.05

[rank]
ranker = "taylor"

[device]
threads = 1

[evaluate]
calibration_images = 1024

[search]
evaluations = 200
choose = 5

[finetune]
epochs = 2
"""


def recipe_of(seed: int) -> Recipe:
    return parse_recipe(RECIPE.format(seed=seed, folder=data_folder()))


EVIDENCE = Evidence(
    name="fashion_mnist",
    head="""# Fashion-MNIST: sub-nets of a ResNet-20

ResNet-20 of width 8 (28 px, 60,000 + 10,000 images), trained from random weights, ranked, trained as a supernet,
searched and fine-tuned on a budget of minutes: 4 + 5 + 2 epochs, one thread. Search-validation (6,000 of the training
images, drawn anew for each seed) chose; test was read after that. Top-1 in percent.

Made by `{command}` (resumable; `{command} SEED` for one seed).
""",
    recipe_of=recipe_of,
    seeds=(20, 21, 22),
    shares=(0.15, 0.4),
    alone_epochs=11,
)

if __name__ == "__main__":
    main(EVIDENCE)
