from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore

from search_spaces import InvalidInput
from subnet_search import ranks
from subnet_search.record import create_run
from subnet_search.training import orders
from subnet_search.training.distributed import World
from subnet_search.training.orders import Orders, leading, together


def follower(store: HashStore, taken: list[object]) -> threading.Thread:
    """Another rank, which looks at each run folder and trains nowhere."""

    def work() -> None:
        mine = Orders(store, World(1, 2))
        while order := mine.take():
            try:
                ranks._workbench(order)
                mine.answer()
            except InvalidInput as error:
                mine.answer(str(error))
            taken.append(order["stage"])
        taken.append("end")

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def order(folder: Path, settings: str) -> dict[str, object]:
    return {"stage": "train", "folder": str(folder), "settings": settings, "amount": 1}


SETTINGS = 'name = "r"\n[model]\nname = "subnet_search.small_models:digits_cnn"\n'


def test_ranks_are_called_to_trainings_that_they_can_see_and_let_go_in_the_end(tmp_path: Path) -> None:
    create_run(tmp_path / "run", SETTINGS).close()
    store, taken = HashStore(), list[object]()
    thread = follower(store, taken)
    with leading(Orders(store, World(0, 2))):
        with together(order(tmp_path / "run", SETTINGS)):
            pass
        refuse_gone = pytest.raises(
            InvalidInput, match=r"rank 1 .* does not see the run folder .*/gone; keep"
        )
        with refuse_gone, together(order(tmp_path / "gone", SETTINGS)):
            raise AssertionError("not trained")
        refuse_other = pytest.raises(InvalidInput, match="another run there, with other settings")
        with refuse_other, together(order(tmp_path / "run", SETTINGS + "seed = 1\n")):
            raise AssertionError("not trained")
    thread.join(20)
    assert taken == ["train"] * 3 + ["end"]


def test_a_rank_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(orders, "ANSWER_S", 0.0)
    monkeypatch.setattr(orders, "timedelta", lambda seconds: timedelta(milliseconds=1))
    with (
        leading(Orders(HashStore(), World(0, 2))),
        pytest.raises(InvalidInput, match="rank 1 has not answered"),
        together(order(tmp_path, "")),
    ):
        raise AssertionError("not trained")


def test_without_other_ranks_nothing_is_told() -> None:
    with together({"stage": "train"}):
        pass
