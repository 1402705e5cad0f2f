from __future__ import annotations

import copy
import functools
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces import InvalidInput, SubnetConfig
from subnet_search import create_run, noise_levels, path_tuning, paths, predicted_increase, train
from subnet_search.data import Splits
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure.latency import LatencyMeter
from subnet_search.measure.timing import Protocol
from subnet_search.path_files import PATH, is_walked, load_path, read_path, store_path
from subnet_search.paths import find_path, foresee_path, progressive_search
from subnet_search.record import Run
from subnet_search.searchers.path import PathElement
from subnet_search.settings import ProgressiveSettings, TrainSettings
from tests.small import small_splits, small_supernet

pytestmark = pytest.mark.slow

QUICK = ProgressiveSettings(
    calibration_images=24, first_images=12, final_images=30, smallest_macs_share=0.3, device="cpu"
)
TUNED = QUICK.model_copy(update={"relative_threshold": 0.99, "tune_steps": 30})
TIMED = QUICK.model_copy(update={"criterion": "loss_per_ms", "smallest_macs_share": 0.5})


@functools.cache
def trained_once() -> Supernet:
    supernet = small_supernet()
    train(supernet, small_splits(), settings=TrainSettings(epochs=4, lr=0.05, device="cpu"))
    return supernet


def trained() -> Supernet:
    return copy.deepcopy(trained_once())


def weights(supernet: Supernet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in supernet.model.state_dict().items()}


class Killed(BaseException):
    pass


class Clock:
    """Milliseconds that differ at every call, as measured ones do; notes what was timed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.timed = seed, list[SubnetConfig]()

    def __call__(self, config: SubnetConfig) -> float:
        self.timed.append(config)
        chance = zlib.crc32(f"{self.seed} {len(self.timed)} {config.key}".encode()) / 2**32
        return sum(config.values()) * (1 + 0.02 * chance)


def killed_after(
    supernet: Supernet, run: Run, settings: ProgressiveSettings, writes: int, **more: Any
) -> None:
    """Walks until path.json was written so many times, and dies at the next write of any file."""
    write_json, write, left = run.write_json, run.write, [writes]

    def counted(name: str, data: object) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= name == PATH
        write_json(name, data)

    def refused(name: str, data: bytes) -> None:
        if left[0] == 0:
            raise Killed
        write(name, data)

    run.write_json, run.write = counted, refused  # type: ignore[method-assign]
    try:
        find_path(supernet, small_splits(), settings, run, **more)
    except Killed:
        pass
    finally:
        del run.write_json, run.write


def test_a_path_is_nested_from_the_whole_net_down_to_the_floor() -> None:
    supernet = trained()
    before = weights(supernet)
    path = progressive_search(supernet, small_splits(), QUICK)
    rows = supernet.space.encode(path)
    macs, active = supernet.costs.macs(rows), supernet.space.active_rows(rows)
    assert path[0] == supernet.space.largest()
    assert (macs[1:] < macs[:-1]).all()
    assert macs[-1] >= 0.3 * macs[0]
    assert ((rows[1:] <= rows[:-1]) | ~active[1:]).all()  # a knob inside a skipped block means nothing
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(supernet).items())


def walked(folder: Path, settings: ProgressiveSettings) -> tuple[list[PathElement], dict[str, torch.Tensor]]:
    supernet = trained()
    with create_run(folder, "") as run:
        return find_path(supernet, small_splits(), settings, run), weights(supernet)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(QUICK, id="plain", marks=pytest.mark.slow),
        pytest.param(TUNED, id="tuned", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_step_it_comes_to_the_same_path(tmp_path: Path, settings: ProgressiveSettings) -> None:
    settings = settings.model_copy(update={"smallest_macs_share": 0.5})
    unbroken, left = walked(tmp_path / "unbroken", settings)
    assert any(element.tuned for element in unbroken) == (settings.relative_threshold is not None)
    for writes in range(len(unbroken)):
        folder = tmp_path / str(writes)
        with create_run(folder, "") as run:
            killed_after(trained(), run, settings, writes)
            supernet = trained()
            resumed = find_path(supernet, small_splits(), settings, run)
        assert [e.config for e in resumed] == [e.config for e in unbroken]
        assert [(e.score, e.dropped, e.tuned, e.increases) for e in resumed] == [
            (e.score, e.dropped, e.tuned, e.increases) for e in unbroken
        ]
        assert all(torch.equal(tensor, left[name]) for name, tensor in weights(supernet).items())


def test_steps_that_were_timed_before_a_kill_are_not_timed_again(tmp_path: Path) -> None:
    for writes in (2, 3, 5):
        first, second = Clock(), Clock(seed=1)
        with create_run(tmp_path / str(writes), "") as run:
            killed_after(trained(), run, TIMED, writes, latency=first)
            before = read_path(run)
            path = find_path(trained(), small_splits(), TIMED, run, latency=second)
            assert read_path(run) == path
        assert path[: writes - 1] == before
        kept = first.timed[: -TIMED.finalists]  # the step that was cut off is done again
        assert kept
        assert not set(kept) & set(second.timed)
        assert len(second.timed) == len(set(second.timed))
        assert all(element.latencies_ms[element.dropped] > 0 for element in path)


def test_without_a_latency_subnets_are_timed_here_in_the_milliseconds_of_the_first_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = Protocol(least_rounds=2, most_rounds=2, warmup=1, turn_ms=0.01)
    monkeypatch.setattr(paths, "BETWEEN_NEIGHBOURS", brief)
    units: list[float] = []
    call = LatencyMeter.__call__

    def noted(self: LatencyMeter, *args: Any) -> Any:
        units.append(self.reference.median_ms)
        return call(self, *args)

    monkeypatch.setattr(LatencyMeter, "__call__", noted)
    with create_run(tmp_path / "run", "") as run:
        killed_after(trained(), run, TIMED, 2)
        [whole, *_] = read_path(run)
        path = find_path(trained(), small_splits(), TIMED, run)
        assert path[0] == whole
        assert set(units) == {whole.latencies_ms[""]}
        assert path[-1].latencies_ms
        stored = run.read_json(PATH)
        assert stored["timing"]["reference"]["median_ms"] == whole.latencies_ms[""]
        elsewhere = {**stored["timing"], "profile": {**stored["timing"]["profile"], "processor": "another"}}
        run.write_json(PATH, {**stored, "timing": elsewhere})
        assert find_path(trained(), small_splits(), TIMED, run) == path  # what is over needs no clock
        run.write_json(PATH, {**stored, "timing": elsewhere, "complete": False})
        with pytest.raises(InvalidInput, match=r"latencies in .*path.json were measured .* another machine"):
            find_path(trained(), small_splits(), TIMED, run)


def test_a_device_that_is_not_there_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidInput, match='device "cuda" is not there'):
        find_path(trained(), small_splits(), TIMED.model_copy(update={"device": "cuda"}))
    with pytest.raises(InvalidInput, match="latency= decides only by the criterion"):
        progressive_search(trained(), small_splits(), QUICK, latency=Clock())


def test_tuning_stops_once_the_accuracy_is_back_and_costs_images() -> None:
    supernet = trained()
    path = find_path(supernet, small_splits(), TUNED)
    least = 0.99 * path[0].score.top1_percent
    spent = [b.images - a.images for a, b in itertools.pairwise(path)]
    for element, images in zip(path[1:], spent, strict=True):
        if element.tuned:
            assert images >= 25 * 16  # one round at least
    assert all(e.tuned or e.score.top1_percent >= least for e in path)


def test_a_walk_is_over_when_its_file_says_so_and_is_not_walked_again(tmp_path: Path) -> None:
    supernet = trained()
    with create_run(tmp_path / "run", "") as run:
        assert not is_walked(run)
        killed_after(trained(), run, TUNED, 3)
        assert not is_walked(run)
        path = find_path(supernet, small_splits(), TUNED, run)
        assert is_walked(run)
        assert read_path(run) == path
        seen = trained()
        assert load_path(run, seen, TUNED) == path
        assert all(torch.equal(tensor, weights(supernet)[name]) for name, tensor in weights(seen).items())
        nothing = Splits(train=[], search_val=[], test=[])
        assert find_path(trained(), nothing, TUNED, run) == path  # nothing is read
        for name in [name for name in run.names() if name.startswith("path-weights")]:
            run.delete(name)
        assert not is_walked(run)
        again = find_path(trained(), small_splits(), TUNED, run)
        assert [e.config for e in again] == [e.config for e in path]


def test_what_a_walk_takes_is_foreseen_without_a_look(tmp_path: Path) -> None:
    supernet = trained()
    for change in (
        {},
        {"screen": 0},
        {"groups": 2, "floor": 0.5},
        {"criterion": "accuracy"},
        {"criterion": "loss_per_ms"},
    ):
        settings = QUICK.model_copy(update=change)
        path, first, final = foresee_path(supernet.space, supernet.costs, settings)
        clock = Clock() if settings.criterion == "loss_per_ms" else None
        found = find_path(supernet, small_splits(), settings, latency=clock)
        assert clock is None or final / 2 < len(clock.timed) < 2 * final
        spent = first * (24 + 12) + final * (24 + 30)
        assert len(found) / 2 < len(path) < 2 * len(found)
        assert found[-1].images / 2 < spent < 2 * found[-1].images
    with pytest.raises(InvalidInput, match="3 equal groups"):
        foresee_path(supernet.space, supernet.costs, QUICK.model_copy(update={"groups": 3}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"groups": 3}, "3 equal groups"),
        ({"groups": 4, "floor": 0.1}, "at least one of its 4 groups"),
        ({"groups": 4, "step": 2}, "not both"),
        ({"threshold": 99.9}, "can be tuned to threshold"),
        ({"threshold": 50.0, "relative_threshold": 0.5}, "not both"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        find_path(trained(), small_splits(), QUICK.model_copy(update=change))


def test_a_path_of_other_weights_or_settings_is_not_continued(tmp_path: Path) -> None:
    supernet = trained()
    with create_run(tmp_path / "run", "") as run:
        find_path(supernet, small_splits(), QUICK, run)
        with pytest.raises(InvalidInput, match="other weights or settings"):
            find_path(supernet, small_splits(), QUICK.model_copy(update={"finalists": 1}), run)
        with torch.no_grad():
            next(supernet.model.parameters()).add_(1e-3)
        with pytest.raises(InvalidInput, match="other weights or settings"):
            find_path(supernet, small_splits(), QUICK, run)


def predictions(supernet: Supernet) -> dict[str, Callable[[SubnetConfig], float]]:
    """By noise levels that were learned for more and for fewer steps."""
    images = list(small_splits().search_val)
    found = {str(steps): noise_levels(supernet, images, steps=steps) for steps in (4, 6)}
    return {
        name: lambda config, levels=levels: predicted_increase(levels, supernet, config)
        for name, levels in found.items()
    }


def test_a_path_of_another_prediction_is_not_continued(tmp_path: Path) -> None:
    supernet = trained()
    by = predictions(supernet)
    with create_run(tmp_path / "run", "") as run:
        killed_after(supernet, run, QUICK, 2, predict=by["4"])
        for other in (by["6"], None):
            with pytest.raises(
                InvalidInput, match="other weights or settings, those of its ranking included"
            ):
                find_path(supernet, small_splits(), QUICK, run, predict=other)
        a_little_off = lambda config: by["4"](config) * (1 + 1e-12)  # noqa: E731
        path = find_path(supernet, small_splits(), QUICK, run, predict=a_little_off)  # another machine's sum
        assert load_path(run, supernet, QUICK, by["4"]) == path
        with pytest.raises(InvalidInput, match="those of its ranking included"):
            load_path(run, supernet, QUICK)
        store_path(run, supernet, QUICK, path, by["6"])
        assert load_path(run, supernet, QUICK, by["6"]) == path


def test_a_threshold_that_no_tuning_reaches_costs_one_look_and_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(*args: object) -> None:
        raise AssertionError("trained all the same")

    monkeypatch.setattr(path_tuning, "train", spent)
    supernet = trained()
    before, looks = weights(supernet), list[SubnetConfig]()
    look = paths.SharedScorer.__call__

    def noted(self: Any, config: SubnetConfig, final: bool) -> Any:
        looks.append(config)
        return look(self, config, final)

    monkeypatch.setattr(paths.SharedScorer, "__call__", noted)
    settings = QUICK.model_copy(update={"threshold": 99.9})
    with create_run(tmp_path / "run", "") as run:
        with pytest.raises(
            InvalidInput, match=r"threshold=99.9 % top-1: the whole net has .*; choose a lower"
        ):
            find_path(supernet, small_splits(), settings, run)
        assert not run.has(PATH)
    assert looks == [supernet.space.largest()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(supernet).items())
