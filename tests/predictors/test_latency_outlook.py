from __future__ import annotations

import numpy as np
import pytest

from predictors import LatencyPredictor, cross_validated, outlook
from predictors.latency_outlook import power_law
from search_spaces import InvalidInput, Knob, SearchSpace, SubnetConfig

SPACE = SearchSpace(tuple(Knob(f"op{i}", (0, 1, 2), "choice") for i in range(10)))
MS = np.random.default_rng(3).uniform(0, 2, (10, 3))


def measured(count: int, noise: float, seed: int = 0) -> tuple[list[SubnetConfig], list[float]]:
    rng = np.random.default_rng(seed)
    configs = list(dict.fromkeys(SPACE.sample(rng, 2 * count)))[:count]
    ms = 5 + MS[np.arange(10), SPACE.encode(configs)].sum(axis=1)
    return configs, (ms * (1 + noise * rng.standard_normal(count))).tolist()


def make() -> LatencyPredictor:
    return LatencyPredictor(SPACE)


def test_a_power_law_with_a_floor_is_found_again() -> None:
    sizes = np.array([10, 20, 40, 80])
    law = power_law(sizes, 3 + 40 * sizes**-1.0)
    assert law(160) == pytest.approx(3.25, rel=0.01)
    assert power_law(sizes, np.full(4, 5.0))(1000) == pytest.approx(5.0)


def test_quality_is_that_of_rows_left_out() -> None:
    quality = cross_validated(make, *measured(40, 0.0))
    assert quality.rows == 40
    assert quality.tau > 0.7
    assert quality.within_10_percent > 0.9
    shuffled, values = measured(40, 0.0)
    chance = cross_validated(make, shuffled, np.random.default_rng(0).permutation(values).tolist())
    assert abs(chance.tau) < 0.3


@pytest.mark.slow
def test_more_measurements_are_worth_it_until_noise_is_all_that_is_left() -> None:
    young = outlook(make, *measured(16, 0.0))
    assert young.doubled_percent[1] < 0.9 * young.now_percent
    assert young.more[1] > 0
    noise_alone = outlook(make, *measured(80, 0.3))
    assert noise_alone.doubled_percent[1] > 0.85 * noise_alone.now_percent
    assert "more are worth taking" in str(young)


def test_a_curve_cannot_be_seen_in_a_few_rows() -> None:
    with pytest.raises(InvalidInput, match="from 12 on, got 11"):
        outlook(make, *measured(11, 0.0))
