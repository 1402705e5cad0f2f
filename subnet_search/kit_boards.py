"""What was measured on a board that is not here, and the predictor that learns from it; all kept in the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from predictors import LatencyPredictor, Outlook, Quality, cross_validated, outlook
from predictors.accuracy import GATE
from predictors.latency import LEAST_ROWS
from predictors.latency_outlook import LEAST_OUTLOOK
from search_spaces import InvalidInput
from search_spaces.files import config_from_json, costs_from_json, space_from_json
from subnet_search.kit_results import Results, outliers, read_results
from subnet_search.record import Objective, Run
from subnet_search.settings import PREDICTED

BOARDS = "boards"
SEARCHED = "board.json"  # what the search of a run knows of its board
HALF_INTERVAL = 1.96  # standard errors
LEAST_JUDGED = 8  # rows, of which four fifths can be learnt from


@dataclass(frozen=True)
class Board:
    """What is known of a board after an import.

    Attributes:
        name: as the user calls it.
        rows: measurements that count.
        left_out: names of nets whose measurement is far from what the others let expect, and why.
        quality: of the predictor; None with too few rows.
        outlook: what more measurements would bring; None with too few rows.
        verdict: how it learnt; empty with too few rows.
        notes: about the file.
    """

    name: str
    rows: int
    left_out: Mapping[str, str]
    quality: Quality | None
    outlook: Outlook | None
    verdict: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """For people, one sentence a line."""
        lines = [f"board {self.name}: {self.rows} measurements", *(f"  {note}" for note in self.notes)]
        lines += [f"  {net} is left out: {why}" for net, why in self.left_out.items()]
        if self.quality is None:
            return "\n".join([*lines, f"  {LEAST_JUDGED} are needed for a predictor that can be judged"])
        quality = self.quality
        lines.append(f"predictor: {self.verdict}")
        lines.append(
            f"  on nets left out: Kendall's tau {quality.tau:.2f}, {100 * quality.within_10_percent:.0f} % within "
            f"10 %, 90 % intervals hold {100 * quality.coverage:.0f} %, mean error {quality.error_percent:.1f} %"
        )
        if quality.tau < GATE:
            lines.append(
                "  it orders nets hardly better than chance: measure again on an idle board before you search"
            )
        lines.append(
            f"  {self.outlook or f'what more would bring is said from {LEAST_OUTLOOK} measurements on'}"
        )
        return "\n".join(lines)


def import_results(run: Run, file: Path, kit: Mapping[str, Any], device: str) -> Board:
    """Checks a file of results, adds it to what is known of the board, and learns from all of it.

    The same kit imported again for a board replaces its earlier measurements.

    Raises:
        InvalidInput: see `read_results`; or a name that makes no file.
    """
    if not re.fullmatch(r"[\w.-]{1,60}", device) or device.startswith("."):
        raise InvalidInput(f"a board's name is up to 60 letters, digits, _, - and ., got {device!r}")
    try:
        found = read_results(file.read_text("utf-8-sig"), kit, file.name)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{file} is not a text in UTF-8; save the table as CSV") from None
    name = f"{BOARDS}/{device}.json"
    before = run.read_json(name)["measurements"] if run.has(name) else []
    kept = [one for one in before if one["kit"] != kit["checksum"]]
    new = kept + _as_json(found, kit)
    board = learn(run, device, new, found.notes)
    run.write_json(name, {"device": device, "about": dict(found.about), "measurements": new})
    return board


def _as_json(found: Results, kit: Mapping[str, Any]) -> list[dict[str, Any]]:
    nets = {net["net"]: net for net in kit["nets"]}
    return [
        {
            "kit": kit["checksum"],
            "net": one.net,
            "config": nets[one.net]["config"],
            "latency_ms": one.ms,
            "noise_ms": one.noise_ms,
        }
        for one in found.measurements
    ]


def learn(run: Run, device: str, measured: Sequence[Mapping[str, Any]], notes: tuple[str, ...] = ()) -> Board:
    """How good a predictor of the board is that learns from these measurements."""
    if len(measured) < LEAST_JUDGED:
        return Board(device, len(measured), {}, None, None, "", notes)
    predictor, left_out = _fitted(run, measured)
    rows = [one for place, one in enumerate(measured) if place not in left_out]
    configs, ms = [config_from_json(one["config"]) for one in rows], [one["latency_ms"] for one in rows]

    def make() -> LatencyPredictor:
        return _new(run)

    return Board(
        device,
        len(rows),
        {f"{measured[place]['net']} (kit {measured[place]['kit']})": why for place, why in left_out.items()},
        cross_validated(make, configs, ms),
        outlook(make, configs, ms) if len(rows) >= LEAST_OUTLOOK else None,
        predictor.verdict,
        notes,
    )


def is_known(run: Run, device: str) -> bool:
    """Whether anything was imported for that board."""
    return run.has(f"{BOARDS}/{device}.json")


def board_predictor(run: Run, device: str) -> LatencyPredictor:
    """The predictor of a board, fitted to what the run holds of it.

    Raises:
        InvalidInput: nothing, or too little, was imported for that board.
    """
    if not is_known(run, device):
        known = [
            name.split("/")[1].removesuffix(".json") for name in run.names() if name.startswith(f"{BOARDS}/")
        ]
        raise InvalidInput(
            f"run {run.folder} knows no board {device!r}, {f'only {known}' if known else 'and no other'}; bring its "
            f"measurements back with subnet-search kit {run.folder} --import FILE --device {device}"
        )
    measured = run.read_json(f"{BOARDS}/{device}.json")["measurements"]
    if len(measured) < LEAST_ROWS:
        raise InvalidInput(
            f"board {device!r} has {len(measured)} measurements, a predictor needs {LEAST_ROWS}"
        )
    return _fitted(run, measured)[0]


def predicted_latency(run: Run, device: str) -> Objective:
    """An objective for `make_evaluator` and `search`: what the board is expected to take.

    It is a function of the config, so limits on it are met before anything is evaluated. Its name says that nothing
    was measured; measure what is found with another kit.

    Raises:
        InvalidInput: see `board_predictor`.
    """
    return Objective(PREDICTED, "min", exact=board_predictor(run, device).predict_rows)


def keep_for_search(run: Run, device: str) -> None:
    """Sets down what the run's search knows of its board, so that what is imported later does not change its goal.

    Raises:
        InvalidInput: see `board_predictor`.
    """
    if not run.has(SEARCHED):
        board_predictor(run, device)
        run.write_json(SEARCHED, run.read_json(f"{BOARDS}/{device}.json"))


def latency_in_search(run: Run, device: str) -> Objective:
    """`predicted_latency` from what was known when the run's search began, or is known now if it did not begin."""
    if not run.has(SEARCHED):
        return predicted_latency(run, device)
    predictor, _ = _fitted(run, run.read_json(SEARCHED)["measurements"])
    return Objective(PREDICTED, "min", exact=predictor.predict_rows)


def _new(run: Run) -> LatencyPredictor:
    return LatencyPredictor(
        space_from_json(run.read_json("space.json")), costs_from_json(run.read_json("costs.json"))
    )


def _fitted(run: Run, measured: Sequence[Mapping[str, Any]]) -> tuple[LatencyPredictor, dict[int, str]]:
    """The predictor without outliers, and what is wrong with these, by their places."""
    configs = [config_from_json(one["config"]) for one in measured]
    ms = np.array([one["latency_ms"] for one in measured])
    known = [one["noise_ms"] for one in measured]
    noise = None if None in known else np.array(known) / HALF_INTERVAL
    predictor = _new(run)
    predictor.fit(configs, ms.tolist(), None if noise is None else noise.tolist())
    expected = predictor.learnt.way.back(predictor.learnt.folds.mean)
    far = outliers(expected, ms)
    if not far.any() or (~far).sum() < LEAST_ROWS:
        return predictor, {}
    told = {
        int(i): f"{ms[i]:.4g} ms, where about {expected[i]:.4g} ms were expected; measure it again"
        for i in np.flatnonzero(far)
    }
    kept = np.flatnonzero(~far)
    predictor.fit(
        [configs[i] for i in kept], ms[kept].tolist(), None if noise is None else noise[kept].tolist()
    )
    return predictor, told
