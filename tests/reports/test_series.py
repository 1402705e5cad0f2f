from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reports.reading import read_run
from reports.series import hypervolume_view, pareto_view, path_view, planes, rerank_view, slice_view
from reports.view import RunView, Seen
from reports.widths import forward_order, width_map
from search_spaces import InvalidInput, SubnetConfig
from subnet_search.record.objective import Objective
from tests.reports.synthetic import DROPS, accuracy, resnet20


def run_of(values: list[tuple[int, int]], searchers: list[str], **changes: object) -> RunView:
    """A run with a cost to be low and a gain to be high, and nothing else."""
    seen = tuple(
        Seen(str(n), SubnetConfig({"knob": n}), searcher, {"cost": cost, "gain": gain})
        for n, ((cost, gain), searcher) in enumerate(zip(values, searchers, strict=True))
    )
    objectives = (Objective("cost", "min"), Objective("gain", "max"))
    empty = {"settings_toml": "", "settings": {}, "space": None, "costs": None}
    parts = {"coverage": {}, "device": {}, "splits": {}, "objectives": objectives, "seen": seen}
    return RunView(name="made up", **(empty | parts | changes))  # type: ignore[arg-type]


def random_run(seed: int, n: int = 24) -> RunView:
    rng = np.random.default_rng(seed)
    values = [(int(cost), int(gain)) for cost, gain in rng.integers(1, 12, (n, 2))]
    return run_of(values, ["random"] * (n // 3) + ["nsga2"] * (n - n // 3))


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_other_point_beats(seed: int) -> None:
    run = random_run(seed)
    points = {(s.values["cost"], s.values["gain"]) for s in run.seen}
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] >= p[1]}
    view = pareto_view(run, "cost", "gain")
    assert {(p.x, p.y) for p in view.front} == points - beaten
    assert [p.x for p in view.front] == sorted(p.x for p in view.front)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("x", "y"), [("cost", "gain"), ("gain", "cost")])
def test_no_point_lies_beyond_the_staircase(seed: int, x: str, y: str) -> None:
    view = pareto_view(random_run(seed), x, y)
    better = max if y == "gain" else min
    for point in view.points():
        if view.step == "post":
            reached = [p.y for p in view.front if p.x <= point.x]
        else:
            reached = [p.y for p in view.front if p.x >= point.x]
        assert better(*reached, reached[0]) == better(*reached, point.y)


def test_uniform_and_random_are_baselines_beside_a_searcher(view: RunView) -> None:
    series = {s.searcher: (s.baseline, len(s.points)) for s in pareto_view(view).series}
    assert series == {"uniform": (True, 7), "random": (True, 12), "nsga2": (False, 41)}


def test_random_search_alone_is_no_baseline() -> None:
    run = run_of([(1, 1), (2, 2)], ["random"] * 2)
    assert [s.baseline for s in pareto_view(run, "cost", "gain").series] == [False]


def test_the_line_stays_within_the_recorded_front() -> None:
    run = run_of([(1, 1), (2, 5), (3, 9)], ["random"] * 3, front=("1", "2"))
    assert [p.key for p in pareto_view(run, "cost", "gain").front] == ["1", "2"]


def test_chosen_subnets_stand_at_their_cost_before_and_after(view: RunView) -> None:
    for tuned, chosen in zip(pareto_view(view).chosen, view.chosen, strict=True):
        assert tuned.before == (chosen.costs["macs"], chosen.before["top1_percent"], chosen.key)
        assert tuned.after == (chosen.costs["macs"], chosen.after["top1_percent"], chosen.key)


def test_costs_that_are_no_objective_can_be_an_axis(view: RunView) -> None:
    shown = pareto_view(view, x="weight_bytes")
    assert {p.x for s in shown.series for p in s.points} == {
        4.0 * (s.values["params"] - 10) + 40 for s in view.seen
    }


def cells(values: list[tuple[float, float]], worst_cost: int) -> int:
    """Unit squares between the axes that some point dominates: hypervolume by counting."""
    return sum(
        any(cost <= x and gain >= y + 1 for cost, gain in values)
        for x in range(worst_cost)
        for y in range(12)
    )


@pytest.mark.parametrize("seed", range(3))
def test_growth_is_the_share_of_dominated_cells(seed: int) -> None:
    run = replace(random_run(seed), reference={"cost": 12, "gain": 0})
    view = hypervolume_view(run, checkpoints=100)
    ideal = (min(s.values["cost"] for s in run.seen), max(s.values["gain"] for s in run.seen))
    assert view.ideal == {"cost": ideal[0], "gain": ideal[1]}
    for growth in view.growth:
        mine = [(s.values["cost"], s.values["gain"]) for s in run.seen if s.searcher == growth.searcher]
        assert growth.evaluations == tuple(range(1, len(mine) + 1))
        expected = [100 * cells(mine[:n], 12) / ((12 - ideal[0]) * ideal[1]) for n in growth.evaluations]
        assert growth.percent == pytest.approx(expected)


def test_searchers_are_compared_at_the_same_number_of_evaluations(view: RunView) -> None:
    shown = hypervolume_view(view, checkpoints=5)
    assert shown.equal == 12
    assert set(shown.percent_at_equal) == {"random", "nsga2"}
    nsga2 = next(growth for growth in shown.growth if growth.searcher == "nsga2")
    assert shown.percent_at_equal["nsga2"] == nsga2.percent[nsga2.evaluations.index(12)]


def test_growth_never_falls_and_ends_with_all_evaluations(view: RunView) -> None:
    for growth in hypervolume_view(view).growth:
        assert list(growth.percent) == sorted(growth.percent)
        assert growth.evaluations[-1] == sum(s.searcher == growth.searcher for s in view.seen)


def test_one_evaluation_has_no_growth() -> None:
    with pytest.raises(InvalidInput, match="two evaluations or more, run 'made up' has 1"):
        hypervolume_view(run_of([(1, 1)], ["random"]))


def test_equal_evaluations_have_no_growth() -> None:
    with pytest.raises(InvalidInput, match="all equal in one objective"):
        hypervolume_view(run_of([(1, 1), (1, 2)], ["random"] * 2))


def test_the_map_shows_what_the_config_keeps_and_skips(view: RunView) -> None:
    _, _, coverage = resnet20()
    for chosen in view.chosen:
        bars = {bar.path: bar for bar in width_map(coverage, chosen)}
        assert len(bars) == 19
        for path, bar in bars.items():
            block = path.rpartition(".")[0]
            assert bar.skipped == (chosen.config.get(block) == 0)
            assert bar.kept == (0 if bar.skipped else chosen.config[bar.knob])


def test_layers_come_in_forward_order() -> None:
    _, _, coverage = resnet20()
    expected = ["conv1"] + [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(3) for c in (1, 2)]
    assert forward_order([group["writers"] for group in coverage["groups"]]) == expected


def test_numbers_in_paths_are_compared_as_numbers() -> None:
    assert forward_order([["stem", "block.2", "block.10"], ["block.9"]]) == [
        "stem",
        "block.2",
        "block.9",
        "block.10",
    ]


def test_chains_that_contradict_each_other_lose_no_layer() -> None:
    assert sorted(forward_order([["a", "b"], ["b", "a"], ["c"]])) == ["a", "b", "c"]


def goals(**names: str) -> tuple[Objective, ...]:
    return tuple(Objective(name, "max" if goal == "max" else "min") for name, goal in names.items())


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (goals(top1_percent="max", macs="min"), [("macs", "top1_percent")]),
        (goals(latency_ms="min", top1_percent="max"), [("latency_ms", "top1_percent")]),
        (
            goals(top1_percent="max", params="min", macs="min", latency_ms="min"),
            [("macs", "top1_percent"), ("params", "top1_percent"), ("latency_ms", "top1_percent")],
        ),
        (
            goals(top1_percent="max", latency_ms="min", recall="max"),
            [("latency_ms", "top1_percent"), ("latency_ms", "recall")],
        ),
        (goals(error="min", macs="min"), [("macs", "error")]),
        (goals(error="min", cost="min"), [("cost", "error")]),
        (goals(top1_percent="max"), [("macs", "top1_percent")]),
        ((), [("macs", "top1_percent")]),
    ],
)
def test_every_objective_has_its_figure(
    objectives: tuple[Objective, ...], expected: list[tuple[str, str]]
) -> None:
    assert planes(run_of([], [], objectives=objectives)) == expected


def test_steps_lead_along_the_line_and_the_knee_is_on_it(view: RunView) -> None:
    shown = pareto_view(view)
    assert shown.knee is not None
    assert shown.knee.member.config.key in {point.key for point in shown.front[1:-1]}
    ends = [(first.key, second.key) for first, second in itertools.pairwise(shown.front)]
    assert [(s.cheaper.config.key, s.dearer.config.key) for s in shown.steps] == ends


def test_a_spread_is_shown_where_one_was_measured(measured: Path, view: RunView) -> None:
    run = read_run(measured)
    assert pareto_view(run, "latency_ms").spread == {s.key: (0.04, 0.0) for s in run.seen}
    assert pareto_view(run).spread == pareto_view(view).spread == {}


def test_a_chosen_subnet_stands_at_its_latency_before_and_after(measured: Path) -> None:
    run = read_run(measured)
    for tuned, chosen in zip(pareto_view(run, "latency_ms").chosen, run.chosen, strict=True):
        latency_ms = chosen.searched["latency_ms"]
        assert tuned.before == (latency_ms, chosen.before["top1_percent"], chosen.key)
        assert tuned.after == (latency_ms, chosen.after["top1_percent"], chosen.key)


def test_what_tuning_changes_has_no_value_after_it_unless_measured_again(view: RunView) -> None:
    chosen = tuple(replace(c, after={}) for c in view.chosen)
    shown = pareto_view(replace(view, chosen=chosen))
    assert [tuned.after for tuned in shown.chosen] == [None] * 3


def test_the_order_after_tuning_has_labels_places_and_who_is_beaten(view: RunView) -> None:
    accuracies = {"A": 90.0, "B": 89.0, "C": 91.0}
    chosen = tuple(replace(c, after={"top1_percent": accuracies[c.label]}) for c in view.chosen)
    shown = rerank_view(replace(view, chosen=chosen))
    assert [(one.label, one.place, one.after) for one in shown.placed] == [
        ("C", 1, 91.0),
        ("A", 2, 90.0),
        ("B", 3, 89.0),
    ]
    costs = {c.label: (c.costs["macs"], c.costs["params"]) for c in chosen}
    beaten = [other for other in "AC" if all(a <= b for a, b in zip(costs[other], costs["B"], strict=True))]
    assert [one.beaten_by for one in shown.placed] == [(), (), tuple(beaten)]
    assert shown.agreement.count == 3


def test_one_tuned_subnet_has_no_order(view: RunView) -> None:
    with pytest.raises(InvalidInput, match="two tuned sub-nets or more, run 'finished' has 1"):
        rerank_view(replace(view, chosen=view.chosen[:1]))


def test_slice_curves_come_best_first_and_the_control_last(view: RunView) -> None:
    shown = slice_view(view)
    assert [curve.ranker for curve in shown.curves] == ["taylor", "noise", "random"]
    assert (shown.width_percent, shown.macs_percent) == ((25, 50, 75), pytest.approx((8, 27, 58)))
    assert shown.curves[1].mean == pytest.approx((31.0 + 62.5 + 88.0) / 3)
    assert (shown.taken, shown.images) == ("taylor", 359)
    better = {**view.ranking["curve"]["top1_percent"], "random": [99.0, 99.0, 99.0]}
    changed = {**view.ranking, "curve": {**view.ranking["curve"], "top1_percent": better}}
    assert slice_view(replace(view, ranking=changed)).curves[-1].ranker == "random"


def test_what_was_not_compared_has_no_slice_curves(view: RunView) -> None:
    with pytest.raises(InvalidInput, match="run 'finished' was ranked by l1 alone"):
        slice_view(replace(view, ranking={"ranker": "l1"}))
    with pytest.raises(InvalidInput, match="no ranking yet"):
        slice_view(replace(view, ranking={}))


def test_a_path_has_its_drops_shares_and_both_accuracies(walked: Path) -> None:
    run = read_run(walked)
    shown = path_view(run)
    assert [step.dropped for step in shown.steps] == ["", *DROPS]
    assert [step.kept for step in shown.steps] == [None, (64, 56), (1, 0), (56, 48), (32, 28)]
    space, costs, _ = resnet20()
    macs = [int(costs.macs(space.encode([element.config]))[0]) for element in run.path]
    assert [s.macs_percent for s in shown.steps] == pytest.approx([100 * one / macs[0] for one in macs])
    assert [s.walked for s in shown.steps] == [
        pytest.approx(0.9 * accuracy(space, element.config), abs=0.01) for element in run.path
    ]
    after = [accuracy(space, element.config) for element in run.path[:3]]
    assert [s.evaluated for s in shown.steps] == [*after, None, None]
    assert [s.tuned for s in shown.steps] == [False, False, True, False, False]
    assert (shown.complete, shown.joined, shown.spent_images, shown.images) == (True, True, 5000, None)


def test_who_evaluated_a_subnet_of_the_path_makes_no_difference(walked: Path) -> None:
    run = read_run(walked)
    others = tuple(replace(seen, searcher="nsga2") for seen in run.seen)
    assert path_view(replace(run, seen=others)) == path_view(run)


@pytest.mark.parametrize(("given", "known"), [(600, 359), (100, 100)])
def test_a_walk_looks_at_no_more_images_than_there_are(walked: Path, given: int, known: int) -> None:
    run = read_run(walked)
    settings = {**run.settings, "progressive": {"final_images": given}}
    assert path_view(replace(run, settings=settings)).images == known


def test_a_path_that_cannot_be_shown_is_refused(view: RunView, walked: Path) -> None:
    run = read_run(walked)
    with pytest.raises(InvalidInput, match="run 'finished' has walked no path"):
        path_view(view)
    with pytest.raises(InvalidInput, match="not the space and the costs"):
        path_view(replace(run, costs=None))
    strange = replace(run.path[0], config=SubnetConfig({"other": 1}))
    with pytest.raises(InvalidInput, match="other"):
        path_view(replace(run, path=(*run.path, strange)))
    with pytest.raises(InvalidInput, match=r"drops \['other'\], which its space does not have"):
        path_view(replace(run, path=(run.path[0], replace(run.path[1], dropped="other"))))
