from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig
from search_spaces.presets import ladders
from subnet_search.searchers import PathElement, Score, path_from_json, path_to_json, reselect, walk_down
from subnet_search.searchers.path import Drop
from subnet_search.searchers.progressive import rate
from subnet_search.searchers.time_saved import TimeSaved
from subnet_search.settings import RESOLUTION

WIDTHS = ("stem", "one.hidden", "two.hidden", "late", "head")
SPACE = SearchSpace(
    (
        Knob("stem", (4, 8, 12, 16)),
        Knob("one.hidden", (8, 16, 24, 32)),
        Knob("one", (0, 1), "depth"),
        Knob("two.hidden", (8, 16, 24, 32)),
        Knob("two", (0, 1), "depth"),
        Knob("late", (8, 16, 24, 32)),
        Knob("head", (16, 32, 48, 64)),
    ),
    {"one.hidden": (("one",),), "two.hidden": (("two",),)},
)
MACS = {
    ("stem",): 27,
    ("one", "one.hidden", "stem"): 18,
    ("stem", "two", "two.hidden"): 18,
    ("late", "stem"): 9,
    ("head", "late"): 2,
}
COSTS = CostTable(SPACE.names, (1,) * 7, MACS, {(): 1}, {(): 4}, ({(): 4},))
LADDERS = ladders(SPACE, groups=4)
IMAGES = {False: 10, True: 100}  # of a first and of a final look

Table = Callable[[SubnetConfig], float]


def macs(config: SubnetConfig) -> int:
    return int(COSTS.macs(SPACE.encode([config]))[0])


def loss_table(seed: int, noise: float = 0.0) -> Table:
    """Losses that rise faster the narrower a layer is, and a little by chance."""
    rng = np.random.default_rng(seed)
    need = dict(zip(WIDTHS, rng.uniform(0.02, 0.2, len(WIDTHS)), strict=True))
    block = {"one": rng.uniform(0.05, 0.6), "two": rng.uniform(0.05, 0.6)}

    def loss(config: SubnetConfig) -> float:
        total = 0.1 + sum(block[name] for name in block if not config[name])
        for name in WIDTHS:
            if config[name.split(".")[0]]:  # not inside a skipped block
                total += need[name] * (SPACE.largest()[name] / config[name] - 1) ** 1.3
        chance = np.random.default_rng(zlib.crc32(f"{seed}{config.key}".encode())).standard_normal()
        return total * (1 + total) * math.exp(noise * chance)

    return loss


class TableScorer:
    """Scores from a table and writes down what it was asked; a first look is a little wrong."""

    def __init__(self, loss: Table, most_looks: float = math.inf, error: float = 0.02) -> None:
        self.loss, self.most_looks, self.error = loss, most_looks, error
        self.images = self.tunings = 0
        self.looks: list[tuple[SubnetConfig, bool]] = []

    def __call__(self, config: SubnetConfig, final: bool) -> Score:
        if len(self.looks) >= self.most_looks:
            raise KeyboardInterrupt
        self.looks.append((config, final))
        self.images += IMAGES[final]
        loss = self.loss(config) * 0.8**self.tunings
        if not final:
            loss *= 1 + self.error * np.random.default_rng(zlib.crc32(config.key.encode())).standard_normal()
        return Score(loss, 100 * math.exp(-loss))

    def tune(self, element: PathElement) -> Score:
        self.tunings += 1
        self.images += 1000
        return self(element.config, True)


class Clock:
    """Milliseconds from a table, by layer quite unlike multiply-adds, and a little by chance; notes what was timed."""

    def __init__(self, seed: int = 0, noise: float = 0.002) -> None:
        self.seed, self.noise = seed, noise
        self.timed: list[SubnetConfig] = []

    def __call__(self, config: SubnetConfig) -> float:
        self.timed.append(config)
        total = 2 + config["head"] / 4 + config["late"] / 64 + config["stem"] / 16
        total += sum(config[block] * (1 + config[f"{block}.hidden"] / 64) for block in ("one", "two"))
        chance = np.random.default_rng(zlib.crc32(f"{self.seed}{config.key}".encode())).standard_normal()
        return total * (1 + self.noise * chance)


def walked(scorer: TableScorer, **options: object) -> list[PathElement]:
    return walk_down(SPACE, COSTS, LADDERS, scorer, **options)  # type: ignore[arg-type]


def next_rungs(config: SubnetConfig, least_macs: float) -> dict[str, SubnetConfig]:
    """By brute force over all configs: those that differ from `config` by one choice of one active knob."""
    found = {}
    for knob in SPACE.knobs:
        place = knob.choices.index(config[knob.name])
        inside = knob.name.split(".")[0]
        if place and (inside == knob.name or config[inside]):
            smaller = SPACE.canonical({**config, knob.name: knob.choices[place - 1]})
            if macs(smaller) >= least_macs:
                found[knob.name] = smaller
    return found


def greedy(loss: Table, badness: Callable[[float, float, int], float], share: float) -> list[SubnetConfig]:
    """The textbook walk: `badness` of the loss here, the loss there, and the multiply-adds saved."""
    path = [SPACE.largest()]
    while below := list(next_rungs(path[-1], share * macs(SPACE.largest())).values()):
        here, at = macs(path[-1]), loss(path[-1])
        path.append(min(below, key=lambda c: badness(at, loss(c), here - macs(c))))
    return path


CRITERIA: Mapping[str, Callable[[float, float, int], float]] = {
    "accuracy": lambda here, there, saved: there,  # accuracy falls with the loss here
    "loss": lambda here, there, saved: there,
    "loss_per_mac": lambda here, there, saved: (there - here) / saved,  # no drop wins anything here
}


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("share", [0.0, 0.12, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_without_screening_the_path_is_that_of_the_textbook(criterion: str, share: float, seed: int) -> None:
    loss = loss_table(seed)
    path = walked(TableScorer(loss), criterion=criterion, screen=None, smallest_macs_share=share)
    assert [element.config for element in path] == greedy(loss, CRITERIA[criterion], share)
    assert [element.score.loss for element in path] == [loss(element.config) for element in path]


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(3))
def test_per_millisecond_the_path_is_that_of_the_textbook(seed: int, noise: float) -> None:
    loss, clock = loss_table(seed), Clock(seed, noise)
    path = walked(TableScorer(loss), criterion="loss_per_ms", latency=clock, screen=None)
    ms, expected, slower = Clock(seed, noise), [SPACE.largest()], 0
    while below := list(next_rungs(expected[-1], 0.12 * macs(SPACE.largest())).values()):
        here, at = ms(expected[-1]), loss(expected[-1])
        saved = {config: here - ms(config) for config in below}
        slower += sum(one <= 0 for one in saved.values())
        expected.append(min(below, key=lambda c: (loss(c) - at) / max(saved[c], 0.005 * here)))
    assert [element.config for element in path] == expected
    assert [element.latencies_ms[element.dropped] for element in path] == [ms(c) for c in expected]
    assert (slower > 0) == (noise > 0)  # measured as slower than before, though narrower
    assert expected != greedy(loss, CRITERIA["loss_per_mac"], 0.12)


def test_only_subnets_with_a_final_look_are_timed_and_each_once() -> None:
    scorer, clock = TableScorer(loss_table(1)), Clock()
    path = walked(
        scorer, criterion="loss_per_ms", latency=clock, screen=3, finalists=2, smallest_macs_share=0.0
    )
    assert sorted(clock.timed, key=str) == sorted(
        {config for config, final in scorer.looks if final}, key=str
    )
    assert [len(element.latencies_ms) for element in path[:4]] == [1, 2, 2, 2]
    assert len(scorer.looks) > 1.5 * len(clock.timed)


def test_a_drop_that_is_measured_as_slower_saves_half_a_percent() -> None:
    ms = {"whole": 100.0, "narrow": 101.0, "narrower": 100.0, "fast": 90.0}
    configs = {name: SubnetConfig({"a": place}) for place, name in enumerate(ms)}
    times = TimeSaved({config: ms[name] for name, config in configs.items()}.__getitem__)
    saved = {name: times.saved(configs["whole"], config) for name, config in configs.items()}
    assert saved == {"whole": 0.5, "narrow": 0.5, "narrower": 0.5, "fast": 10.0}
    assert rate(1.0, saved["narrow"]) == pytest.approx(2.0)
    assert RESOLUTION == 0.005


def test_what_was_not_timed_is_expected_to_save_as_much_per_mac_as_its_knob_did_last() -> None:
    whole, one, two = (SubnetConfig({"a": a, "b": b}) for a, b in ((2, 2), (1, 2), (2, 1)))
    times = TimeSaved({whole: 100.0, one: 90.0, two: 98.0}.__getitem__)
    drops = [Drop("a", one, 50), Drop("b", two, 50), Drop("c", two, 10)]
    assert times.expected(drops[0]) == times.expected(drops[1]) > times.expected(drops[2]) > 0
    score = Score(1.0, 50.0)
    begin = PathElement(whole, score, "", 0, latencies_ms={"": 100.0})
    times.recall(begin)
    times.learn(begin, PathElement(one, score, "a", 0, latencies_ms={"a": 90.0, "b": 98.0}), drops)
    assert times.expected(Drop("a", whole, 30)) == pytest.approx(30 * 10 / 50)
    assert times.expected(Drop("b", whole, 30)) == pytest.approx(30 * 2 / 50)
    assert times.expected(Drop("c", whole, 30)) == pytest.approx(30 * 12 / 100)


def test_what_was_timed_before_a_walk_was_cut_off_is_not_timed_again() -> None:
    options = {"criterion": "loss_per_ms", "screen": 3, "finalists": 2}
    path = walked(TableScorer(loss_table(2)), latency=Clock(), **options)
    for length in range(1, len(path) + 1):
        clock = Clock()
        resumed = walked(TableScorer(loss_table(2)), latency=clock, begun=path[:length], **options)
        assert [e.latencies_ms for e in resumed] == [e.latencies_ms for e in path]
        assert not {e.config for e in path[:length]} & set(clock.timed)
        assert len(clock.timed) == sum(len(e.latencies_ms) for e in path[length:])


@pytest.mark.parametrize("screen", [None, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_each_element_is_the_one_before_with_one_knob_one_rung_down(screen: int | None, seed: int) -> None:
    path = walked(TableScorer(loss_table(seed, noise=0.2)), screen=screen, smallest_macs_share=0.0)
    assert path[0].config == SPACE.largest()
    for before, element in itertools.pairwise(path):
        assert element.config == next_rungs(before.config, 0)[element.dropped]
    assert next_rungs(path[-1].config, 0) == {}  # and it ends where nothing is left to drop


def test_the_authors_errors_do_not_happen() -> None:
    """METHODS: (a) rungs skipped, (b) another layer's accuracy, (c) dropped groups back, (d) the whole net again."""
    scorer = TableScorer(loss_table(0, noise=0.2))
    path = walked(scorer, screen=None, smallest_macs_share=0.0)
    for knob in SPACE.knobs:  # (a)
        values = [
            e.config[knob.name] for e in path if e.config[knob.name.split(".")[0]] or "." not in knob.name
        ]
        assert [v for v, _ in itertools.groupby(values)] == list(LADDERS[knob.name])[: len(set(values))]
    assert [e.score.loss for e in path] == [scorer.loss(e.config) for e in path]  # (b)
    looks = iter([config for config, _ in scorer.looks][1:])
    for element in path:  # (c)
        for expected in next_rungs(element.config, 0).values():
            assert next(looks) == expected
    assert next(looks, None) is None
    assert [e.config for e in path].count(SPACE.largest()) == 1  # (d)
    assert len({e.config for e in path}) == len(path)


def curve(path: Sequence[PathElement]) -> np.ndarray:
    """Accuracies at 40 shares of the multiply-adds, evenly spaced in their logarithm."""
    shares = [math.log(macs(element.config) / macs(SPACE.largest())) for element in path]
    accuracies = [element.score.top1_percent for element in path]
    return np.interp(np.linspace(math.log(0.15), 0, 40), shares[::-1], accuracies[::-1])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_screening_costs_a_fraction_and_loses_little(criterion: str) -> None:
    gaps = []
    for seed in range(6):
        full, screened = TableScorer(loss_table(seed)), TableScorer(loss_table(seed))
        exact = walked(full, criterion=criterion, screen=None)
        path = walked(screened, criterion=criterion, screen=4, finalists=2)
        assert screened.images < 0.6 * full.images
        gaps.append((curve(exact) - curve(path)).mean())
    assert np.mean(gaps) < 0.5


def test_each_step_looks_at_the_most_promising_drops_and_finally_at_the_best_of_them() -> None:
    scorer = TableScorer(loss_table(1))
    counts: list[tuple[int, int]] = []

    def keep(path: Sequence[PathElement]) -> None:
        counts.append((sum(not final for _, final in scorer.looks), sum(final for _, final in scorer.looks)))
        scorer.looks.clear()

    path = walked(scorer, screen=2, finalists=1, smallest_macs_share=0.0, keep=keep)
    assert counts[0] == (0, 1)
    assert counts[1] == (1 + 7, 1)  # the whole net and every drop of it: nothing is known yet
    assert set(counts[2:-1]) == {(2, 1)}
    assert len(counts) == len(path)


def test_a_drop_seen_to_be_dear_is_not_looked_at_until_others_are_dearer() -> None:
    def loss(config: SubnetConfig) -> float:
        return (
            0.1 + (64 - config["head"]) * 0.05 + sum(1 - config[w] / SPACE.largest()[w] for w in WIDTHS) * 0.1
        )

    scorer = TableScorer(loss)
    path = walked(scorer, criterion="loss", screen=2, finalists=1, smallest_macs_share=0.0)
    looked_at_head = [config for config, _ in scorer.looks if config["head"] == 48]
    assert looked_at_head[0] == {**SPACE.largest(), "head": 48}
    first_head_drop = [element.dropped for element in path].index("head")
    assert all(config["stem"] == 4 for config in looked_at_head[1:])
    assert first_head_drop > 6


def test_a_block_comes_within_reach_as_its_layer_is_narrowed() -> None:
    def loss(config: SubnetConfig) -> float:
        rungs = config["stem"] / 4 + config["late"] / 8 + config["head"] / 16
        rungs += config["two"] * (1 + config["two.hidden"] / 8)
        one = 0.15 * config["one.hidden"] / 8 + 0.05 if config["one"] else 0
        return 5 - 0.2 * rungs - one

    scorer = TableScorer(loss, error=0.0)
    path = walked(scorer, criterion="loss", screen=1, finalists=1, smallest_macs_share=0.0)
    assert [e.dropped for e in path[:5]] == ["", "one.hidden", "one.hidden", "one.hidden", "one"]


def test_a_prediction_orders_the_drops_that_were_never_seen() -> None:
    loss = loss_table(2)
    scorer = TableScorer(loss)
    looks_of_first_step: list[SubnetConfig] = []

    def keep(path: Sequence[PathElement]) -> None:
        if len(path) == 2:
            looks_of_first_step.extend(config for config, final in scorer.looks if not final)

    walked(scorer, criterion="loss", screen=2, finalists=1, predict=loss, keep=keep)
    best = sorted(next_rungs(SPACE.largest(), 0).values(), key=loss)[:2]
    assert looks_of_first_step[0] == SPACE.largest()
    assert set(looks_of_first_step[1:]) == set(best)


@pytest.mark.parametrize("scale", [2.0**-10, 1.0, 2.0**10])
def test_the_scale_of_a_prediction_makes_no_difference(scale: float) -> None:
    loss = loss_table(3)
    path = walked(TableScorer(loss), screen=2, predict=lambda config: scale * loss(config) + 5)
    assert path == walked(TableScorer(loss), screen=2, predict=lambda config: loss(config) + 5 / scale)


OPTIONS: Mapping[str, Mapping[str, object]] = {
    "all": {"screen": None},
    "screened": {"screen": 2, "finalists": 1},
    "accuracy": {"screen": 2, "finalists": 2, "criterion": "accuracy"},
    "predicted": {"screen": 2, "finalists": 1, "predict": loss_table(7)},
    "at once": {"screen": 3, "finalists": 3},
    "tuned": {"screen": 2, "finalists": 1, "relative_threshold": 0.6},
    "timed": {"screen": 3, "finalists": 2, "criterion": "loss_per_ms", "latency": Clock(noise=0.02)},
}


QUICK = ("tuned", "timed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in OPTIONS]
)
def test_a_path_cut_off_anywhere_goes_on_to_the_same_path(name: str) -> None:
    options = OPTIONS[name]

    def run(most_looks: float, begun: Sequence[PathElement] = ()) -> tuple[str, bool]:
        """What was last kept, as a file; whether it came to its end."""
        scorer = TableScorer(loss_table(4, noise=0.1), most_looks)
        scorer.tunings = sum(element.tuned for element in begun)  # the weights come back from a file
        more = {"tune": scorer.tune} if name == "tuned" else {}
        kept = [json.dumps(path_to_json(begun), sort_keys=True)]
        keep = lambda path: kept.append(json.dumps(path_to_json(path), sort_keys=True))  # noqa: E731
        try:
            path = walked(scorer, **options, **more, begun=begun, keep=keep)
        except KeyboardInterrupt:
            return kept[-1], False
        assert kept[-1] == json.dumps(path_to_json(path), sort_keys=True)
        return kept[-1], True

    unbroken, _ = run(math.inf)
    if name == "tuned":
        assert 1 <= unbroken.count('"tuned": true') < len(json.loads(unbroken)) - 1
    for most_looks in itertools.count(1):
        kept, finished = run(most_looks)
        if finished:
            break
        assert run(math.inf, path_from_json(json.loads(kept))) == (unbroken, True)
    assert most_looks > 20


def test_a_finished_path_costs_nothing_more() -> None:
    path = walked(TableScorer(loss_table(0)))
    scorer = TableScorer(loss_table(0))
    assert walked(scorer, begun=path) == path
    assert scorer.looks == []


def test_images_count_all_that_was_spent() -> None:
    scorer = TableScorer(loss_table(5))
    scorer.images = 12_345  # of something else, before
    path = walked(scorer, relative_threshold=0.9, tune=scorer.tune)
    assert path[0].images == 100
    assert path[-1].images == scorer.images - 12_345
    spent = [after.images - before.images for before, after in itertools.pairwise(path)]
    assert all((images > 1000) == element.tuned for images, element in zip(spent, path[1:], strict=True))


def test_what_falls_below_the_threshold_is_tuned_before_the_next_step() -> None:
    scorer = TableScorer(loss_table(6))
    offered: list[tuple[float, bool]] = []

    def tune(element: PathElement) -> Score | None:
        offered.append((element.score.top1_percent, element.tuned))
        return scorer.tune(element) if len(offered) == 1 else None  # then the cap is reached

    path = walked(scorer, threshold=60, tune=tune, smallest_macs_share=0.0)
    assert len(offered) > 2
    assert all(accuracy < 60 and not tuned for accuracy, tuned in offered)
    assert sum(element.tuned for element in path) == 1
    place = next(i for i, element in enumerate(path) if element.tuned)
    assert all(element.score.top1_percent >= 60 for element in path[:place])
    assert path[place].score.top1_percent > offered[0][0]  # the score kept is that of the tuned weights
    for element in path[place:]:
        assert element.score.loss == pytest.approx(0.8 * scorer.loss(element.config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"criterion": "acuracy"},
            "one of accuracy, loss, loss_per_mac, loss_per_ms, got 'acuracy'.*accuracy",
        ),
        (
            {"criterion": "loss_per_ms"},
            '"loss_per_ms" needs latency=.* milliseconds .*; give it, or choose "loss_per_mac"',
        ),
        (
            {"latency": Clock()},
            "latency= decides only by the criterion \"loss_per_ms\", got 'loss_per_mac'; leave one out",
        ),
        ({"smallest_macs_share": 1.0}, "from 0 to below 1, got 1.0"),
        ({"smallest_macs_share": -0.1}, "from 0 to below 1, got -0.1"),
        ({"smallest_macs_share": 0.99}, "no drop of the ladders leaves 99% of the multiply-adds.*lower"),
        ({"screen": 0}, "screen must be a whole number from 1, got 0; None gives"),
        ({"finalists": None}, "finalists must be a whole number from 1, got None"),
        ({"threshold": 50}, "a threshold and tune= go together"),
        ({"tune": lambda element: None}, "a threshold and tune= go together"),
        ({"threshold": 50, "relative_threshold": 0.5, "tune": print}, "not both; got 50 and 0.5"),
        ({"threshold": 0, "tune": print}, "above 0 and at most 100, got 0"),
        ({"relative_threshold": 1.2, "tune": print}, "above 0 and at most 1, got 1.2"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_scored(
    options: Mapping[str, object], message: str
) -> None:
    scorer = TableScorer(loss_table(0))
    with pytest.raises(InvalidInput, match=message):
        walked(scorer, **options)
    assert scorer.looks == []


def test_a_threshold_above_the_whole_net_costs_one_look_and_is_refused() -> None:
    scorer, kept = TableScorer(lambda config: 0.5), []
    message = "to threshold=70 % top-1: the whole net has 60.65 %; choose a lower one, or relative_threshold="
    with pytest.raises(InvalidInput, match=message):
        walked(scorer, threshold=70, tune=scorer.tune, keep=kept.append)
    assert scorer.looks == [(SPACE.largest(), True)]
    assert kept == []


def test_tables_ladders_and_paths_of_another_space_are_refused() -> None:
    scorer = TableScorer(loss_table(0))
    other = SearchSpace((Knob("layer", (1, 2)),))
    other_costs = CostTable(("layer",), (1,), {("layer",): 1}, {(): 1}, {(): 4}, ({(): 4},))
    with pytest.raises(InvalidInput, match="the same knobs"):
        walk_down(SPACE, other_costs, LADDERS, scorer)
    with pytest.raises(InvalidInput, match="give ladders of this space"):
        walk_down(SPACE, COSTS, ladders(other), scorer)
    path = walked(TableScorer(loss_table(0)))
    with pytest.raises(InvalidInput, match=r"begins with the whole net.*begin anew"):
        walk_down(other, other_costs, ladders(other), scorer, begun=path, smallest_macs_share=0)
    with pytest.raises(InvalidInput, match="begins with the whole net"):
        walked(scorer, begun=path[1:])
    with pytest.raises(InvalidInput, match=f"element 2 .* {path[3].dropped!r} one rung down; go on with"):
        walked(scorer, begun=[*path[:2], path[3]])
    with pytest.raises(InvalidInput, match="go on with the space, ladders and smallest_macs_share"):
        walk_down(SPACE, COSTS, ladders(SPACE, groups=2), scorer, begun=path)
    assert scorer.looks == []


@pytest.mark.parametrize("latency", [0.0, -1.0, math.nan, math.inf, True, None, "3"])
def test_a_latency_that_is_none_is_refused(latency: object) -> None:
    scorer = TableScorer(loss_table(0))
    told = f"positive number of milliseconds, got {latency!r} for {SPACE.largest().key}; mend what is given"
    with pytest.raises(InvalidInput, match=told):
        walked(scorer, criterion="loss_per_ms", latency=lambda config: latency)
    assert scorer.looks == [(SPACE.largest(), True)]


def test_a_path_that_was_begun_without_latencies_is_not_continued_with_them() -> None:
    path = walked(TableScorer(loss_table(0)), criterion="loss_per_mac", screen=None)
    for begun in (path[:1], path[:3]):
        scorer, clock = TableScorer(loss_table(0)), Clock()
        with pytest.raises(InvalidInput, match=r"has no latency of .*; go on with the criterion that it was"):
            walked(scorer, criterion="loss_per_ms", latency=clock, begun=begun)
        assert scorer.looks == clock.timed == []


def test_a_file_of_a_path_from_before_latencies_were_kept_is_read() -> None:
    path = walked(TableScorer(loss_table(5)))
    stored = [
        {key: value for key, value in one.items() if key != "latencies_ms"} for one in path_to_json(path)
    ]
    assert path_from_json(stored) == path


@pytest.mark.parametrize(
    ("loss", "accuracy"), [(math.nan, 50), (math.inf, 50), (1.0, 100.5), (1.0, math.nan)]
)
def test_scores_are_numbers(loss: float, accuracy: float) -> None:
    with pytest.raises(InvalidInput, match="a finite loss and 0 to 100 percent, got"):
        Score(loss, accuracy)


def element(accuracy: float, tuned: bool = False) -> PathElement:
    return PathElement(SPACE.largest(), Score(1.0, accuracy), "stem", 0, tuned)


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ([90, 80, 70], [90, 80, 70]),
        ([90, 80, 85, 70], [90, 85, 70]),
        ([90, 80, 80, 70], [90, 80, 70]),
        ([80, 90, 85], [80, 90, 85]),  # both ends stay
        ([90, 50, 60, 55, 70], [90, 70]),
        ([90], [90]),
        ([], []),
    ],
)
def test_reselection_leaves_out_what_a_smaller_one_equals_or_beats(
    accuracies: list[float], kept: list[float]
) -> None:
    path = [element(accuracy) for accuracy in accuracies]
    chosen = reselect(path)
    assert [e.score.top1_percent for e in chosen] == kept
    brute = [
        e
        for i, e in enumerate(path)
        if i in (0, len(path) - 1) or all(e.score.top1_percent > f.score.top1_percent for f in path[i + 1 :])
    ]
    assert chosen == brute


def test_what_tuning_gave_is_no_merit_of_the_smaller_net() -> None:
    path = [
        element(90),
        element(60),
        element(65),
        element(45),
        element(85, tuned=True),
        element(86),
        element(40),
    ]
    assert [e.score.top1_percent for e in reselect(path)] == [90, 65, 45, 86, 40]


def test_a_path_comes_back_from_json_as_it_was() -> None:
    scorer = TableScorer(loss_table(5))
    path = walked(scorer, relative_threshold=0.9, tune=scorer.tune)
    timed = walked(TableScorer(loss_table(5)), criterion="loss_per_ms", latency=Clock())
    assert any(element.latencies_ms for element in timed)
    for one in (path, timed):
        assert path_from_json(json.loads(json.dumps(path_to_json(one)))) == one


@pytest.mark.parametrize("damage", [None, [1], [{}], {"a": 1}, "score", "increases"])
def test_a_damaged_path_is_refused(damage: object) -> None:
    data: object = damage
    if isinstance(damage, str):
        data = [{**path_to_json([element(50)])[0], "top1_percent": 120.0, "increases": 3}]
    with pytest.raises(InvalidInput):
        path_from_json(data)


def test_a_drop_that_wins_is_the_better_the_more_it_wins_and_saves() -> None:
    assert rate(0.2, 10) < rate(0.1, 4) < rate(0.1, 2) < rate(0.1, 0) == math.inf
    assert rate(-0.2, 10) < rate(-0.1, 10) < rate(-0.1, 2) < rate(0.0, 5) == 0 < rate(1e-9, 1e9)
    assert rate(-0.1, 0) == rate(-0.1, -5) == 0
