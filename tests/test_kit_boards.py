"""What a run knows of boards: kept, learnt from, and an objective of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search_spaces import CostTable, InvalidInput, Knob, SearchSpace, SubnetConfig
from search_spaces.files import config_to_json, costs_to_json, space_to_json
from subnet_search import kit_boards
from subnet_search.kit_boards import (
    PREDICTED,
    board_predictor,
    import_results,
    keep_for_search,
    latency_in_search,
    predicted_latency,
)
from subnet_search.record import Run, create_run

SPACE = SearchSpace(tuple(Knob(f"width{i}", (8, 16, 24, 32)) for i in range(4)))
MACS = {(f"width{i}", f"width{i + 1}"): 1000 * (i + 1) for i in range(3)}
COSTS = CostTable(SPACE.names, (1,) * 4, MACS, {(): 1}, {(): 4}, ({(): 4},))
CONFIGS = list(dict.fromkeys(SPACE.sample(np.random.default_rng(0), 60)))


def kit(configs: list[SubnetConfig], checksum: str = "one") -> dict[str, Any]:
    macs = COSTS.macs(SPACE.encode(configs))
    nets = [
        {"net": f"n{i:02d}", "key": c.key, "config": config_to_json(c), "macs": int(m), "files": {}}
        for i, (c, m) in enumerate(zip(configs, macs, strict=True))
    ]
    return {"checksum": checksum, "formats": ["onnx"], "nets": nets}


def ms_of(configs: list[SubnetConfig]) -> np.ndarray:
    return np.asarray(1 + COSTS.macs(SPACE.encode(configs)) / 1e6)


def table(folder: Path, configs: list[SubnetConfig], ms: np.ndarray) -> Path:
    lines = [f"n{i:02d},{value}" for i, value in enumerate(ms[: len(configs)])]
    (folder / "results.csv").write_text("net,latency_ms\n" + "\n".join(lines) + "\n")
    return folder / "results.csv"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = create_run(tmp_path / "run", "")
    made.write_json("space.json", space_to_json(SPACE))
    made.write_json("costs.json", costs_to_json(COSTS))
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What more measurements would bring is tested elsewhere, and takes long."""
    monkeypatch.setattr(kit_boards, "LEAST_OUTLOOK", 99)


def test_a_board_is_learnt_and_becomes_an_objective(run: Run, tmp_path: Path) -> None:
    seen, new = CONFIGS[:14], CONFIGS[20:]
    board = import_results(run, table(tmp_path, seen, ms_of(seen)), kit(seen), "pi")
    assert (board.rows, board.left_out) == (14, {})
    assert board.quality is not None
    assert board.quality.tau > 0.9
    assert "Kendall's tau" in str(board)
    objective = predicted_latency(run, "pi")
    assert (objective.name, objective.goal) == (PREDICTED, "min")
    assert objective.exact is not None
    np.testing.assert_allclose(objective.exact(SPACE.encode(new)), ms_of(new), rtol=0.05)


def test_a_search_keeps_to_what_was_known_when_it_began(run: Run, tmp_path: Path) -> None:
    def expected() -> np.ndarray:
        objective = latency_in_search(run, "pi")
        assert (objective.name, objective.exact is not None) == (PREDICTED, True)
        return np.asarray(objective.exact(SPACE.encode(CONFIGS[20:])))  # type: ignore[misc]

    with pytest.raises(InvalidInput, match="knows no board 'pi'"):
        keep_for_search(run, "pi")
    import_results(run, table(tmp_path, CONFIGS[:14], ms_of(CONFIGS[:14])), kit(CONFIGS[:14]), "pi")
    before = expected()
    keep_for_search(run, "pi")
    slower = kit(CONFIGS[:14], "one")
    import_results(run, table(tmp_path, CONFIGS[:14], 3 * ms_of(CONFIGS[:14])), slower, "pi")
    keep_for_search(run, "pi")
    np.testing.assert_array_equal(expected(), before)
    now = predicted_latency(run, "pi").exact
    assert now is not None
    assert (now(SPACE.encode(CONFIGS[20:])) > 2 * before).all()


def test_an_outlier_is_named_and_left_out(run: Run, tmp_path: Path) -> None:
    seen = CONFIGS[:16]
    ms = ms_of(seen)
    ms[5] *= 8
    board = import_results(run, table(tmp_path, seen, ms), kit(seen), "pi")
    assert board.rows == 15
    assert list(board.left_out) == ["n05 (kit one)"]
    assert "is left out: " in str(board)
    np.testing.assert_allclose(board_predictor(run, "pi").predict(seen), ms_of(seen), rtol=0.05)


def test_kits_add_up_and_the_same_one_replaces_itself(run: Run, tmp_path: Path) -> None:
    first, second = CONFIGS[:6], CONFIGS[6:11]
    for nets, checksum, count in ((first, "one", 6), (first, "one", 6), (second, "two", 11)):
        board = import_results(run, table(tmp_path, nets, ms_of(nets)), kit(nets, checksum), "pi")
        assert board.rows == count
    assert len(run.read_json("boards/pi.json")["measurements"]) == 11


def test_few_measurements_are_kept_but_not_judged(run: Run, tmp_path: Path) -> None:
    board = import_results(run, table(tmp_path, CONFIGS[:3], ms_of(CONFIGS[:3])), kit(CONFIGS[:3]), "pi")
    assert str(board).splitlines()[-1] == "  8 are needed for a predictor that can be judged"
    with pytest.raises(InvalidInput, match="'pi' has 3 measurements, a predictor needs 5"):
        board_predictor(run, "pi")


def test_what_is_not_there_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="knows no board 'pi', and no other"):
        board_predictor(run, "pi")
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        import_results(run, tmp_path / "none.csv", kit(CONFIGS[:3]), "pi")
    (tmp_path / "bad.csv").write_bytes(b"net,ms\n\xff\xfe")
    with pytest.raises(InvalidInput, match="not a text in UTF-8"):
        import_results(run, tmp_path / "bad.csv", kit(CONFIGS[:3]), "pi")
    with pytest.raises(InvalidInput, match=r"a board's name is .* got '\.\./x'"):
        import_results(run, tmp_path / "bad.csv", kit(CONFIGS[:3]), "../x")
