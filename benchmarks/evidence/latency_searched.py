"""The numbers and the text of part 3: what the searches under a limit left below runs/latency/search."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from predictors.quality import kendall_tau
from subnet_search.measure.timing import Latency
from subnet_search.settings import RuntimeName

SEEDS = (20, 21, 22)
TARGET: RuntimeName = "openvino"
SHARE = 0.5  # of the whole network's time: the limit
RUNTIMES: tuple[RuntimeName, ...] = ("torch", "onnxruntime", "openvino", "executorch")
LEARNT, EVALUATIONS = 30, 100
PARTS = ("chosen", *(f"front-{runtime}" for runtime in RUNTIMES))


def searched(runs: Path) -> dict[str, Any] | None:
    """What was chosen for each seed and how its front fares in each runtime; None if nothing was finished."""
    seeds = {str(seed): {part: _part(runs, part, seed) for part in PARTS} for seed in SEEDS}
    found = {seed: {name: one for name, one in parts.items() if one} for seed, parts in seeds.items()}
    if not any(found.values()):
        return None
    last = next(seed for seed in reversed(SEEDS) if found[str(seed)])
    return {
        "target": TARGET,
        "learnt": LEARNT,
        "evaluations": EVALUATIONS,
        "missing": [f"{part} of seed {seed}" for seed in found for part in PARTS if part not in found[seed]],
        "machine": _part(runs, "machine", last),
        "summary": _summary([one for parts in found.values() for one in _rows(parts)]),
        "seeds": found,
    }


def _part(runs: Path, name: str, seed: int) -> Any:
    path = runs / f"{name}-seed{seed}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _rows(parts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The chosen sub-nets of a seed, with the limit and what follows from the last measurement."""
    for one in parts.get("chosen", {"chosen": ()})["chosen"]:
        last, limit_ms = Latency(**one["latency"]), parts["chosen"]["limit_ms"]
        yield {
            **one,
            "last": last,
            "limit_ms": limit_ms,
            "over": last.low_ms > limit_ms,
            "error": abs(one["predicted_ms"] / last.median_ms - 1),
        }


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of all chosen sub-nets: how many there are, are over the limit, and how far they are from what was foretold."""
    held = [
        one["predicted_from_to_ms"][0] <= one["last"].median_ms <= one["predicted_from_to_ms"][1]
        for one in rows
    ]
    return {
        "chosen": len(rows),
        "over": sum(one["over"] for one in rows),
        "error_percent": 100 * float(np.mean([one["error"] for one in rows])) if rows else 0.0,
        "held": sum(held),
    }


def search_text(part: Mapping[str, Any], command: str) -> str:
    """Part 3 of the page."""
    done, machine = part["summary"], part["machine"]
    lines = [
        "## 3. Search under a limit of milliseconds\n",
        f"`{command}`. Guided searches of {part['evaluations']} evaluations for top-1 on search-validation and "
        f"`latency_ms` in {part['target']}, one thread, one image, under a limit of {100 * SHARE:.0f} % of the whole "
        "network's time; ResNet-20 on Fashion-MNIST (28 pixels), trained supernets of three seeds "
        "(`fashion_mnist.md`).\n",
        f"Of {done['chosen']} chosen sub-nets {done['over']} are over the limit by more than the noise when measured "
        f"again. What was foretold is off by {done['error_percent']:.1f} % on average, and its 90 % intervals hold "
        f"{done['held']} of them.\n",
    ]
    if part["missing"]:
        lines.append(f"**Not finished**: {', '.join(part['missing'])}.\n")
    lines += [*_chosen_table(part), *_front_table(part)]
    return "\n".join([*lines, f"{machine['cpu']}, one thread, {machine['os']}, torch {machine['torch']}.\n"])


def _chosen_table(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "### Foretold, searched, chosen, measured\n",
        f"Milliseconds. Foretold: by a predictor fitted to {part['learnt']} sub-nets all over the range of cost, "
        "its interval of 90 % in brackets. Searched: the value in the search, which picks lucky ones. Again: what the "
        "choice was made on; who was above the limit then was replaced. Measured: a third time, which chose nothing, "
        "with half its interval of 95 %.\n",
        "| seed | sub-net | top-1, % | foretold | searched | again | measured | limit | over by more than noise |",
        "|" + "---|" * 9,
    ]
    for seed, parts in part["seeds"].items():
        for one in _rows(parts):
            last, (low, high) = one["last"], one["predicted_from_to_ms"]
            cells = [
                seed,
                one["key"],
                f"{one['top1_percent']:.2f}",
                f"{one['predicted_ms']:.3g} ({low:.3g} to {high:.3g})",
                f"{one['searched_ms']:.3g}",
                f"{one['again_ms']:.3g}",
                f"{last.median_ms:.3g} ± {last.half_interval_ms:.1g}",
                f"{one['limit_ms']:.3g}",
                "yes" if one["over"] else "no",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    replaced = ", ".join(
        f"{parts['chosen']['replaced']} (seed {seed})"
        for seed, parts in part["seeds"].items()
        if "chosen" in parts
    )
    return [*lines, f"\nReplaced, as they were over the limit when measured again: {replaced}.\n"]


def _front_table(part: Mapping[str, Any]) -> list[str]:
    lines = [
        "### Is it really faster\n",
        f"First the smallest sub-net, then members all over the front of the search in {part['target']}: time as a "
        "share of the whole network's in the same runtime. Tau: Kendall's, of MACs and times.\n",
        "| seed | MACs, % | " + " | ".join(f"{runtime}, %" for runtime in RUNTIMES) + " |",
        "|" + "---|" * (len(RUNTIMES) + 2),
    ]
    for seed, parts in part["seeds"].items():
        by_runtime = [parts.get(f"front-{runtime}") for runtime in RUNTIMES]
        known = next((found for found in by_runtime if found), None)
        if known is None:
            continue
        for place, row in enumerate(known["rows"]):
            shares = [_share(found, place) for found in by_runtime]
            lines.append(f"| {seed} | {100 * row['macs_share']:.1f} | {' | '.join(shares)} |")
        lines.append(f"| {seed}, tau | | {' | '.join(map(_tau, by_runtime))} |")
    return [*lines, ""]


def _share(found: Mapping[str, Any] | None, place: int) -> str:
    if found is None:
        return "to come"
    latency = found["rows"][place]["latency"]
    whole_ms = found["timing"]["reference"]["median_ms"]
    return "rejected" if latency is None else f"{100 * latency['median_ms'] / whole_ms:.1f}"


def _tau(found: Mapping[str, Any] | None) -> str:
    timed = [row for row in found["rows"] if row["latency"]] if found else []
    if len(timed) < 3:
        return "–"
    macs, ms = zip(*((row["macs_share"], row["latency"]["median_ms"]) for row in timed), strict=True)
    return f"{kendall_tau(np.array(macs), np.array(ms)):.2f}"
