from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.spans import MOST_VARIANTS, cut_into_spans
from subnet_search.settings import ElasticSettings
from subnet_search.small_models import resnet20
from tests.small import small_supernet
from tests.toys import TOYS, make_toy

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TOYS)
def test_spans_one_after_the_other_give_the_subnets_answer_bit_for_bit(name: str) -> None:
    supernet = make_elastic(make_toy(name), IMAGES[:1], ElasticSettings(step=4)).eval()
    spans = cut_into_spans(supernet, lambda numbers: True)
    for config in supernet.space.sample(np.random.default_rng(0), 4):
        with supernet.subnet(config), torch.no_grad():
            value = IMAGES.clone()
            for span in spans:
                value = span.run(value)
            assert torch.equal(value, supernet(IMAGES.clone()))


def test_every_norm_is_in_one_span_and_keys_grow() -> None:
    supernet = make_elastic(resnet20(width=8), torch.zeros(1, 3, 16, 16), ElasticSettings(step=4)).eval()
    spans = cut_into_spans(supernet, lambda numbers: True)
    assert len(spans) == 5  # stem, three blocks of the first stage, the rest
    assert sorted(path for span in spans for path in span.norms) == sorted(supernet.batch_norms)
    names = [set(span.knobs) for span in spans[:-1] if span.knobs is not None]
    assert all(fewer < more for fewer, more in itertools.pairwise(names))
    assert spans[-1].knobs is None


def test_only_knobs_behind_a_cut_leave_its_key_alone() -> None:
    supernet = small_supernet().eval()
    spans = cut_into_spans(supernet, lambda numbers: True)
    largest = supernet.space.largest()
    before = [span.key(largest) for span in spans]
    assert len(spans) > 1
    for knob in supernet.space.knobs:
        config = supernet.space.canonical({**largest, knob.name: knob.smallest})  # type: ignore[arg-type]
        for span, key in zip(spans, before, strict=True):
            reaches = span.knobs is None or knob.name in span.knobs
            assert (span.key(config) != key) == reaches


def test_what_does_not_fit_into_memory_is_not_cut() -> None:
    supernet = small_supernet().eval()
    assert len(cut_into_spans(supernet, lambda numbers: False)) == 1
    sizes: list[int] = []
    cut_into_spans(supernet, lambda numbers: bool(sizes.append(numbers)) or True)
    assert set(sizes) == {8 * 4 * 4}


def test_no_cut_is_made_behind_many_possible_subnets() -> None:
    supernet = make_elastic(resnet20(), torch.zeros(1, 3, 16, 16), ElasticSettings(step=1)).eval()
    for span in cut_into_spans(supernet, lambda numbers: True)[:-1]:
        choices = [len(k.choices) for k in supernet.space.knobs if span.knobs and k.name in span.knobs]
        assert np.prod(choices) <= MOST_VARIANTS


class InPlace(nn.Module):
    """An activation in place right where the network could be cut, inside of what may be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.stem(x).relu_())
        x.relu_()
        return self.head(x.mean((2, 3)))


class OnceMore(nn.Module):
    """One batch norm stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.norm(self.second(x)).relu().mean((2, 3)))


def test_a_norm_in_two_places_keeps_the_network_whole() -> None:
    supernet = make_elastic(OnceMore(), IMAGES[:1], ElasticSettings(step=4)).eval()
    assert len(cut_into_spans(supernet, lambda numbers: True)) == 1


def test_what_an_activation_in_place_would_overwrite_is_never_remembered() -> None:
    supernet = make_elastic(InPlace(), IMAGES[:1], ElasticSettings(step=4)).eval()
    spans = cut_into_spans(supernet, lambda numbers: True)
    value = IMAGES.clone()
    for span in spans:
        before = value.clone()
        result = span.run(value)
        assert torch.equal(value, before)
        value = result
