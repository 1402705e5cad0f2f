from __future__ import annotations

import re

import numpy as np
import pytest

from predictors import FAMILIES, AccuracyPredictor, coverage, kendall_tau
from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig

SPACE = SearchSpace(
    (
        *(Knob(f"width{i}", (8, 16, 24, 32)) for i in range(4)),
        Knob("block", (0, 1), "depth"),
        Knob("block.width", (8, 16, 32)),
        Knob("op", (0, 1, 2), "choice"),
    ),
    {"block.width": (("block",),)},
)
MACS = {(f"width{i}",): 5 for i in range(4)} | {("block", "block.width"): 9}
COSTS = CostTable(SPACE.names, (8, 8, 8, 8, 1, 8, 1), MACS, {(): 1}, {(): 4}, ({(): 4},))


def accuracy(configs: list[SubnetConfig], noise: float = 0.1, seed: int = 0) -> np.ndarray:
    """A long tail of bad sub-nets below many good ones."""
    rows = SPACE.encode(configs).astype(float)
    quality = np.sqrt(rows[:, :4] / 32) @ [1.0, 0.7, 0.5, 0.3] + 0.4 * rows[:, 4] * rows[:, 5] / 32
    quality += np.array([0.0, 0.3, 0.2])[rows[:, 6].astype(int)]
    return 95 - 40 * np.exp(-2 * quality) + noise * np.random.default_rng(seed).standard_normal(len(rows))


def some(count: int, seed: int) -> list[SubnetConfig]:
    drawn = SPACE.sample(np.random.default_rng(seed), 3 * count)
    return list(dict.fromkeys(drawn))[:count]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_orders_subnets_that_it_has_not_seen(family: str) -> None:
    seen, new = some(60, 0), some(300, 1)
    predictor = AccuracyPredictor(SPACE, COSTS, families=(family,)).fit(seen, accuracy(seen).tolist())
    assert kendall_tau(predictor.predict(new), accuracy(new, 0.0)) > 0.65
    assert predictor.trusted


def test_the_family_that_orders_best_is_chosen_and_the_first_where_there_is_no_telling() -> None:
    seen = some(60, 0)
    values = (SPACE.encode(seen)[:, :6] @ [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]).tolist()
    linear = AccuracyPredictor(SPACE, families=("trees", "ridge")).fit(seen, values)
    assert linear.chosen.tau["ridge"] > linear.chosen.tau["trees"] + 2 / 3 / 60**0.5
    assert linear.chosen.family == "ridge"
    assert re.fullmatch(r"ridge: Kendall's tau 0\.\d\d near the front, used \(from 0\.2 on\)", linear.verdict)
    alike = AccuracyPredictor(SPACE, COSTS, families=("ridge", "gp")).fit(seen, accuracy(seen).tolist())
    assert abs(alike.chosen.tau["ridge"] - alike.chosen.tau["gp"]) < 2 / 3 / 60**0.5
    assert alike.chosen.family == "ridge"


@pytest.mark.slow
def test_values_that_have_nothing_to_do_with_configs_are_seldom_trusted() -> None:
    trusted = 0
    for seed in range(10):
        seen = some(25, seed)
        values = np.random.default_rng(seed).normal(90, 2, len(seen)).tolist()
        trusted += AccuracyPredictor(SPACE, COSTS, families=("gp",)).fit(seen, values).trusted
    assert trusted <= 3


@pytest.mark.parametrize("share", [0.8, 0.9])
def test_intervals_hold_the_stated_share_of_new_measurements(share: float) -> None:
    new, held = some(400, 99), []
    for seed in range(4):
        seen = some(40, seed)
        predictor = AccuracyPredictor(SPACE, COSTS, families=("gp",), coverage=share)
        low, high = predictor.fit(seen, accuracy(seen, 0.5, seed).tolist()).predict_interval(new)
        held.append(coverage(low, high, accuracy(new, 0.5, 50 + seed)))
        assert (low <= predictor.predict(new)).mean() > 0.95
    assert share - 0.06 <= np.mean(held) <= 0.99


def test_with_ten_rows_an_interval_of_ninety_five_percent_is_infinite() -> None:
    seen = some(10, 0)
    predictor = AccuracyPredictor(SPACE, families=("ridge",), coverage=0.95)
    low, high = predictor.fit(seen, accuracy(seen).tolist()).predict_interval(some(3, 1))
    assert np.isinf(low).all()
    assert np.isinf(high).all()


def test_equal_values_are_foretold_as_they_are() -> None:
    predictor = AccuracyPredictor(SPACE, COSTS, families=("gp", "ridge")).fit(some(12, 0), [80.0] * 12)
    np.testing.assert_allclose(predictor.predict(some(5, 1)), 80.0, atol=1e-6)
    assert not predictor.trusted


def test_noisy_rows_count_less() -> None:
    seen = some(60, 0)
    values = accuracy(seen, 0.0)
    wrong = values.copy()
    wrong[::3] -= 15
    noise = np.where(np.arange(len(seen)) % 3 == 0, 15.0, 0.0)
    new = some(200, 1)
    rows = SPACE.encode(seen)
    errors = [
        np.abs(
            AccuracyPredictor(SPACE, families=("gp",)).fit_rows(rows, wrong, told).predict(new)
            - accuracy(new, 0)
        )
        for told in (None, noise)
    ]
    assert errors[1].mean() < 0.5 * errors[0].mean()


@pytest.mark.slow
def test_five_thousand_rows_are_learnt_from() -> None:
    wide = SearchSpace(tuple(Knob(f"w{i}", tuple(range(8, 72, 8))) for i in range(20)))
    rng = np.random.default_rng(0)
    rows = wide.encode(wide.sample(rng, 5_300))
    values = np.sqrt(rows) @ rng.random(20)
    predictor = AccuracyPredictor(wide, families=("gp", "ridge")).fit_rows(rows[:5_000], values[:5_000])
    assert kendall_tau(predictor.predict(wide.decode(rows[5_000:])), values[5_000:]) > 0.9


def test_what_cannot_be_learnt_from_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"one of gp, .* got 'trie'; did you mean 'trees'"):
        AccuracyPredictor(SPACE, families=("trie",))
    with pytest.raises(InvalidInput, match="at least one family"):
        AccuracyPredictor(SPACE, families=())
    with pytest.raises(InvalidInput, match="must lie between 0 and 1, got 90"):
        AccuracyPredictor(SPACE, coverage=90)
    with pytest.raises(InvalidInput, match=r"at least 10 configs .* got 3 configs and 3 values"):
        AccuracyPredictor(SPACE).fit(some(3, 0), [1.0] * 3)
    with pytest.raises(InvalidInput, match="finite values only"):
        AccuracyPredictor(SPACE).fit(some(10, 0), [float("nan")] * 10)
