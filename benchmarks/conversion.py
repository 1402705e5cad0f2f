"""How long it takes to make a network elastic, beside one forward of it."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torchvision

from benchmarks.figure import Figure, interleaved_seconds
from subnet_search import make_elastic

MODELS = ("resnet50", "mobilenet_v3_large")


def measure() -> list[Figure]:
    image = torch.randn(1, 3, 224, 224)
    figures = []
    for name in MODELS:
        model = getattr(torchvision.models, name)().eval()
        seconds = interleaved_seconds([partial(make_elastic, model, image), partial(model, image)], rounds=5)
        forward_s = float(np.median(seconds[:, 1]))
        figures.append(
            Figure(
                f"conversion of {name} at 224 px",
                "s",
                tuple(seconds[:, 0]),
                "<=",
                5.0,
                "one forward at batch 1",
                forward_s,
            )
        )
    return figures
