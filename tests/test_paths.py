from __future__ import annotations

import copy
import functools
import itertools
from pathlib import Path

import pytest
import torch

from search_spaces import InvalidInput
from subnet_search import create_run, train
from subnet_search.data import Splits
from subnet_search.elastic.supernet import Supernet
from subnet_search.paths import (
    PATH,
    find_path,
    foresee_path,
    is_walked,
    load_path,
    progressive_search,
    read_path,
)
from subnet_search.record import Run
from subnet_search.searchers.path import PathElement
from subnet_search.settings import ProgressiveSettings, TrainSettings
from tests.small import small_splits, small_supernet

QUICK = ProgressiveSettings(
    calibration_images=24, first_images=12, final_images=30, smallest_macs_share=0.3, device="cpu"
)
TUNED = QUICK.model_copy(update={"relative_threshold": 0.99, "tune_steps": 30})


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


def killed_after(supernet: Supernet, run: Run, settings: ProgressiveSettings, writes: int) -> None:
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
        find_path(supernet, small_splits(), settings, run)
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


@pytest.mark.parametrize("settings", [QUICK, TUNED], ids=["plain", "tuned"])
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
    for change in ({}, {"screen": 0}, {"groups": 2, "floor": 0.5}, {"criterion": "accuracy"}):
        settings = QUICK.model_copy(update=change)
        path, first, final = foresee_path(supernet.space, supernet.costs, settings)
        found = find_path(supernet, small_splits(), settings)
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
