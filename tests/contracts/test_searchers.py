"""What every searcher promises; a new one adds a subclass with its `make`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import pytest

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective
from subnet_search.searchers import Searcher, SpaceExhausted, make_searcher

KNOBS = (
    Knob("stem", (8, 16, 24, 32)),
    Knob("block", (0, 1), "depth"),
    Knob("block.hidden", (8, 16, 24, 32)),
    Knob("head", (8, 16, 24)),
)
SPACE = SearchSpace(KNOBS, {"block.hidden": (("block",),)})
MACS = {("stem",): 3, ("block", "block.hidden", "stem"): 2, ("head", "stem"): 5}
COSTS = CostTable(SPACE.names, (8, 1, 8, 8), MACS, {(): 1}, {(): 4}, ({(): 4},))
OBJECTIVES = (Objective("macs", "min"), Objective("score_percent", "max"))
TIGHT = {"macs": 30.0}


def macs(config: SubnetConfig) -> float:
    return float(COSTS.macs(SPACE.encode([config]))[0])


def answer(config: SubnetConfig) -> Evaluation:
    """Some sub-nets fail; the score rises with every knob."""
    if config["stem"] == 24 and config["head"] == 8:
        return Evaluation(config, (), "failed", "this one does")
    score = config["stem"] ** 0.5 + config["block"] * config["block.hidden"] ** 0.5 + config["head"] ** 0.5
    return Evaluation(config, (macs(config), score))


def feasible_configs() -> set[SubnetConfig]:
    """Brute force over every assignment."""
    every = [{}]
    for knob in KNOBS:
        every = [{**config, knob.name: choice} for config in every for choice in knob.choices]
    return {config for config in map(SPACE.canonical, every) if macs(config) <= TIGHT["macs"]}


class SearcherContract:
    name: str
    asks = 25
    asks_in_limits = 12
    at_once = 6  # so many are asked for before the first answer
    many_asks = 11
    proposes_smallest = True

    def make(
        self,
        seed: int = 0,
        limits: Mapping[str, float] | None = None,
        objectives: Sequence[Objective] = OBJECTIVES,
    ) -> Searcher:
        return make_searcher(self.name, SPACE, objectives, seed=seed, limits=limits, costs=COSTS)

    def propose(self, searcher: Searcher, count: int) -> list[SubnetConfig]:
        asked = []
        for _ in range(count):
            asked.append(searcher.ask())
            searcher.tell(answer(asked[-1]))
        return asked

    def test_proposals_are_canonical_members_of_the_space_and_never_repeat(self) -> None:
        asked = self.propose(self.make(), self.asks)
        assert asked == [SPACE.canonical(config) for config in asked]
        assert len(set(asked)) == self.asks

    def test_proposals_meet_the_limits(self) -> None:
        assert all(
            macs(config) <= 30 for config in self.propose(self.make(limits=TIGHT), self.asks_in_limits)
        )

    def test_same_seed_same_proposals(self) -> None:
        count = min(12, self.asks)
        assert self.propose(self.make(1), count) == self.propose(self.make(1), count)

    def test_proposals_do_not_depend_on_what_else_draws_random_numbers(self) -> None:
        import random

        import numpy as np

        first = self.propose(self.make(), 6)
        random.seed(5)
        np.random.seed(5)
        searcher, asked = self.make(), []
        for _ in range(6):
            random.random(), np.random.rand()
            asked += self.propose(searcher, 1)
        assert asked == first

    def test_answers_may_come_in_any_order(self) -> None:
        searcher = self.make()
        asked = [searcher.ask() for _ in range(self.at_once)]
        assert len(set(asked)) == self.at_once
        for config in reversed(asked):
            searcher.tell(answer(config))
        assert searcher.ask() not in asked

    def test_answers_that_do_not_fit_are_refused(self) -> None:
        searcher = self.make()
        with pytest.raises(InvalidInput, match=r"one value for each of \['macs', 'score_percent'\]"):
            searcher.tell(Evaluation(searcher.ask(), (1.0,)))
        with pytest.raises(InvalidInput, match="unknown knob 'stm'"):
            searcher.tell(Evaluation(SubnetConfig({"stm": 8}), (1.0, 1.0)))

    def test_a_limit_nothing_meets_is_refused_with_the_nearest_that_can_be_met(self) -> None:
        with pytest.raises(InvalidInput, match="nearest feasible value is 8"):
            self.make(limits={"macs": 7})

    def test_a_limit_that_one_subnet_meets_gives_that_one_and_an_end(self) -> None:
        searcher = self.make(limits={"macs": 8})
        (only,) = {config for config in feasible_configs() if macs(config) <= 8}
        if self.proposes_smallest:
            assert self.propose(searcher, 1) == [only]
        with pytest.raises(SpaceExhausted):
            searcher.ask()

    def test_a_space_of_one_config_gives_that_one_and_an_end(self) -> None:
        space = SearchSpace((Knob("stem", (8,)),))
        searcher = make_searcher(self.name, space, (Objective("score", "max"),))
        assert searcher.ask() == space.largest()
        searcher.tell(Evaluation(space.largest(), (1.0,)))
        with pytest.raises(SpaceExhausted):
            searcher.ask()

    @pytest.mark.parametrize("count", [1, 3])
    def test_any_number_of_objectives_will_do(self, count: int) -> None:
        objectives = [Objective(f"cost{i}", "min") for i in range(count)]
        searcher = self.make(objectives=objectives)
        for _ in range(self.many_asks):
            config = searcher.ask()
            searcher.tell(Evaluation(config, (macs(config),) * count))

    def test_failures_are_not_proposed_again_and_the_search_goes_on(self) -> None:
        searcher, asked = self.make(), []
        for number in range(self.asks_in_limits):
            asked.append(searcher.ask())
            failed = number % 2 == 1
            searcher.tell(Evaluation(asked[-1], (), "failed", "so it is") if failed else answer(asked[-1]))
        assert len(set(asked)) == self.asks_in_limits


class SamplerContract(SearcherContract):
    """What searchers that draw at random promise besides."""

    def test_a_searcher_that_is_told_a_record_again_goes_on_as_if_unbroken(self) -> None:
        count = min(14, self.asks)
        expected = self.propose(self.make(3), count)
        searcher = self.make(3)
        for config in expected[:-2]:
            replay = getattr(searcher, "replay", None)
            assert (replay(config) if replay else searcher.ask()) == config
            searcher.tell(answer(config))
        assert self.propose(searcher, 2) == expected[-2:]

    def test_evaluations_under_way_are_remembered(self) -> None:
        def ahead() -> list[SubnetConfig]:
            searcher = self.make(4)
            asked = [searcher.ask() for _ in range(3)]
            for _ in range(min(9, self.asks - 3)):  # three workers, the oldest question is answered first
                searcher.tell(answer(asked[-3]))
                asked.append(searcher.ask())
            return asked

        assert ahead() == ahead()
        assert len(set(ahead())) == len(ahead())

    def test_another_seed_other_proposals(self) -> None:
        assert self.propose(self.make(1), 12) != self.propose(self.make(2), 12)

    def test_every_feasible_subnet_is_proposed_before_the_space_is_exhausted(self) -> None:
        tight = {"macs": 12.0}
        few = {config for config in feasible_configs() if macs(config) <= 12}
        searcher = self.make(limits=tight)
        assert set(self.propose(searcher, len(few))) == few
        for _ in range(2):
            with pytest.raises(SpaceExhausted):
                searcher.ask()

    def test_a_subnet_told_without_being_asked_is_not_proposed(self) -> None:
        searcher = self.make(limits={"macs": 12.0})
        told = min((c for c in feasible_configs()), key=lambda c: (macs(c), c.key))
        searcher.tell(answer(told))
        searcher.tell(answer(told))
        few = {config for config in feasible_configs() if macs(config) <= 12}
        assert set(self.propose(searcher, len(few) - 1)) == few - {told}


class TestRandom(SamplerContract):
    name = "random"


class TestGuided(SamplerContract):
    name = "guided"
    many_asks = 13  # it predicts from the eleventh on


class TestNsga2(SamplerContract):
    name = "nsga2"
    asks = 60


class TestNsga3(SamplerContract):
    name = "nsga3"
    asks = 60


class TestTpe(SamplerContract):
    name = "tpe"


class TestGp(SamplerContract):
    name = "gp"
    asks = 13  # the model is asked from the eleventh on


class TestQmc(SamplerContract):
    name = "qmc"


class TestUniform(SearcherContract):
    name = "uniform"
    asks = 6  # all there are
    asks_in_limits = 2
    at_once = 5
    many_asks = 6
    proposes_smallest = False  # it skips no block

    def test_every_uniform_width_is_proposed_once_the_ends_and_the_middle_first(self) -> None:
        asked = self.propose(self.make(), self.asks)
        assert asked[:2] == [SPACE.largest(), SPACE.uniform(0.01)]
        assert set(asked) == {SPACE.uniform(share / 100) for share in range(1, 101)}
        assert macs(asked[1]) < macs(asked[2]) < macs(asked[0])


class TestProgressive(SearcherContract):
    name = "progressive"
    asks = 20
    asks_in_limits = 6
    at_once = 5  # the largest and its four drops

    def test_a_subnet_told_without_being_asked_is_not_proposed(self) -> None:
        asked = self.everything(self.make())
        for told in asked:
            searcher = self.make()
            searcher.tell(answer(told))
            searcher.tell(answer(told))
            assert self.everything(searcher) == [config for config in asked if config != told]

    def test_the_path_ends_at_the_smallest_and_stays_there(self) -> None:
        for limits in (None, {"macs": 12.0}):
            searcher = self.make(limits=limits)
            assert SPACE.smallest() in self.everything(searcher)
            with pytest.raises(SpaceExhausted, match=f"the path ends with {SPACE.smallest().key}"):
                searcher.ask()

    def everything(self, searcher: Searcher) -> list[SubnetConfig]:
        asked = []
        with suppress(SpaceExhausted):
            while True:
                asked += self.propose(searcher, 1)
        return asked
