from __future__ import annotations

import torch
from torch import nn

from subnet_search.ranking.scores import best_first, per_input, per_output


def test_best_first_sorts_by_falling_score_and_keeps_ties_in_order() -> None:
    order = best_first({"g": torch.tensor([1.0, 3.0, 1.0, 3.0, 2.0])})["g"]
    assert order.tolist() == [1, 3, 4, 0, 2]


def test_sums_per_channel_equal_what_switching_the_channel_off_takes_away() -> None:
    layers: list[nn.Conv2d | nn.Linear] = [
        nn.Conv2d(6, 4, 3, bias=False),
        nn.Conv2d(6, 4, 3, groups=2, bias=False),
        nn.Conv2d(6, 6, 3, groups=6, bias=False),
        nn.Conv2d(6, 12, 1, groups=6, bias=False),
        nn.Linear(6, 5, bias=False),
    ]
    for layer in layers:
        size = (1, 6, 3, 3) if isinstance(layer, nn.Conv2d) else (1, 6)
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
        answers = []
        for channel in range(6):
            one = torch.zeros(size)
            one[:, channel] = 1
            answers.append(layer(one).sum())  # one output position: sums the weights that read the channel
        expected = torch.stack(answers) / (9 if layer.weight.ndim == 4 and layer.weight.shape[-1] == 1 else 1)
        torch.testing.assert_close(per_input(layer, layer.weight), expected)
        torch.testing.assert_close(per_output(layer.weight), layer.weight.flatten(1).sum(1))
