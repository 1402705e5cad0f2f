"""Several drivers on one study: claims, leases, silence of the storage, and what a dashboard reads."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig, SubnetSearchError
from subnet_search.record import Evaluation, Images, Journal, Objective, create_run, open_run
from subnet_search.searchers import Budget, search
from subnet_search.searchers.claims import SHARED, Told
from subnet_search.searchers.shared_study import SharedStudy
from subnet_search.searchers.storage import open_storage
from subnet_search.searchers.study_claims import LEASE_S, StudyClaims

ROOT = Path(__file__).parent.parent.parent
SPACE = SearchSpace((Knob("stem", (8, 16, 32)), Knob("block", (0, 1), "depth"), Knob("head", (8, 16, 24))))
OBJECTIVES = (Objective("score_percent", "max"), Objective("macs", "min"))


class Clock:
    """Stands still unless somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Toy:
    """Counts its calls; its values are a function of the config."""

    objectives = OBJECTIVES
    context = "weights1"

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.asked: list[str] = []
        self.meanwhile = meanwhile

    def __call__(self, config: SubnetConfig) -> Evaluation:
        self.asked.append(config.key)
        self.meanwhile()
        return evaluated(config)


def evaluated(config: SubnetConfig) -> Evaluation:
    values = (
        50.0 + config["stem"] + config["head"] / 3,
        config["stem"] * config["head"] * (1 + config["block"]),
    )
    return Evaluation(config, values, spread=(0.5, 0.0))


def config_of(stem: int = 16, head: int = 8) -> SubnetConfig:
    return SPACE.canonical(SubnetConfig({"stem": stem, "block": 1, "head": head}))


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    """In memory, which is quick; as a file where a test asks for that."""
    in_file = getattr(request, "param", False)
    return open_storage(f"sqlite:///{tmp_path}/study.db") if in_file else InMemoryStorage()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(storage: BaseStorage, clock: Clock) -> Callable[..., StudyClaims]:
    def one(driver: str, own: Any = (), objectives: Any = OBJECTIVES, **more: Any) -> StudyClaims:
        options: dict[str, Any] = {"renews": False, "clock_s": clock, "sleep": clock.sleep, **more}
        claims = StudyClaims(options.pop("url", storage), label="toy", driver=driver, **options)
        claims.open(SPACE, objectives, "weights1", own)
        return claims

    return one


Make = Callable[..., StudyClaims]


def trials_of(storage: BaseStorage) -> list[optuna.trial.FrozenTrial]:
    [name] = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


@pytest.mark.parametrize("storage", [False, True], indirect=True)
def test_a_sub_net_is_evaluated_by_who_claims_it_first_and_told_to_the_others(make: Make) -> None:
    first, second, config = make("first"), make("second"), config_of()
    assert first.claim(config) == "mine"
    assert second.claim(config) == "theirs"
    assert second.claim(config_of(head=24)) == "mine"
    first.done(evaluated(config), 2.5)
    assert second.claim(config) == Told(evaluated(config), "first")
    assert make("third").claim(config) == Told(evaluated(config), "first")
    assert second.news() == [Told(evaluated(config), "first")]
    assert second.news() == []
    assert first.news() == []


def test_of_two_claims_at_once_the_lower_number_owns_the_sub_net(
    make: Make, storage: BaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, config = make("first"), make("second"), config_of()
    create = SharedStudy.create
    claimed: list[object] = []

    def create_after_the_other(table: SharedStudy, config: SubnetConfig) -> int:
        monkeypatch.setattr(SharedStudy, "create", create)
        claimed.append(second.claim(config))  # between the other driver's look and its trial
        return create(table, config)

    monkeypatch.setattr(SharedStudy, "create", create_after_the_other)
    claimed.append(first.claim(config))
    assert claimed == ["mine", "theirs"]
    assert [trial.state for trial in trials_of(storage)] == [TrialState.RUNNING, TrialState.FAIL]
    assert trials_of(storage)[1].user_attrs["given_up"] == "another driver was first"


def test_a_lease_that_is_renewed_holds_and_one_that_is_not_is_taken_over(make: Make, clock: Clock) -> None:
    alive, dead, heir = make("alive"), make("dead"), make("heir")
    theirs, left = config_of(head=8), config_of(head=16)
    assert (alive.claim(theirs), dead.claim(left)) == ("mine", "mine")
    for _ in range(5):
        assert (heir.claim(theirs), heir.claim(left)) == ("theirs", "theirs")
        clock.sleep(0.25 * LEASE_S - 1)
        alive.renew()
    assert heir.claim(theirs) == "theirs"
    assert heir.claim(left) == "mine"
    assert make("late").claim(left) == "theirs"
    heir.done(evaluated(left), 1.0)
    dead.done(
        evaluated(left), 99.0
    )  # it was only slow: its journal keeps what the study has from another one
    assert alive.claim(left) == Told(evaluated(left), "heir")
    assert alive.news() == [Told(evaluated(left), "heir")]


def test_a_driver_that_is_started_again_takes_back_its_own_claims_at_once(make: Make) -> None:
    before, other, config = make("first"), make("second"), config_of()
    assert before.claim(config) == "mine"
    again = make("first")
    assert again.claim(config) == "mine"
    assert other.claim(config) == "theirs"
    again.close()
    assert other.claim(config) == "mine"


def test_answers_of_all_kinds_come_back_as_they_were(make: Make, storage: BaseStorage) -> None:
    first, second = make("first"), make("second")
    full, stopped, broken = (config_of(head=head) for head in (8, 16, 24))
    found = [
        Evaluation(full, (61.0, 2.0), images=Images(16, 16, 8, right=b"\x0f\xf0")),
        Evaluation(
            stopped, (50.0, 3.0), "ok", "beaten", "predicted", (2.0, 0.0), Images(4, 16, 8, rival=full.key)
        ),
        Evaluation(broken, (), "failed", "RuntimeError: no memory left"),
    ]
    for evaluation in found:
        assert first.claim(evaluation.config) == "mine"
        first.done(evaluation, 1.5)
    assert [told.evaluation for told in second.news()] == found
    states = [trial.state for trial in trials_of(storage)]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]


def test_what_the_journal_has_and_the_storage_has_not_is_handed_in(make: Make, storage: BaseStorage) -> None:
    make("first", own=[(evaluated(config_of()), 3.0)])
    make("first", own=[(evaluated(config_of()), 3.0)])
    [trial] = trials_of(storage)
    assert trial.user_attrs["answer"]["seconds"] == 3.0
    assert make("second").news() == [Told(evaluated(config_of()), "first")]


@pytest.mark.parametrize("storage", [True], indirect=True)
def test_a_dashboard_reads_parameters_values_states_and_attributes(make: Make, storage: BaseStorage) -> None:
    claims, config = make("here"), config_of(stem=32)
    claims.claim(config)
    claims.claim(config_of())
    claims.done(evaluated(config), 2.0)
    [name] = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert name == claims.study
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["score_percent", "macs"]
    done, running = study.get_trials()
    assert (done.state, running.state) == (TrialState.COMPLETE, TrialState.RUNNING)
    assert done.params == dict(config)
    assert tuple(done.values) == evaluated(config).values
    assert done.user_attrs["key"] == config.key
    assert done.user_attrs["driver"] == "here"
    assert done.user_attrs["answer"]["spread"] == [0.5, 0.0]
    assert running.user_attrs["lease"]["beat"] == 0
    assert [trial.number for trial in study.best_trials] == [done.number]
    assert done.datetime_complete is not None


class Outage:
    """A storage that answers nothing while it is down; and answers one call less than it carries out, if told so."""

    def __init__(self, storage: BaseStorage) -> None:
        self.storage, self.down, self.calls = storage, False, 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        if self.down:
            raise optuna.exceptions.StorageInternalError("connection refused")
        return getattr(self.storage, name)


def test_a_storage_that_is_silent_for_a_moment_is_asked_again(
    make: Make, storage: BaseStorage, clock: Clock
) -> None:
    outage = Outage(storage)

    def wake_up(seconds: float) -> None:
        clock.sleep(seconds)
        outage.down = clock.now_s < 5

    said: list[str] = []
    claims = make("first", url=outage, sleep=wake_up, say=said.append)
    outage.down = True
    assert claims.claim(config_of()) == "mine"
    assert 5 <= clock.now_s < 10
    assert make("second").claim(config_of()) == "theirs"
    assert len(said) == 1


def test_a_driver_goes_on_alone_without_its_storage_and_hands_everything_in_later(
    make: Make, storage: BaseStorage, clock: Clock
) -> None:
    outage, said = Outage(storage), list[str]()
    claims, configs = (
        make("first", url=outage, say=said.append),
        [config_of(head=head) for head in (8, 16, 24)],
    )
    assert claims.claim(configs[0]) == "mine"
    outage.down = True
    claims.done(evaluated(configs[0]), 1.0)
    waited_s, calls = clock.now_s, outage.calls
    assert waited_s < 2 * 60
    for config in configs[1:]:
        assert claims.claim(config) == "mine"
        claims.done(evaluated(config), 1.0)
    assert (clock.now_s, outage.calls) == (waited_s, calls)  # it is not even asked
    assert claims.news() == []
    outage.down = False
    clock.sleep(31)
    claims.news()
    assert make("second").claim(configs[2]) == Told(evaluated(configs[2]), "first")
    assert [trial.state for trial in trials_of(storage)] == [TrialState.COMPLETE] * 3
    assert ["does not answer" in said[1], "answers again" in said[2], len(said)] == [True, True, 3]


def test_a_storage_that_is_gone_when_a_search_begins_is_told_of(storage: BaseStorage, clock: Clock) -> None:
    outage = Outage(storage)
    claims = StudyClaims(outage, renews=False, clock_s=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    outage.down = True
    with pytest.raises(SubnetSearchError, match=r"does not answer \(connection refused\); start its server"):
        go(Toy(), claims)
    assert clock.now_s < 2 * 60


def test_studies_of_other_spaces_objectives_or_weights_are_others(make: Make, storage: BaseStorage) -> None:
    names = {make("a").study, make("a", objectives=OBJECTIVES[:1]).study}
    claims = StudyClaims(storage, label="toy", renews=False)
    claims.open(SPACE, OBJECTIVES, "weights2", ())
    assert len(names | {claims.study}) == 3
    with pytest.raises(InvalidInput, match=r"study '.*' is one of other objectives .* choose another"):
        SharedStudy(storage, claims.study, SPACE, (OBJECTIVES[1], OBJECTIVES[0]), "weights2", "b")


def go(evaluator: Toy, claims: StudyClaims | None, run: Any = None, **more: Any) -> Any:
    options: dict[str, Any] = {"budget": Budget(evaluations=18), "seed": 1, "progress": False, **more}
    return search(SPACE, evaluator, "nsga2", run=run, claims=claims, **options)


def answers(journal: Journal) -> list[dict[str, Any]]:
    return [line for line in journal.lines() if line["kind"] != "ask"]


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)])
def test_two_drivers_pay_for_nothing_twice_and_both_know_everything(
    seeds: tuple[int, int], storage: BaseStorage, tmp_path: Path
) -> None:
    toys = [Toy(), Toy()]
    results: list[Any] = [None, None]

    def drive(place: int) -> None:
        claims = StudyClaims(storage, driver=f"driver {place}", sleep=lambda s: time.sleep(0.01))
        with create_run(tmp_path / str(place), "") as run:
            results[place] = go(toys[place], claims, run, seed=seeds[place])

    threads = [threading.Thread(target=drive, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    paid = Counter(toys[0].asked + toys[1].asked)
    assert set(paid.values()) == {1}
    assert len(paid) == SPACE.size == 18
    for place, result in enumerate(results):
        assert {e.config.key for e in result.evaluations} == set(paid)
        assert set(result.front) == set(results[0].front)
        with open_run(tmp_path / str(place), write=False) as run:
            lines = answers(run.journal)
        assert sorted(line["key"] for line in lines) == sorted(paid)
        assert [line["key"] for line in lines if line["searcher"] != SHARED] == toys[place].asked
        for line in (line for line in lines if line["searcher"] == SHARED):
            assert (line["seconds"], line["source"]) == (0.0, "measured")
            assert line["reason"] == f"evaluated by driver {1 - place}"


def test_the_sub_nets_of_a_dead_driver_are_evaluated_in_the_end(
    make: Make, clock: Clock, storage: BaseStorage
) -> None:
    dead, toy = make("dead"), Toy()
    for config in (config_of(), config_of(head=24)):
        assert dead.claim(config) == "mine"
    heir = StudyClaims(storage, label="toy", clock_s=clock, sleep=clock.sleep, renews=False)
    result = go(toy, heir)
    assert len(toy.asked) == len(result.evaluations) == 18
    assert set(toy.asked[-2:]) == {config_of().key, config_of(head=24).key}
    assert LEASE_S < clock.now_s < LEASE_S + 5


def test_what_others_found_beyond_this_drivers_limits_does_not_count(
    storage: BaseStorage, tmp_path: Path
) -> None:
    costs = CostTable(SPACE.names, (8, 1, 8), {("head", "stem"): 1}, {(): 1}, {(): 4}, ({(): 4},))
    go(Toy(), StudyClaims(storage, driver="free", renews=False))
    toy, limits = Toy(), {"macs": 4}  # in eights of channels
    with create_run(tmp_path / "run", "") as run:
        claims = StudyClaims(storage, driver="bound", renews=False)
        result = go(toy, claims, run, limits=limits, costs=costs)
        assert toy.asked == []
        assert 0 < len(answers(run.journal)) == len(result.evaluations) < 18
    assert all(e.config["head"] * e.config["stem"] <= 4 * 64 for e in result.evaluations)


def test_a_search_that_goes_on_without_the_storage_knows_what_others_found(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    go(Toy(), StudyClaims(storage, driver="other", renews=False), budget=Budget(evaluations=7), seed=3)
    toy = Toy()
    with create_run(tmp_path / "run", "") as run:
        claims = StudyClaims(storage, driver="this", renews=False)
        first = go(toy, claims, run, budget=Budget(evaluations=10))
    with open_run(tmp_path / "run") as run:
        alone = go(toy, None, run, budget=Budget(evaluations=12))
        assert Counter(line["searcher"] == SHARED for line in answers(run.journal)) == {True: 7, False: 5}
    assert {e.config.key for e in first.evaluations} < {e.config.key for e in alone.evaluations}
    assert len(toy.asked) == 5


class Killed(StudyClaims):
    """Of a process that has no time to give anything back."""

    def close(self) -> None:
        pass


@pytest.mark.parametrize("others", [0, 18])
def test_a_driver_that_was_killed_goes_on_and_pays_again_only_for_what_was_under_way(
    others: int, storage: BaseStorage, clock: Clock, tmp_path: Path
) -> None:
    def die() -> None:
        if len(toy.asked) == 6:
            raise KeyboardInterrupt

    toy, other, options = Toy(die), Toy(), {"renews": False, "clock_s": clock, "sleep": clock.sleep}
    with create_run(tmp_path / "run", "") as run, pytest.raises(KeyboardInterrupt):
        go(toy, Killed(storage, driver="this", **options), run)
    if others:
        go(other, StudyClaims(storage, driver="other", **options), budget=Budget(evaluations=others), seed=2)
    with open_run(tmp_path / "run") as run:
        go(toy, StudyClaims(storage, driver="this", **options), run)
        lines = answers(run.journal)
        assert run.journal.pending() == []
    assert len(lines) == len({line["key"] for line in lines}) == 18
    paid = Counter(toy.asked + other.asked)
    assert len(paid) == 18
    assert [key for key, times in paid.items() if times > 1] == [toy.asked[5]]


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_driver_that_dies_while_it_hands_in_an_answer_harms_nobody(
    is_killed: bool, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    first, second, config = make("first"), make("second"), config_of()
    assert first.claim(config) == "mine"
    with monkeypatch.context() as patch:
        patch.setattr(SharedStudy, "_end", die)  # between the trial's attribute and its state
        with pytest.raises(KeyboardInterrupt):
            first.done(evaluated(config), 1.0)
    if not is_killed:
        first.close()
        assert second.claim(config) == "mine"
        second.close()
    make("first", own=[(evaluated(config), 1.0)])
    assert second.claim(config) == Told(evaluated(config), "first")
    assert make("third").news() == [Told(evaluated(config), "first")]


def test_a_driver_that_fails_lets_go_of_its_claims(make: Make) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    claims, other = make("first"), make("second")
    toy = Toy(stop)
    with pytest.raises(KeyboardInterrupt):
        go(toy, claims)
    [key] = toy.asked
    config = next(c for c in map(SubnetConfig, SPACE_CONFIGS) if c.key == key)
    assert other.claim(config) == "mine"


SPACE_CONFIGS = [
    {"stem": stem, "block": block, "head": head}
    for stem in (8, 16, 32)
    for block in (0, 1)
    for head in (8, 16, 24)
]

CHILD = """
import sys, time
from pathlib import Path
from tests.searchers.test_study_claims import Toy, go
from subnet_search.record import create_run
from subnet_search.searchers.study_claims import StudyClaims
url, folder, seed = sys.argv[1:]

def until_both_evaluate():  # however much later the other started
    Path(f"{folder}-evaluates").touch()
    end = time.monotonic() + 150
    while len(list(Path(folder).parent.glob("*-evaluates"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)

toy = Toy(until_both_evaluate)
with create_run(folder, "") as run:
    go(toy, StudyClaims(url, driver=folder), run, seed=int(seed))
print(*toy.asked)
"""


@pytest.fixture(params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A real server of a test's own."""
    kind = importlib.import_module(f"tests.searchers.{request.param}")
    if reason := kind.why_not():
        pytest.skip(reason)
    with kind.Server(tmp_path / "server") as running:
        yield running


def paid_by_two_processes(url: str, folder: Path) -> list[str]:
    """What two drivers in processes of their own evaluated."""
    command = [sys.executable, "-c", CHILD, url]
    drivers = [
        subprocess.Popen(
            [*command, str(folder / str(n)), str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for n in range(2)
    ]
    told = [driver.communicate(timeout=200)[0].split() for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0]
    assert all(told)
    return told[0] + told[1]


@pytest.mark.slow
def test_two_processes_on_a_file_pay_for_nothing_twice(tmp_path: Path) -> None:
    assert set(Counter(paid_by_two_processes(f"sqlite:///{tmp_path}/study.db", tmp_path)).values()) == {1}


@pytest.mark.slow
def test_two_processes_on_a_server_pay_for_nothing_twice(server: Any, tmp_path: Path) -> None:
    paid = Counter(paid_by_two_processes(server.url, tmp_path))
    assert set(paid.values()) == {1}
    assert len(paid) == SPACE.size


@pytest.mark.slow
def test_on_a_server_a_claim_sees_what_others_have_committed_and_attributes_fit(
    server: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    url: dict[str, Any] = {"url": server.url}
    first, second, config = make("first", **url), make("second", **url), config_of()
    create = SharedStudy.create
    claimed: list[object] = []

    def create_after_the_other(table: SharedStudy, config: SubnetConfig) -> int:
        monkeypatch.setattr(SharedStudy, "create", create)
        claimed.append(second.claim(config))
        return create(table, config)

    monkeypatch.setattr(SharedStudy, "create", create_after_the_other)
    claimed.append(first.claim(config))
    assert claimed == ["mine", "theirs"]
    many = Images(10**6, 10**6, right=bytes(125_000))
    long = [
        Evaluation(config_of(head=16), (), "failed", "RuntimeError: " + "\U0001f600é" * 40_000),
        Evaluation(config_of(head=24), (1 / 3, 2e12), images=many),
    ]
    for evaluation in long:
        assert first.claim(evaluation.config) == "mine"
        first.done(evaluation, 1.0)
    failed, full = (second.claim(evaluation.config).evaluation for evaluation in long)  # type: ignore[union-attr]
    assert (failed.status, failed.reason) == ("failed", long[0].reason[: len(failed.reason)])
    assert len(failed.reason) > 1000
    assert (full.values, full.images) == (long[1].values, Images(10**6, 10**6))


@pytest.mark.slow
def test_a_server_that_is_stopped_and_started_again_loses_nothing(server: Any, tmp_path: Path) -> None:
    clock, said = Clock(), list[str]()

    def stop_and_start() -> None:
        if len(toy.asked) == 6:
            server.stop()
        if len(toy.asked) == 12:
            server.start()
            clock.sleep(31)

    toy = Toy(stop_and_start)
    claims = StudyClaims(server.url, driver="this", say=said.append, clock_s=clock, sleep=clock.sleep)
    with create_run(tmp_path / "run", "") as run:
        result = go(toy, claims, run)
        assert len(answers(run.journal)) == len(toy.asked) == len(result.evaluations) == 18
    assert ["does not answer" in line for line in said[1:]] == [True, False]
    other = StudyClaims(server.url, driver="other", renews=False)
    other.open(SPACE, OBJECTIVES, "weights1", ())
    assert {told.evaluation.config.key for told in other.news()} == set(toy.asked)
