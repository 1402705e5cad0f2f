from __future__ import annotations

import itertools

import numpy as np
import pytest

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.elastic.supernet import Supernet
from subnet_search.training import Among, EachKnob, SandwichStep, UniformWidths
from subnet_search.training.sampling import Sampling
from tests.small import small_data, small_supernet


def trained_by(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> list[SubnetConfig]:
    """The sub-nets that one step of the sandwich rule runs."""
    supernet, ran = small_supernet().train(), list[SubnetConfig]()
    activate = Supernet.activate
    monkeypatch.setattr(
        Supernet,
        "activate",
        lambda self, config, *rest: (ran.append(config), activate(self, config, *rest))[1],
    )
    SandwichStep(num_random=3, sampling=sampling)(supernet, small_data(8, seed=1), np.random.default_rng(0))
    return ran[:-1]  # the last one is the largest, made active again


def test_a_step_trains_the_largest_the_smallest_and_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    space = small_supernet().space
    for sampling in (
        EachKnob(),
        UniformWidths(0.5),
        Among((space.largest(), space.uniform(0.5), space.smallest())),
    ):
        with monkeypatch.context() as patch:
            ran = trained_by(sampling, patch)
        drawn = sampling.draw(space, np.random.default_rng(0), 3)
        assert ran == [space.largest(), sampling.smallest(space), *drawn]


def test_each_knob_is_drawn_by_itself() -> None:
    space = small_supernet().space
    drawn = EachKnob().draw(space, np.random.default_rng(0), 300)
    uniform = {space.uniform(share / 100) for share in range(1, 101)}
    assert len(set(drawn) - uniform) > 50
    assert EachKnob().smallest(space) == space.smallest()


def test_uniform_widths_keep_all_blocks_and_one_share() -> None:
    space, sampling = small_supernet().space, UniformWidths(0.5)
    drawn = sampling.draw(space, np.random.default_rng(0), 300)
    assert set(drawn) == {space.uniform(share / 1000) for share in range(500, 1001)}
    assert sampling.smallest(space) == space.uniform(0.5)
    assert all(config[knob.name] == 1 for config in drawn for knob in space.knobs if knob.kind == "depth")


def test_among_draws_all_but_the_first_with_equal_chance() -> None:
    space = small_supernet().space
    path = (space.largest(), space.uniform(0.75), space.uniform(0.5), space.smallest())
    drawn = Among(path).draw(space, np.random.default_rng(0), 3000)
    counts = [drawn.count(config) for config in path]
    assert counts[0] == 0
    assert all(900 < count < 1100 for count in counts[1:])
    assert Among(path).smallest(space) == path[-1]


def test_different_samplings_have_different_names_in_checkpoints() -> None:
    space = small_supernet().space
    samplings = (
        EachKnob(),
        UniformWidths(0.25),
        UniformWidths(0.5),
        Among((space.largest(), space.uniform(0.5))),
        Among((space.largest(), space.smallest())),
    )
    names = [repr(SandwichStep(sampling=sampling)) for sampling in samplings]
    assert all(a != b for a, b in itertools.combinations(names, 2))
    assert repr(SandwichStep()) == names[0]


@pytest.mark.parametrize("least", [0, -0.1, 1.5, float("nan")])
def test_a_multiplier_out_of_range_is_refused(least: float) -> None:
    with pytest.raises(InvalidInput, match="least width multiplier"):
        UniformWidths(least)


def test_a_path_of_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one smaller"):
        Among((small_supernet().space.largest(),))
