"""The numbers of part 1: how well measured sub-nets foretell others in each runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from predictors import LatencyPredictor, coverage, kendall_tau, share_within
from search_spaces import CostTable, SearchSpace, SubnetConfig
from search_spaces.files import costs_from_json, space_from_json

LEARN, JUDGE, AGAIN = 60, 100, 20


def judged(runs: Path) -> dict[str, Any] | None:
    """One entry for each network and runtime with enough rows; None if there is none."""
    found = []
    machine: dict[str, Any] = {}
    for space_file in sorted(runs.glob("*/space.json")):
        space = space_from_json(json.loads(space_file.read_text("utf-8")))
        costs = costs_from_json(json.loads(space_file.with_name("costs.json").read_text("utf-8")))
        for file in sorted(space_file.parent.glob("*/nets.jsonl")):
            lines = lines_of(file)
            kinds = {
                role: [line for line in lines if line["role"] == role] for role in ("learn", "judge", "again")
            }
            if sum("ms" in line for line in kinds["learn"]) >= 10 and len(kinds["judge"]) >= 10:
                found.append(
                    {
                        "model": space_file.parent.name,
                        "runtime": file.parent.name,
                        **one_run(space, costs, kinds),
                    }
                )
                machine = json.loads(file.with_name("machine.json").read_text("utf-8"))
    return {"runs": found, "machine": machine} if found else None


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Measured nets, one a line; a line torn by a crash is left out."""
    found: list[dict[str, Any]] = []
    for text in file.read_text("utf-8").splitlines() if file.exists() else ():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def one_run(space: SearchSpace, costs: CostTable, kinds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Quality of the predictor, of MACs, and of measuring once more, on the judged nets."""
    learn, judge, again = ([line for line in lines if "ms" in line] for lines in kinds.values())
    seen, new = ([SubnetConfig(line["config"]) for line in lines] for lines in (learn, judge))
    known, ms = (np.array([line["ms"] for line in lines]) for lines in (learn, judge))
    predictor = LatencyPredictor(space, costs).fit(seen, known.tolist())
    held = coverage(*predictor.predict_interval(new), ms)
    line = np.polyfit([one["macs"] for one in learn], known, 1)
    first = {one["key"]: one["ms"] for one in judge}
    pairs = np.array([[first[one["key"]], one["ms"]] for one in again if one["key"] in first]).reshape(-1, 2)
    return {
        "learnt": len(learn),
        "judged": len(judge),
        "rejected": sum("ms" not in one for lines in kinds.values() for one in lines),
        "finished": [len(lines) for lines in kinds.values()] == [LEARN, JUDGE, AGAIN],
        "least_ms": float(ms.min()),
        "most_ms": float(ms.max()),
        "ours": {**quality(predictor.predict(new), ms), "coverage": held},
        "macs": quality(np.polyval(line, [one["macs"] for one in judge]), ms),
        "again": quality(pairs[:, 0], pairs[:, 1]) if len(pairs) >= 5 else None,
        "half_interval_percent": 100
        * float(np.median([one["half_interval_ms"] / one["ms"] for one in judge])),
        "seconds_per_net": float(np.mean([one["seconds"] for one in learn + judge])),
    }


def quality(expected: np.ndarray, ms: np.ndarray) -> dict[str, float]:
    """Share within 10 %, Kendall's tau, and mean |expected / measured - 1| in percent."""
    return {
        "within": share_within(expected, ms),
        "tau": kendall_tau(expected, ms),
        "error": 100 * float(np.mean(np.abs(expected / ms - 1))),
    }
