"""Racing: how often it errs, what it saves, and that a search with it is a search."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
import torch

from reports import read_run
from reports.account import notes
from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig, SubnetSearchError
from subnet_search.cli import run_command
from subnet_search.fronts import read_front
from subnet_search.measure import make_evaluator
from subnet_search.recipe import parse_recipe
from subnet_search.record import (
    Evaluation,
    Images,
    Journal,
    Objective,
    ParetoFront,
    Partial,
    create_run,
    open_run,
)
from subnet_search.searchers import Budget, Listed, Racing, SearchResult, look_sizes, search
from subnet_search.searchers.racing import can_race, evidence, race
from subnet_search.settings import EvaluateSettings
from subnet_search.workbench import Workbench
from tests.small import small_splits, small_supernet

SPACE = SearchSpace((Knob("stem", tuple(range(1, 9))), Knob("head", tuple(range(1, 9)))))
COSTS = CostTable(SPACE.names, (8, 8), {("stem",): 3, ("head", "stem"): 5}, {(): 1}, {(): 4}, ({(): 4},))
OBJECTIVES = (Objective("top1_percent", "max"), Objective("macs", "min", COSTS.macs))
OF, CALIBRATION = 1000, 50


class Quiz:
    """Answers images of random difficulty; wider sub-nets more of them, and each some others by luck."""

    objectives = OBJECTIVES
    context = "quiz"

    def __init__(self, luck: float = 0.4, seed: int = 0) -> None:
        self.luck, self.seed = luck, seed
        self.difficulty = np.random.default_rng(seed).normal(size=OF)
        self.asked: list[SubnetConfig] = []
        self.shown = 0

    def right(self, config: SubnetConfig) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 1, config["stem"], config["head"]])
        skill = 0.3 * math.sqrt(config["stem"]) + 0.2 * math.sqrt(config["head"])
        return self.difficulty + self.luck * rng.normal(size=OF) < skill

    def __call__(self, config: SubnetConfig) -> Evaluation:
        *_, last = self.stages(config)
        return Evaluation(config, last.values)

    def stages(self, config: SubnetConfig) -> Generator[Partial]:
        self.asked.append(config)
        right, macs = self.right(config), float(COSTS.macs(SPACE.encode([config]))[0])
        order = np.random.default_rng([self.seed, 2, config["stem"], config["head"]]).permutation(OF)
        for size in look_sizes(OF):
            images = order[:size]
            self.shown += size
            top1 = 100 * float(right[images].mean())
            yield Partial(right[images], images, OF, CALIBRATION, (top1, macs))


def go(quiz: Quiz, racing: Racing | None = Racing(), evaluations: int = 40, **more: object) -> SearchResult:  # noqa: B008
    budget = Budget(evaluations=evaluations)
    return search(SPACE, quiz, budget=budget, costs=COSTS, racing=racing, progress=False, **more)  # type: ignore[arg-type]


def differences(wins: int, losses: int, of: int) -> np.ndarray:
    """1 where only the rival is right, -1 where only the sub-net is, `[of]`."""
    return np.repeat([1, -1, 0], [wins, losses, of - wins - losses])


def share_stopped(lost: np.ndarray, trials: int, error: float) -> float:
    """Of races in new orders, where one looks after every image but the last."""
    rng, of = np.random.default_rng(0), len(lost)
    return float(np.mean([evidence(rng.permutation(lost)[:-1], of) >= 1 / error for _ in range(trials)]))


def images_needed(lost: np.ndarray, trials: int, error: float) -> list[int]:
    """After how many images races in new orders are over, all of them where none was stopped."""
    rng, of = np.random.default_rng(0), len(lost)
    orders = [rng.permutation(lost) for _ in range(trials)]
    sizes = look_sizes(of)
    return [next(n for n in sizes if n == of or evidence(order[:n], of) >= 1 / error) for order in orders]


@pytest.mark.parametrize("error", [0.05, 0.2])
@pytest.mark.parametrize(("wins", "of"), [(10, 100), (100, 400), (30, 600)])
def test_equals_are_stopped_no_more_often_than_stated_however_often_one_looks(
    wins: int, of: int, error: float
) -> None:
    trials = 400
    stopped = share_stopped(differences(wins, wins, of), trials, error)
    assert stopped <= error + 2 * math.sqrt(error * (1 - error) / trials)
    assert share_stopped(differences(wins, wins + of // 50, of), trials, error) <= stopped


def test_the_error_would_be_larger_with_a_test_for_a_single_look() -> None:
    rng, lost = np.random.default_rng(0), differences(100, 100, 1000)

    def naive(order: np.ndarray) -> bool:
        looks = [order[:n] for n in look_sizes(1000)[:-1]]
        return any(look.sum() > 1.645 * math.sqrt(max((look**2).sum(), 1)) for look in looks)

    assert np.mean([naive(rng.permutation(lost)) for _ in range(1000)]) > 0.075


@pytest.mark.parametrize(
    ("gain", "discord", "share"),
    [(0.05, 0.1, 0.12), (0.02, 0.05, 0.25), (0.02, 0.1, 0.5), (0.3, 0.4, 0.0625)],
)
def test_what_is_clearly_worse_is_seen_through_early(gain: float, discord: float, share: float) -> None:
    of = 6000
    lost = differences(round(of * (discord + gain) / 2), round(of * (discord - gain) / 2), of)
    found = images_needed(lost, 40, 0.05)
    assert max(found) < of
    assert np.mean(found) <= share * of + 1


def test_evidence_is_the_product_of_bets_and_grows_to_certainty() -> None:
    assert evidence(np.zeros(50, dtype=int), 1000) == 1.0
    assert evidence(-np.ones(50, dtype=int), 1000) == 1.0
    stakes = (0.6, 0.25, 0.1)
    by_hand = [(1 + s) * (1 + s * (0 + 1 / 9)) for s in stakes]
    assert evidence(np.array([1, 0]), 10) == pytest.approx(sum(by_hand) / 3)
    assert evidence(np.array([1, 1, 1, 1, 1]), 10) < math.inf  # both may be equal still
    assert evidence(np.array([1, 1, 1, 1, 1, 1]), 10) == math.inf
    assert evidence(np.ones(5000, dtype=int), 50_000) > 1e30


def test_wrongly_stopped_subnets_are_fewer_than_stated_among_several_front_members() -> None:
    """Each new sub-net has the accuracy of the best of eight members, so that none of them beats it."""
    rng, wrong, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        counts = np.sort(rng.choice(np.arange(250, 320), 8, replace=False))
        table = [rng.permutation(np.arange(400) < count) for count in (*counts, counts[-1])]
        seen = [full(i, right) for i, right in enumerate(table[:-1])]
        order = rng.permutation(400)
        shower = Shower(
            [Partial(table[-1][order[:n]], order[:n], 400, 0, (0.0, 9.0)) for n in look_sizes(400)]
        )
        wrong += not race(shower, config_of(8), seen, Racing(0.1)).in_full
    assert wrong / trials <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / trials)


class Shower:
    """Shows given stages."""

    objectives = OBJECTIVES

    def __init__(self, partials: list[Partial]) -> None:
        self.partials = partials

    def __call__(self, config: SubnetConfig) -> Evaluation:
        raise NotImplementedError

    def stages(self, config: SubnetConfig) -> Generator[Partial]:
        yield from self.partials


def config_of(number: int) -> SubnetConfig:
    return SPACE.canonical({"stem": 1 + number // 8, "head": 1 + number % 8})


def full(number: int, right: np.ndarray, macs: float | None = None) -> Evaluation:
    bits = Images(len(right), len(right), 0, np.packbits(right).tobytes())
    values = (100 * float(right.mean()), float(number) if macs is None else macs)
    return Evaluation(config_of(number), values, images=bits)


def shown(right: np.ndarray, macs: float) -> Shower:
    order = np.random.default_rng(0).permutation(len(right))
    sizes = look_sizes(len(right))
    return Shower([Partial(right[order[:n]], order[:n], len(right), 7, (0.0, macs)) for n in sizes])


def test_the_cheaper_and_the_equal_are_never_stopped_the_dearer_and_worse_are() -> None:
    good, bad = np.ones(1000, dtype=bool), np.arange(1000) % 5 > 0
    rival = full(1, good, macs=10.0)
    found = race(shown(bad, macs=10.0), config_of(2), [rival], Racing())
    assert not found.in_full
    assert found.images is not None
    assert (found.images.rival, found.images.calibration) == (rival.config.key, 7)
    assert found.source == "predicted"
    assert "stopped after" in found.reason
    assert rival.config.key in found.reason
    assert found.values[0] < rival.values[0]
    assert found.spread is not None
    assert abs(found.values[0] - 80) < 4 * found.spread[0] + 1
    for right, macs in ((bad, 9.0), (good, 10.0), (good, 99.0)):
        whole = race(shown(right, macs), config_of(2), [rival], Racing())
        assert whole.images is not None
        assert whole.in_full
        assert (whole.images.answers() == right).all()
    beaten_nowhere = Evaluation(config_of(3), (), "failed", "no")
    assert race(shown(bad, 99.0), config_of(2), [beaten_nowhere, found], Racing()).in_full


def test_the_rival_is_the_most_accurate_of_those_that_cost_no_more() -> None:
    rights = [np.arange(1000) % k > 0 for k in (3, 50, 20)]
    seen = [full(1, rights[0], 1.0), full(2, rights[1], 5.0), full(3, rights[2], 4.0)]
    found = race(shown(np.arange(1000) % 2 > 0, macs=4.5), config_of(4), seen, Racing())
    assert found.images is not None
    assert found.images.rival == config_of(3).key


@pytest.mark.parametrize("seed", range(3))
def test_the_front_is_that_of_full_evaluation_at_fewer_images(seed: int) -> None:
    everything = SPACE.decode(_rows())
    order = np.random.default_rng(seed).permutation(len(everything))
    listed = [everything[i] for i in order]
    plain = go(Quiz(seed=seed), None, 64, searcher=Listed(listed), seed=seed)
    raced = go(Quiz(seed=seed), Racing(), 64, searcher=Listed(listed), seed=seed)
    assert [(m.config, m.values) for m in raced.front] == [(m.config, m.values) for m in plain.front]
    assert all(member.in_full for member in raced.front)
    assert [e.config for e in raced.evaluations] == [e.config for e in plain.evaluations]
    spent = sum(e.images.spent for e in raced.evaluations if e.images)
    assert spent < 0.6 * 64 * (OF + CALIBRATION)
    true = {e.config: e.values for e in plain.evaluations}
    for e in raced.evaluations:
        if not e.in_full:
            assert e.spread is not None
            assert e.values[1] == true[e.config][1]
            assert abs(e.values[0] - true[e.config][0]) <= 5 * e.spread[0]


def _rows() -> np.ndarray:
    choices = np.arange(1, 9)
    return np.array([(stem, head) for stem in choices for head in choices])


class Killed(BaseException):
    """What the system does."""


def content(journal: Journal) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "search")} for line in journal.lines()]


@pytest.mark.parametrize("searcher", ["nsga2", "random"])
@pytest.mark.parametrize("after", [5, 23])
def test_resumed_equals_unbroken_and_nothing_is_paid_for_twice(
    tmp_path: Path, searcher: str, after: int
) -> None:
    with create_run(tmp_path / "unbroken", "") as run:
        unbroken = go(Quiz(), searcher=searcher, run=run)
        expected = content(run.journal)
    assert any(not e.in_full for e in unbroken.evaluations)

    class Mortal(Quiz):
        def stages(self, config: SubnetConfig) -> Generator[Partial]:
            for stage, partial in enumerate(super().stages(config)):
                if len(self.asked) > after and stage == 2:
                    raise Killed
                yield partial

    with create_run(tmp_path / "run", "") as run:
        mortal, again = Mortal(), Quiz()
        with pytest.raises(Killed):
            go(mortal, searcher=searcher, run=run)
        resumed = go(again, searcher=searcher, run=run)
        assert content(run.journal) == expected
        assert resumed == unbroken
        assert (
            len(mortal.asked) + len(again.asked) - len({*mortal.asked, *again.asked}) == 1
        )  # the one it died in
        third = Quiz()
        assert go(third, searcher=searcher, run=run) == unbroken
        assert third.asked == []


def test_what_another_search_stopped_counts_only_where_its_rival_is_known(tmp_path: Path) -> None:
    bad, good = SPACE.canonical({"stem": 1, "head": 8}), SPACE.canonical({"stem": 3, "head": 1})
    with create_run(tmp_path / "run", "") as run:

        def looked_at(listed: list[SubnetConfig], quiz: Quiz) -> SearchResult:
            return search(
                SPACE, quiz, Listed(listed), name="mine", budget=Budget(evaluations=70), racing=Racing(), run=run,
                costs=COSTS, limits={"macs": 43.0}, progress=False,
            )  # fmt: skip

        first = looked_at([good, bad], Quiz())
        stopped = [e for e in first.evaluations if e.images and e.images.rival == good.key]
        lines = [line for line in run.journal.lines() if line["kind"] == "result"]
        assert all("images" in line for line in lines)
        assert run.journal.known(lines[0]["context"]).keys().isdisjoint(e.config.key for e in stopped)
        quiz = Quiz()
        assert looked_at([good, bad], quiz) == first
        assert quiz.asked == []
        unraced = Quiz()
        search(
            SPACE, unraced, Listed([bad]), name="mine", budget=Budget(evaluations=70), run=run, costs=COSTS,
            limits={"macs": 43.0}, progress=False,
        )  # fmt: skip
        assert bad in unraced.asked


def test_a_failing_evaluation_under_racing_is_one_line_of_the_record() -> None:
    class Faulty(Quiz):
        def stages(self, config: SubnetConfig) -> Generator[Partial]:
            for partial in super().stages(config):
                if config["stem"] == 3:
                    raise RuntimeError("no memory left")
                yield partial

    result = go(Faulty())
    failed = [e for e in result.evaluations if not e.ok]
    assert failed
    assert {e.reason for e in failed} == {"RuntimeError: no memory left"}
    assert all(e.config["stem"] == 3 for e in failed)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda right: [], "ended after 0 images, before all were seen"),
        (
            lambda right: [(right[:5], 9), (right[:5], 9)],
            "more images than the one before, got 5 of 9 after 5",
        ),
    ],
)
def test_stages_that_do_not_come_to_an_end_are_refused(stages: Callable[..., list], message: str) -> None:  # type: ignore[type-arg]
    right = np.ones(9, dtype=bool)
    partials = [Partial(r, np.arange(len(r)), of, 0, (0.0, 1.0)) for r, of in stages(right)]
    with pytest.raises((InvalidInput, SubnetSearchError), match=message):
        race(Shower(partials), config_of(1), [], Racing())


def test_what_cannot_be_raced_is_refused_with_the_way_out() -> None:
    class Plain:
        objectives = OBJECTIVES

        def __call__(self, config: SubnetConfig) -> Evaluation:
            return Evaluation(config, (1.0, 1.0))

    with pytest.raises(InvalidInput, match=r"stages\(config\), and Plain has none; .* without racing"):
        search(SPACE, Plain(), budget=Budget(evaluations=3), racing=Racing())
    quiz = Quiz()
    quiz.objectives = (OBJECTIVES[1],)  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="of the objectives macs top1_percent is not among them"):
        can_race(quiz)
    quiz.objectives = (*OBJECTIVES, Objective("f1_percent", "max", function=max))  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="f1_percent needs all answers; search without racing"):
        can_race(quiz)
    with pytest.raises(InvalidInput, match="error of racing must be between 0 and 1, got 1"):
        Racing(1)


def test_looks_grow_from_a_sixteenth_to_all() -> None:
    assert look_sizes(6000) == [375, 531, 751, 1061, 1501, 2122, 3001, 4243, 6000]
    for of in range(1, 60):
        sizes = look_sizes(of)
        assert sizes[-1] == of
        assert sizes == sorted(set(sizes))
        assert sizes[0] >= 1


@pytest.mark.parametrize("memory_mib", [0, 256])
def test_the_stages_of_a_supernet_end_in_its_evaluation(memory_mib: int) -> None:
    supernet, settings = small_supernet(), EvaluateSettings(calibration_images=32, memory_mib=memory_mib)
    evaluator = make_evaluator(supernet, small_splits(), settings=settings)
    for config in (supernet.space.largest(), *supernet.space.sample(np.random.default_rng(0), 4)):
        partials = list(evaluator.stages(config))
        expected = [len(p.correct) for p in partials]
        assert expected == (look_sizes(40) if memory_mib else [40])
        assert {(p.of, p.calibration) for p in partials} == {(40, 32)}
        assert partials[-1].values == evaluator(config).values
        right = np.zeros(40, dtype=bool)
        right[partials[-1].images] = partials[-1].correct
        for partial in partials:
            assert (right[partial.images] == partial.correct).all()
            assert partial.values[0] == 100 * partial.correct.mean()
            assert partial.values[1:] == partials[-1].values[1:]
    if memory_mib:
        first = [
            next(iter(evaluator.stages(c))).images for c in supernet.space.sample(np.random.default_rng(0), 2)
        ]
        assert set(first[0]) != set(first[1])  # each has an order of its own


def test_a_race_that_was_stopped_leaves_the_supernet_as_it_was() -> None:
    supernet = small_supernet().train()
    evaluator = make_evaluator(supernet, small_splits(), settings=EvaluateSettings(calibration_images=32))
    first, second = supernet.space.uniform(0.5), supernet.space.smallest()
    expected = [evaluator(config).values for config in (first, second)]
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    stages = evaluator.stages(first)
    next(stages)
    assert supernet.active == first
    assert not torch.is_inference_mode_enabled()
    stages.close()
    assert supernet.active == supernet.space.largest()
    assert all(module.training for module in supernet.modules())
    assert all((tensor == before[name]).all() for name, tensor in supernet.state_dict().items())
    assert [evaluator(config).values for config in (first, second)] == expected


def test_a_supernet_trained_since_is_not_raced() -> None:
    supernet = small_supernet()
    evaluator = make_evaluator(supernet, small_splits())
    next(supernet.parameters()).detach().add_(1)
    with pytest.raises(InvalidInput, match="weights changed since"):
        next(iter(evaluator.stages(supernet.space.largest())))


ROAD = """
[model]
name = "subnet_search.small_models:digits_cnn"
options = { width = 6 }
epochs = 3
[elastic]
step = 2
[train]
epochs = 3
[rank]
ranker = "l1"
curve = false
[evaluate]
calibration_images = 128
[search]
searcher = "random"
evaluations = 40
racing = true
"""


@pytest.mark.slow
def test_a_search_with_racing_finds_the_front_of_full_evaluation_and_the_report_says_what_it_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raced.toml").write_text(ROAD)
    assert run_command(["search", str(tmp_path / "raced.toml"), "--out", str(tmp_path)]) == 0
    assert re.search(
        r"40 evaluations, \d+ % of the images, \d+ sub-nets on the front", capsys.readouterr().err
    )
    with open_run(tmp_path / "raced", write=False) as run:
        bench = Workbench(run, parse_recipe(ROAD), print)
        answers = [line for line in run.journal.lines() if line["kind"] == "result"]
        plain = [bench.evaluator(SubnetConfig(line["config"])) for line in answers]
        members = read_front(run).members
    assert {m.config for m in members} == {
        m.config for m in ParetoFront.of(bench.evaluator.objectives, plain)
    }
    stopped = [line for line in answers if line["images"].get("rival")]
    assert len(stopped) > 5
    by_key = {line["key"]: e for line, e in zip(answers, plain, strict=True)}
    for line in stopped:
        assert by_key[line["key"]].values[0] < by_key[line["images"]["rival"]].values[0]
        assert line["values"]["macs"] == by_key[line["key"]].values[1]
    for line in answers:
        if line not in stopped:
            assert tuple(line["values"].values()) == pytest.approx(by_key[line["key"]].values, abs=0.3)
    told = " ".join(notes(read_run(tmp_path / "raced")))
    assert f"Racing: {len(stopped)} sub-nets more were looked at only in part" in told
