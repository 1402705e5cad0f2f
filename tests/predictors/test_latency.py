from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

from predictors import LatencyPredictor, coverage, kendall_tau
from predictors.latency_choice import most_telling
from predictors.latency_layers import TableLayers
from predictors.latency_parts import LEVEL, Parts
from predictors.latency_process import JITTER, LatencyProcess
from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig

TABLE = SearchSpace(tuple(Knob(f"op{i}", (0, 1, 2, 3), "choice") for i in range(8)))
NET = SearchSpace(
    (
        *(Knob(f"width{i}", (8, 16, 24, 32)) for i in range(4)),
        Knob("block", (0, 1), "depth"),
        Knob("block.width", (8, 16, 32)),
    ),
    {"block.width": (("block",),)},
)
MACS = {
    ("width0", "width1"): 5,
    ("width1", "width2"): 7,
    ("width2", "width3"): 3,
    ("block", "block.width"): 40,
}
COSTS = CostTable(
    NET.names,
    (8, 8, 8, 8, 1, 8),
    MACS,
    {("width0",): 1, (): 4},
    {(): 4},
    ({("width1",): 4}, {("width3",): 9}),
)
SECONDS = np.array([0.1, 0.5, 1.2, 2.0]) * np.linspace(1, 2, 8)[:, None]  # [position, choice]


def table_ms(configs: list[SubnetConfig]) -> np.ndarray:
    rows = TABLE.encode(configs)
    return np.asarray(3 + SECONDS[np.arange(8), rows].sum(axis=1))


def net_ms(configs: list[SubnetConfig], noise: float = 0.0, seed: int = 0) -> np.ndarray:
    rows = NET.encode(configs)
    ms = 2 + 0.05 * COSTS.macs(rows) + 0.4 * rows[:, 4] + 0.1 * np.ceil(rows[:, 0] / 16)
    return np.asarray(ms * (1 + noise * np.random.default_rng(seed).standard_normal(len(ms))))


def some(space: SearchSpace, count: int, seed: int) -> list[SubnetConfig]:
    return list(dict.fromkeys(space.sample(np.random.default_rng(seed), 3 * count)))[:count]


def test_layers_add_up_to_what_the_cost_table_says() -> None:
    rows = NET.encode(some(NET, 40, 0))
    macs, params, live = TableLayers(COSTS)(rows)
    np.testing.assert_array_equal(macs.sum(axis=1), COSTS.macs(rows))
    np.testing.assert_array_equal(params.sum(axis=1), COSTS.params(rows))
    np.testing.assert_array_equal(live.max(axis=1), COSTS.peak_activation_bytes(rows))


def test_layers_of_several_image_sizes_come_from_each_sizes_own_table() -> None:
    names = ("width", "resolution")
    small = CostTable(names, (1, 1), {("width",): 2}, {(): 1}, {(): 4}, ({(): 4},))
    table = CostTable(names, (1, 1), {("width",): 8, (): 3}, {(): 1}, {(): 4}, ({(): 4},), {32: small})
    rows = np.array([[8, 32], [8, 64], [16, 64]])
    np.testing.assert_array_equal(TableLayers(table)(rows)[0].sum(axis=1), table.macs(rows))


def test_the_process_is_the_gaussian_process_of_its_covariances() -> None:
    seen, new = some(TABLE, 30, 0), some(TABLE, 20, 1)
    x, y, at = TABLE.encode(seen), table_ms(seen), TABLE.encode(new)
    parts = Parts(TABLE)
    amounts = np.zeros(len(parts.names) + 1)
    amounts[parts.names.index("own")], amounts[-1] = 0.7, 0.02
    ours = LatencyProcess(parts, amounts).fit(x, y)
    kernel = ConstantKernel(LEVEL) + ConstantKernel(0.7) * DotProduct(0.0)
    features = [parts(rows).linear["own"] for rows in (x, at)]
    spread = y.std()
    judge = GaussianProcessRegressor(kernel, alpha=0.02 + JITTER, optimizer=None)
    mean, std = judge.fit(features[0], (y - y.mean()) / spread).predict(features[1], return_std=True)
    found = ours.predict(at)
    np.testing.assert_allclose(found[0], mean * spread + y.mean(), rtol=1e-7)
    np.testing.assert_allclose(found[1], np.sqrt(std**2 + 0.02) * spread, rtol=1e-5)


def test_left_out_rows_are_predicted_as_if_they_had_not_been_seen() -> None:
    seen = some(NET, 15, 0)
    x, y = NET.encode(seen), net_ms(seen)
    process = LatencyProcess(Parts(NET, COSTS)).fit(x, y)
    rest = np.arange(15) != 4
    other = LatencyProcess(process.parts, process.amounts)
    other.fit(x[rest], y[rest], np.zeros(14))
    # the other one standardises its 14 values differently, so only nearly the same
    assert process.left_out()[4] == pytest.approx(other.expect(x[[4]])[0], rel=0.02)


def test_amounts_are_where_the_posterior_is_highest() -> None:
    seen = some(NET, 40, 0)
    process = LatencyProcess(Parts(NET, COSTS)).fit(NET.encode(seen), net_ms(seen, 0.02))
    assert process.amounts[process.parts.names.index("totals")] > 0.1
    assert 1e-5 < process.amounts[-1] < 0.05


@pytest.mark.parametrize("costs", [None, COSTS])
def test_a_net_is_learnt_from_twenty_measurements(costs: CostTable | None) -> None:
    seen, new = some(NET, 20, 0), some(NET, 200, 1)
    found = LatencyPredictor(NET, costs).fit(seen, net_ms(seen).tolist()).predict(new)
    assert np.abs(found / net_ms(new) - 1).mean() < (0.12 if costs is None else 0.02)


def test_what_knobs_share_is_learnt_before_what_each_has_for_itself() -> None:
    """Twenty rows cannot tell 32 choices apart, but alike knobs share their effects."""
    seen, new = some(TABLE, 20, 0), some(TABLE, 300, 1)
    found = LatencyPredictor(TABLE).fit(seen, table_ms(seen).tolist()).predict(new)
    one_hot = [(TABLE.encode(c)[:, :, None] == np.arange(4)).reshape(len(c), -1) * 1.0 for c in (seen, new)]
    from sklearn.linear_model import RidgeCV

    ridge = RidgeCV(np.logspace(-3, 3, 13)).fit(one_hot[0], table_ms(seen)).predict(one_hot[1])
    errors = [np.abs(p - table_ms(new)).mean() for p in (found, ridge)]
    assert errors[0] < 0.6 * errors[1]
    many = some(TABLE, 150, 2)
    exact = LatencyPredictor(TABLE).fit(many, table_ms(many).tolist()).predict(new)
    assert np.abs(exact - table_ms(new)).max() < 0.05


def test_latencies_that_multiply_are_learnt_as_logarithms() -> None:
    seen = some(TABLE, 60, 0)
    ms = np.exp(table_ms(seen) / 3)
    predictor = LatencyPredictor(TABLE).fit(seen, ms.tolist())
    assert predictor.learnt.way.name == "products"
    assert LatencyPredictor(TABLE).fit(seen, table_ms(seen).tolist()).learnt.way.name == "sums"
    assert (predictor.predict(some(TABLE, 20, 1)) > 0).all()
    assert (predictor.spread_rows(TABLE.encode(seen)) > 0).all()
    assert predictor.verdict.startswith("products: off by ")


def test_intervals_hold_about_the_stated_share() -> None:
    new, held = some(NET, 300, 9), []
    for seed in range(4):
        seen = some(NET, 40, seed)
        predictor = LatencyPredictor(NET, COSTS).fit(seen, net_ms(seen, 0.05, seed).tolist())
        held.append(coverage(*predictor.predict_interval(new), net_ms(new, 0.05, 50 + seed)))
    assert 0.83 <= np.mean(held) <= 0.98


def test_with_five_rows_intervals_say_nothing_yet() -> None:
    seen = some(NET, 5, 0)
    low, high = LatencyPredictor(NET).fit(seen, net_ms(seen).tolist()).predict_interval(seen)
    assert (low == 0).all()
    assert np.isinf(high).all()


def test_known_noise_is_believed() -> None:
    seen = some(NET, 30, 0)
    ms, noise = net_ms(seen), np.full(30, 1e-3)
    ms[3] += 5
    noise[3] = 10.0
    new = some(NET, 100, 1)
    errors = [
        np.abs(LatencyPredictor(NET, COSTS).fit(seen, ms.tolist(), n).predict(new) - net_ms(new)).mean()
        for n in (None, noise.tolist())
    ]
    assert errors[1] < 0.5 * errors[0]


def test_the_most_telling_row_leaves_the_least_variance() -> None:
    features = np.random.default_rng(0).standard_normal((12, 4))
    covariance, noise = features @ features.T, 0.1

    def left(chosen: list[int]) -> float:
        among = covariance[np.ix_(chosen, chosen)] + noise * np.eye(len(chosen))
        cross = covariance[:, chosen]
        return float(np.trace(covariance - cross @ np.linalg.solve(among, cross.T)))

    chosen = most_telling(covariance, noise, 3)
    assert left(chosen[:1]) == pytest.approx(min(left([i]) for i in range(12)))
    assert left(chosen) == pytest.approx(min(left([*chosen[:2], i]) for i in range(12)))
    assert sorted(most_telling(covariance, noise, 99)) == list(range(12))


def test_suggested_measurements_are_new_and_teach_more_than_random_ones() -> None:
    pool, new = some(TABLE, 400, 0), some(TABLE, 300, 1)
    planned = LatencyPredictor(TABLE)
    chosen = planned.suggest(pool, 20)
    planned.fit(chosen, table_ms(chosen).tolist())
    more = planned.suggest(pool, 10)
    assert len(set(chosen) | set(more)) == 30
    errors = []
    for seen in (chosen + more, *(some(TABLE, 30, seed) for seed in range(2, 5))):
        found = LatencyPredictor(TABLE).fit(seen, table_ms(seen).tolist()).predict(new)
        errors.append(np.abs(found - table_ms(new)).mean())
    assert errors[0] < np.mean(errors[1:])


def test_order_is_kept_where_costs_rise() -> None:
    seen, new = some(NET, 30, 0), some(NET, 200, 1)
    predictor = LatencyPredictor(NET, COSTS).fit(seen, net_ms(seen, 0.01).tolist())
    assert kendall_tau(predictor.predict(new), net_ms(new)) > 0.9


def test_what_cannot_be_learnt_from_is_refused() -> None:
    seen = some(NET, 10, 0)
    ms = net_ms(seen).tolist()
    for values, said in (
        (ms[:4], "at least 5 configs and one value of each, got 10 configs and 4 values"),
        ([*ms[:9], -1.0], "positive numbers of milliseconds, got -1.0"),
        ([*ms[:9], float("nan")], "got nan"),
    ):
        with pytest.raises(InvalidInput, match=said):
            LatencyPredictor(NET).fit(seen, values)
    with pytest.raises(InvalidInput, match="costs must be a cost table, or a function"):
        LatencyPredictor(NET, 5)  # type: ignore[arg-type]
    fitted = LatencyPredictor(NET).fit(seen, ms)
    with pytest.raises(InvalidInput, match="nothing left to measure"):
        fitted.suggest(seen, 3)
    with pytest.raises(InvalidInput, match="at least 1 config must be asked for, got 0"):
        fitted.suggest(some(NET, 20, 1), 0)
