from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from search_spaces.presets import ladders, steps_down
from subnet_search.batches import first_images, sample_images
from subnet_search.data import Splits, TensorBatches
from subnet_search.elastic.statistics import recalibrate
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.accuracy import answers
from subnet_search.measure.scoring import SharedScorer
from subnet_search.settings import ProgressiveSettings
from tests.small import small_data, small_splits, small_supernet

SETTINGS = ProgressiveSettings(calibration_images=24, first_images=12, final_images=30, device="cpu")


def expected(supernet: Supernet, splits: Splits, config: object, count: int) -> tuple[float, float]:
    """Loss and top-1 of a sub-net that is recalibrated and passed by itself."""
    calibration = first_images(splits.calibration or splits.train, 24, 0)
    seen = sample_images(splits.search_val, 30, 0)
    images, labels = (torch.cat(parts) for parts in zip(*sample_images(seen, count, 0), strict=True))
    with supernet.subnet(config, recalibrate(supernet, config, calibration)):  # type: ignore[arg-type]
        logits, _ = answers(supernet, [(images, labels)])
    return float(F.cross_entropy(logits, labels)), 100 * float((logits.argmax(1) == labels).float().mean())


def test_scores_are_those_of_each_subnet_by_itself_wherever_the_path_stands() -> None:
    supernet, splits = small_supernet(), small_splits()
    scorer, here = SharedScorer(supernet, splits, SETTINGS), supernet.space.largest()
    rungs = ladders(supernet.space)
    for _ in range(4):
        below = steps_down(supernet.space, here, rungs)
        for _, config in below:
            for final, count in ((False, 12), (True, 30)):
                score = scorer(config, final)
                wanted = expected(supernet, splits, config, count)
                assert (score.loss, score.top1_percent) == pytest.approx(wanted, abs=1e-4)
        here = below[len(below) // 2][1]


def test_images_and_multiply_adds_are_counted_recalibration_included() -> None:
    supernet = small_supernet()
    scorer, space = SharedScorer(supernet, small_splits(), SETTINGS), supernet.space
    scorer(space.largest(), True)
    scorer(space.smallest(), False)
    full, small = supernet.costs.macs(space.encode([space.largest(), space.smallest()])).tolist()
    assert scorer.images == (24 + 30) + (24 + 12)
    assert scorer.macs == (24 + 30) * full + (24 + 12) * small


def test_changed_weights_are_seen_after_forgetting() -> None:
    supernet = small_supernet()
    scorer, config = SharedScorer(supernet, small_splits(), SETTINGS), supernet.space.smallest()
    before = scorer(config, True)
    with torch.no_grad():
        supernet.model.get_submodule("classifier").weight.mul_(3)  # type: ignore[operator, union-attr]
    scorer.forget()
    assert scorer(config, True) != before
    assert scorer(config, True) == SharedScorer(supernet, small_splits(), SETTINGS)(config, True)


def test_test_and_gate_are_never_read() -> None:
    class Forbidden(TensorBatches):
        def __iter__(self):  # type: ignore[no-untyped-def]
            raise AssertionError("this split may not be read")

    forbidden = Forbidden(*small_data(8, seed=4), 8)
    splits = dataclasses.replace(small_splits(), test=forbidden)
    scorer = SharedScorer(small_supernet(), splits, SETTINGS)
    assert scorer(small_supernet().space.smallest(), True).loss > 0
