"""What every searcher promises; a new one adds a subclass with its `make`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        assert all(macs(config) <= 30 for config in self.propose(self.make(limits=TIGHT), 12))

    def test_every_feasible_subnet_is_proposed_before_the_space_is_exhausted(self) -> None:
        tight = {"macs": 12.0}
        few = {config for config in feasible_configs() if macs(config) <= 12}
        searcher = self.make(limits=tight)
        assert set(self.propose(searcher, len(few))) == few
        for _ in range(2):
            with pytest.raises(SpaceExhausted):
                searcher.ask()

    def test_same_seed_same_proposals_and_another_seed_others(self) -> None:
        first, again, other = (self.propose(self.make(seed), 12) for seed in (1, 1, 2))
        assert first == again
        assert first != other

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
        asked = [searcher.ask() for _ in range(6)]
        assert len(set(asked)) == 6
        for config in reversed(asked):
            searcher.tell(answer(config))
        assert searcher.ask() not in asked

    def test_a_subnet_told_without_being_asked_is_not_proposed(self) -> None:
        searcher = self.make(limits={"macs": 12.0})
        told = min((c for c in feasible_configs()), key=lambda c: (macs(c), c.key))
        searcher.tell(answer(told))
        searcher.tell(answer(told))
        few = {config for config in feasible_configs() if macs(config) <= 12}
        assert set(self.propose(searcher, len(few) - 1)) == few - {told}

    def test_answers_that_do_not_fit_are_refused(self) -> None:
        searcher = self.make()
        with pytest.raises(InvalidInput, match=r"one value for each of \['macs', 'score_percent'\]"):
            searcher.tell(Evaluation(searcher.ask(), (1.0,)))
        with pytest.raises(InvalidInput, match="unknown knob 'stm'"):
            searcher.tell(Evaluation(SubnetConfig({"stm": 8}), (1.0, 1.0)))

    def test_a_limit_nothing_meets_is_refused_with_the_nearest_that_can_be_met(self) -> None:
        with pytest.raises(InvalidInput, match="nearest feasible value is 8"):
            self.make(limits={"macs": 7})

    @pytest.mark.parametrize("count", [1, 3])
    def test_any_number_of_objectives_will_do(self, count: int) -> None:
        objectives = [Objective(f"cost{i}", "min") for i in range(count)]
        searcher = self.make(objectives=objectives)
        for _ in range(11):
            config = searcher.ask()
            searcher.tell(Evaluation(config, (macs(config),) * count))


class TestRandom(SearcherContract):
    name = "random"


class TestNsga2(SearcherContract):
    name = "nsga2"
    asks = 60


class TestNsga3(SearcherContract):
    name = "nsga3"
    asks = 60


class TestTpe(SearcherContract):
    name = "tpe"


class TestGp(SearcherContract):
    name = "gp"
    asks = 13  # the model is asked from the eleventh on


class TestQmc(SearcherContract):
    name = "qmc"
