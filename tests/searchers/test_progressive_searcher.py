from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from search_spaces import CostTable, Knob, SearchSpace, SubnetConfig, SubnetSearchError
from search_spaces.presets import ladders, steps_down
from subnet_search.record import Evaluation, Objective
from subnet_search.searchers import Budget, ProgressiveSearcher, Score, SpaceExhausted, search, walk_down

SPACE = SearchSpace(
    (
        Knob("stem", (8, 16, 24, 32)),
        Knob("block", (0, 1), "depth"),
        Knob("block.hidden", (8, 16, 24, 32)),
        Knob("head", (8, 16, 24)),
    ),
    {"block.hidden": (("block",),)},
)
MACS = {("stem",): 3, ("block", "block.hidden", "stem"): 2, ("head", "stem"): 5}
COSTS = CostTable(SPACE.names, (8, 1, 8, 8), MACS, {(): 1}, {(): 4}, ({(): 4},))
SCORE, PRICE = Objective("score_percent", "max"), Objective("macs", "min")


def macs(config: SubnetConfig) -> float:
    return float(COSTS.macs(SPACE.encode([config]))[0])


def score(config: SubnetConfig) -> float:
    hidden = config["block"] * (config["block.hidden"] / 4) ** 0.5
    return 60 + (config["stem"] / 2) ** 0.5 + hidden + 3 * config["head"] ** 0.5


def asked_in_turn(
    searcher: ProgressiveSearcher, answer: Callable[[SubnetConfig], Evaluation]
) -> list[SubnetConfig]:
    asked = []
    try:
        while True:
            asked.append(searcher.ask())
            searcher.tell(answer(asked[-1]))
    except SpaceExhausted:
        return asked


class FullScorer:
    images = 0

    def __call__(self, config: SubnetConfig, final: bool) -> Score:
        return Score(-score(config), score(config))


@pytest.mark.parametrize(
    ("objectives", "criterion"),
    [((SCORE, PRICE), "loss_per_mac"), ((PRICE, SCORE), "loss_per_mac"), ((SCORE,), "accuracy")],
)
def test_it_asks_for_the_drops_along_the_fully_scored_path(
    objectives: Sequence[Objective], criterion: str
) -> None:
    values = {SCORE: score, PRICE: macs}
    searcher = ProgressiveSearcher(SPACE, objectives)
    asked = asked_in_turn(searcher, lambda c: Evaluation(c, tuple(values[o](c) for o in objectives)))
    path = walk_down(
        SPACE,
        COSTS,
        ladders(SPACE),
        FullScorer(),
        criterion=criterion,  # type: ignore[arg-type]
        screen=None,
        smallest_macs_share=0.0,
    )
    drops = [drop for e in path for _, drop in steps_down(SPACE, e.config, ladders(SPACE))]
    assert asked == list(dict.fromkeys([SPACE.largest(), *drops]))


def test_with_limits_it_begins_at_the_projection_of_the_largest() -> None:
    searcher = ProgressiveSearcher(SPACE, (SCORE, PRICE), limits={"macs": 30}, costs=COSTS)
    asked = asked_in_turn(searcher, lambda c: Evaluation(c, (score(c), macs(c))))
    assert macs(asked[0]) == max(map(macs, asked)) <= 30 < macs(SPACE.largest())
    for smaller in asked[1:]:
        assert (
            all(a <= b for a, b in zip(*SPACE.encode([smaller, asked[0]]), strict=True))
            or not smaller["block"]
        )


def test_failed_drops_are_left_out_unless_all_failed() -> None:
    def answer(config: SubnetConfig) -> Evaluation:
        if config["head"] < 24:
            return Evaluation(config, (), "failed", "the head is too small")
        return Evaluation(config, (score(config), macs(config)))

    asked = asked_in_turn(ProgressiveSearcher(SPACE, (SCORE, PRICE)), answer)
    narrow = [place for place, config in enumerate(asked) if config["head"] < 16]
    smallest_with_head = asked.index({**SPACE.smallest(), "head": 24})
    assert narrow
    assert min(narrow) > smallest_with_head
    assert SPACE.smallest() in asked


def test_a_path_goes_on_where_everything_failed() -> None:
    searcher = ProgressiveSearcher(SPACE, (SCORE, PRICE))
    assert SPACE.smallest() in asked_in_turn(searcher, lambda c: Evaluation(c, (), "failed", "no memory"))


def test_the_order_of_answers_makes_no_difference() -> None:
    def proposals(reverse: bool) -> list[set[SubnetConfig]]:
        searcher, rounds = ProgressiveSearcher(SPACE, (SCORE, PRICE)), []
        while True:
            asked = []
            try:
                while True:
                    asked.append(searcher.ask())
            except SubnetSearchError as stop:
                rounds.append(set(asked))
                for config in reversed(asked) if reverse else asked:
                    searcher.tell(Evaluation(config, (score(config), macs(config))))
                if isinstance(stop, SpaceExhausted):
                    return rounds

    assert proposals(True) == proposals(False)
    assert len(proposals(True)) > 5


def test_more_than_a_step_at_once_is_refused_with_the_way_out() -> None:
    searcher = ProgressiveSearcher(SPACE, (SCORE, PRICE))
    first, *_ = [searcher.ask() for _ in range(5)]
    with pytest.raises(SubnetSearchError, match=rf"depends on 5 sub-nets .* {first.key}: tell what they are"):
        searcher.ask()


def test_a_search_ends_with_the_path() -> None:
    class Table:
        objectives = (SCORE, PRICE)

        def __call__(self, config: SubnetConfig) -> Evaluation:
            return Evaluation(config, (score(config), macs(config)))

    result = search(
        SPACE, Table(), "progressive", budget=Budget(evaluations=500), costs=COSTS, progress=False
    )
    assert result.ended == "exhausted"
    assert len(result.evaluations) < 500
