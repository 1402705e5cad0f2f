"""Costs of many configs: the closed form against a loop over the layers of each config."""

from __future__ import annotations

import numpy as np
import torch
import torchvision

from benchmarks.figure import Figure, interleaved_seconds
from search_spaces import SubnetConfig
from subnet_search import make_elastic

NUM_ROWS, NUM_LOOPED = 200_000, 1_000
STAGES = ((3, 56), (4, 28), (6, 14), (3, 7))  # blocks and output pixels of each stage of ResNet-50 at 224 px


def measure() -> list[Figure]:
    supernet = make_elastic(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224))
    configs = supernet.space.sample(np.random.default_rng(0), NUM_ROWS // 10)
    rows = np.tile(supernet.space.encode(configs), (10, 1))  # [NUM_ROWS, num_knobs]
    looped = configs[:NUM_LOOPED]

    costs = supernet.costs.evaluate(rows[:NUM_LOOPED], ("macs", "params"))
    by_loop = np.array([count_by_loop(config) for config in looped])  # [NUM_LOOPED, 2]
    if not np.array_equal(by_loop, np.stack([costs["macs"], costs["params"]], axis=1)):
        raise RuntimeError("the loop and the closed form disagree")
    seconds = interleaved_seconds(
        [
            lambda: supernet.costs.evaluate(rows, ("macs", "params")),
            lambda: [count_by_loop(config) for config in looped],
        ],
        rounds=15,
    )
    return [
        Figure(
            "cost table, MACs and params, resnet50 space",
            "configs/s",
            tuple(NUM_ROWS / seconds[:, 0]),
            ">=",
            3_000_000,
            "python loop over the layers",
            float(np.median(NUM_LOOPED / seconds[:, 1])),
        )
    ]


def count_by_loop(config: SubnetConfig) -> tuple[int, int]:
    """MACs and parameters of one ResNet-50 at 224 px, layer by layer."""
    before = config["conv1"]
    macs, params = 3 * before * 49 * 112 * 112, (3 * 49 + 2) * before
    pixels_in = 56
    for stage, (num_blocks, pixels) in enumerate(STAGES, start=1):
        after = config[f"layer{stage}.0.conv3"]
        for block in range(num_blocks):
            path = f"layer{stage}.{block}"
            if block > 0 and not config[path]:
                continue
            first, second = config[f"{path}.conv1"], config[f"{path}.conv2"]
            layers = [
                (before, first, 1, pixels_in),
                (first, second, 9, pixels),
                (second, after, 1, pixels),
                *([(before, after, 1, pixels)] if block == 0 else []),
            ]
            for inputs, outputs, window, side in layers:
                macs += inputs * outputs * window * side * side
                params += (inputs * window + 2) * outputs
            before, pixels_in = after, pixels
    return macs + 1000 * before, params + 1000 * (before + 1)
