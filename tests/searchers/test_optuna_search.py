from __future__ import annotations

import logging
import warnings

import optuna
import pytest

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective, ParetoFront
from subnet_search.searchers import SEARCHERS, OptunaSearcher, make_searcher
from subnet_search.searchers.optuna_search import POPULATION

WIDTHS = tuple(range(1, 9))
SPACE = SearchSpace(tuple(Knob(f"k{i}", WIDTHS) for i in range(6)))
COSTS = CostTable(SPACE.names, (1,) * 6, {(name,): 1 for name in SPACE.names}, {(): 1}, {(): 4}, ({(): 4},))
OBJECTIVES = (Objective("macs", "min"), Objective("score", "max"))


def answer(config: SubnetConfig) -> Evaluation:
    return Evaluation(config, (sum(config.values()), sum(i * v**0.5 for i, v in enumerate(config.values()))))


def drive(searcher: OptunaSearcher, count: int) -> list[SubnetConfig]:
    asked = []
    for _ in range(count):
        asked.append(searcher.ask())
        searcher.tell(answer(asked[-1]))
    return asked


def trials_of(searcher: OptunaSearcher) -> list[optuna.trial.FrozenTrial]:
    return searcher._study.get_trials()


@pytest.mark.parametrize("method", ["nsga2", "nsga3"])
def test_repaired_trials_fill_the_generations_of_nsga(method: str) -> None:
    searcher = OptunaSearcher(method, SPACE, OBJECTIVES, limits={"macs": 15}, costs=COSTS)
    drive(searcher, 70)
    trials = trials_of(searcher)
    generations = [next(v for k, v in t.system_attrs.items() if k.endswith(":generation")) for t in trials]
    assert generations == [number // POPULATION for number in range(len(trials))]
    assert generations[-1] >= 3


@pytest.mark.parametrize("method", ["random", "nsga2", "tpe", "qmc"])
def test_a_trial_holds_the_config_that_was_evaluated_and_its_values(method: str) -> None:
    searcher = OptunaSearcher(method, SPACE, OBJECTIVES, limits={"macs": 15}, costs=COSTS)
    drive(searcher, 30)
    for trial in trials_of(searcher):
        config = SubnetConfig({name: WIDTHS[index] for name, index in trial.params.items()})
        assert tuple(trial.values) == answer(config).values
        assert sum(config.values()) <= 15


def test_a_known_proposal_is_told_its_values_and_asked_again() -> None:
    space = SearchSpace((Knob("a", (1, 2, 3)), Knob("b", (1, 2, 3))))
    searcher = OptunaSearcher("random", space, OBJECTIVES)
    assert len(set(drive(searcher, 9))) == 9
    trials = trials_of(searcher)
    assert len(trials) > 9
    assert all(trial.state.is_finished() for trial in trials)
    values = {tuple(sorted(trial.params.items())): tuple(trial.values) for trial in trials}
    assert all(values[tuple(sorted(t.params.items()))] == tuple(t.values) for t in trials)


def test_failed_evaluations_are_failed_trials() -> None:
    searcher = OptunaSearcher("nsga2", SPACE, OBJECTIVES)
    searcher.tell(Evaluation(searcher.ask(), (), "failed", "no memory"))
    assert [trial.state.name for trial in trials_of(searcher)] == ["FAIL"]


def test_a_subnet_told_from_outside_joins_the_current_generation() -> None:
    searcher = OptunaSearcher("nsga2", SPACE, OBJECTIVES)
    searcher.tell(answer(SPACE.largest()))
    (trial,) = trials_of(searcher)
    assert trial.state.name == "COMPLETE"
    assert set(trial.params.values()) == {7}
    assert any(name.endswith(":generation") for name in trial.system_attrs)


def test_unordered_choices_are_categories() -> None:
    space = SearchSpace((Knob("op", (4, 0, 2), "choice"), Knob("width", (8, 16))))
    searcher = OptunaSearcher("tpe", space, OBJECTIVES)
    assert {config["op"] for config in drive(searcher, 6)} == {0, 2, 4}


@pytest.mark.parametrize("method", ["gp", "nsga3"])
def test_a_replayed_searcher_goes_on_as_if_it_had_been_asked(method: str) -> None:
    unbroken, replayed = (OptunaSearcher(method, SPACE, OBJECTIVES, seed=3) for _ in range(2))
    asked = drive(unbroken, 12)
    for config in asked[:11]:
        assert replayed.replay(config) == config
        replayed.tell(answer(config))
    assert drive(replayed, 1) == asked[11:]


def test_replaying_a_slow_searcher_asks_its_sampler_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = OptunaSearcher("gp", SPACE, OBJECTIVES)
    monkeypatch.delattr(optuna.samplers, "GPSampler")
    for value in range(1, 9):
        config = SPACE.canonical(dict.fromkeys(SPACE.names, value))
        assert searcher.replay(config) == config
        searcher.tell(answer(config))


def test_nsga_beats_chance_on_a_problem_with_structure() -> None:
    def volume(method: str, seed: int) -> float:
        asked = drive(OptunaSearcher(method, SPACE, OBJECTIVES, seed=seed), 100)
        return ParetoFront.of(OBJECTIVES, map(answer, asked)).hypervolume({"macs": 48, "score": 0})

    for seed in range(3):
        assert volume("nsga2", seed) > volume("random", seed)


def test_optuna_is_quiet_and_its_settings_are_left_alone(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in SEARCHERS:
            searcher = make_searcher(name, SPACE, OBJECTIVES)
            searcher.tell(answer(searcher.ask()))
    assert optuna.logging.get_verbosity() == logging.INFO
    assert list(warnings.filters) == before
    assert capfd.readouterr().err == ""
    assert not caplog.records


def test_an_unknown_searcher_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        InvalidInput, match=r"one of guided, random, nsga2, .* got 'nsga'; did you mean 'nsga"
    ):
        make_searcher("nsga", SPACE, OBJECTIVES)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    with pytest.raises(InvalidInput, match="the seed of a search must be"):
        make_searcher("random", SPACE, OBJECTIVES, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["nsga2", "nsga3", "tpe", "qmc"])
def test_remembering_which_knobs_trials_share_changes_no_proposal(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = SearchSpace(
        (*(Knob(f"k{n}", (8, 16, 24, 32)) for n in range(6)), Knob("op", (0, 1, 2), "choice"))
    )
    objectives = (Objective("score", "max"), Objective("size", "min"))

    def proposals() -> list[SubnetConfig]:
        searcher, asked = OptunaSearcher(method, space, objectives, seed=5), []
        for number in range(50):
            asked.append(searcher.ask())
            size = float(sum(asked[-1].values()))
            if number % 7 == 3:
                searcher.tell(Evaluation(asked[-1], (), "failed", "no memory"))
            elif number % 5 != 4:  # else it stays under way
                searcher.tell(Evaluation(asked[-1], (size % 37, size)))
        return asked

    remembered = proposals()
    monkeypatch.setattr(OptunaSearcher, "_shared", lambda self, infer, study, trial: infer(study, trial))
    assert proposals() == remembered
