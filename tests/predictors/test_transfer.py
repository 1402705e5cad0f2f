from __future__ import annotations

import numpy as np
import pytest

from predictors import LatencyPredictor, TransferPredictor, learn_devices
from predictors.transfer import blend
from search_spaces import InvalidInput, Knob, SearchSpace, SubnetConfig

SPACE = SearchSpace(tuple(Knob(f"op{i}", (0, 1, 2, 3), "choice") for i in range(12)))
BASES = np.random.default_rng(0).uniform(0, 1, (3, 12, 4)) ** 2


def ms_on(mix: list[float], configs: list[SubnetConfig]) -> np.ndarray:
    """What a device takes whose blocks are a mix of three kinds."""
    each = BASES[:, np.arange(12), SPACE.encode(configs)].sum(axis=2)
    return np.asarray(1 + np.array(mix) @ each)


def some(count: int, seed: int) -> list[SubnetConfig]:
    return list(dict.fromkeys(SPACE.sample(np.random.default_rng(seed), 2 * count)))[:count]


DEVICES = learn_devices(
    SPACE,
    {
        str(mix): (some(150, 5), ms_on(mix, some(150, 5)).tolist())
        for mix in ([1.0, 0.1, 0.0], [0.1, 2.0, 0.3], [0.5, 0.5, 0.1])
    },
)


def test_a_device_alike_to_known_ones_is_learnt_from_ten_measurements() -> None:
    seen, new = some(10, 0), some(200, 1)
    target = [6.0, 3.0, 0.1]
    ms = ms_on(target, seen).tolist()
    transferred = TransferPredictor(SPACE, DEVICES).fit(seen, ms)
    errors = [
        np.abs(p.predict(new) - ms_on(target, new)).mean()
        for p in (transferred, LatencyPredictor(SPACE).fit(seen, ms))
    ]
    assert transferred.transferred
    assert errors[0] < 0.4 * errors[1]


def test_an_unlike_device_is_learnt_by_itself() -> None:
    """Known devices say the opposite of what this one does, which counts choices."""
    seen, new = some(40, 0), some(200, 1)

    def ms(configs: list[SubnetConfig]) -> np.ndarray:
        return np.asarray(20.0 + SPACE.encode(configs).sum(axis=1))

    wild = [lambda rows, k=k: 1 + np.abs(np.sin(rows @ np.arange(1, 13) * (k + 1.7))) for k in range(4)]
    predictor = TransferPredictor(SPACE, wild).fit(seen, ms(seen).tolist())
    plain = LatencyPredictor(SPACE).fit(seen, ms(seen).tolist())
    assert not predictor.transferred
    np.testing.assert_allclose(predictor.predict(new), plain.predict(new))


def test_the_device_that_fits_counts_and_is_scaled() -> None:
    x = np.random.default_rng(0).uniform(1, 9, (10, 3))
    shares = blend(x, 2.5 * x[:, 1])
    np.testing.assert_allclose(shares, [0, 2.5, 0], atol=1e-6)


def test_measurements_are_planned_with_what_devices_have_in_common() -> None:
    pool, new, target = some(200, 3), some(200, 1), [2.0, 0.5, 0.2]
    predictor = TransferPredictor(SPACE, DEVICES)
    chosen = predictor.suggest(pool, 10)
    assert len(set(chosen)) == 10
    predictor.fit(chosen, ms_on(target, chosen).tolist())
    assert np.abs(predictor.predict(new) / ms_on(target, new) - 1).mean() < 0.05
    low, high = predictor.predict_interval(new)
    assert (low <= high).all()


def test_a_transfer_needs_a_device() -> None:
    with pytest.raises(InvalidInput, match="at least one other device, got none; use LatencyPredictor"):
        TransferPredictor(SPACE, [])
