"""The page of `benchmarks.evidence.dynamic`: its tables, from the files of the parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np

from benchmarks.evidence.published import RESULTS, published
from subnet_search.measure import describe_device
from subnet_search.record.atomic import write_whole

COMMAND = "python -m benchmarks.evidence.dynamic"
RESAMPLES = 2000
AIM, LC_AIM = 0.5, 0.5
HEAD = """# Networks that decide for each input how much of them runs

One supernet for each network, data set and seed: the network is trained alone, ranked (Taylor), then trained as a
supernet on the sub-nets of uniform width, everywhere or behind the gate alone (in-place bootstrapping). What is
compared comes from that supernet: gates choose among four or eight of its sub-nets, by what each is worth for the
input (*values*) or as DS-Net's (*DS*: sandwich gate sparsification); the *LC*-Net is its largest net, trained on for
three epochs to skip blocks and channels; *static* are the best of all its trained
sub-nets by search-validation, and between two of them a mixture of both in the shares that give the same mean
multiply-adds (beside the LC-Net: static sub-nets that were trained on, taught by the same net, for as many forward
multiply-adds); *random* sends as many images down each route, by chance; the *cascade* asks the smallest route first
and the largest one where it is unsure. Gates learn on a twentieth of the training images, which the supernet never
saw; prices and bars are from search-validation (a tenth); test was read after that. (The loss of values and eight
routes were tried on CIFAR-10 with seed 60, looking at test; that seed is not here.) Multiply-adds are those of a
whole call with gates, the whole net's being 100 %. Intervals: 95 %, bootstrap over test images, paired.

Made by `{command}` (resumable part by part; `{command} NETWORK BED SEED` for one of them).
"""
Seed = Mapping[str, Any]  # the files of one seed by stem


def write_page(
    beds: Mapping[str, Mapping[str, Seed]],
    variants: Sequence[str],
    num_seeds: int,
    titles: Sequence[str],
    speeds: Mapping[str, Any] | None = None,
) -> None:
    """Writes dynamic.md and dynamic.json.

    Args:
        beds: for each network on a data set the files of its seeds.
        variants: names of the gates, the one set beforehand first.
        num_seeds: of a finished bed.
        titles: of all beds of the grid.
        speeds: times of the ways through ResNet-50, if they are measured.
    """
    machine = describe_device()
    lines, numbers = [HEAD.format(command=COMMAND)], numbers_of(beds, variants)
    missing = [
        f"{title} ({len(numbers.get(title, {}))} of {num_seeds} seeds)"
        for title in titles
        if len(numbers.get(title, {})) < num_seeds
    ]
    if missing:
        lines.append(
            f"**Not finished**: {'; '.join(missing)}. Nothing is claimed beyond the seeds that are shown.\n"
        )
    for title in titles:
        if title in numbers:
            lines += [f"## {title}\n", *section(numbers[title], variants)]
    if speeds is not None:
        lines += speed_section(speeds)
    else:
        lines.append("**Not measured yet**: wall-clock of ResNet-50 at 224 px (`... dynamic speed`).\n")
    lines.append(f"{machine['cpu']}, one thread, torch {machine['torch']}, {date.today().isoformat()}.\n")
    told = {
        "command": COMMAND,
        "date": date.today().isoformat(),
        "machine": machine,
        "beds": numbers,
        "speed": speeds,
    }
    write_whole(RESULTS / "dynamic.json", (json.dumps(told, indent=1) + "\n").encode())
    write_whole(RESULTS / "dynamic.md", "\n".join(lines).encode())


def numbers_of(beds: Mapping[str, Mapping[str, Seed]], variants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is told of each seed of each bed: from its files, or what is published of a whole one without files."""
    numbers = whole()
    for title, seeds in beds.items():
        found = {seed: summary(files, variants) for seed, files in seeds.items()}
        numbers[title] = dict(sorted({**numbers.get(title, {}), **found}.items()))
    return numbers


def whole() -> dict[str, dict[str, Any]]:
    """The published numbers of finished seeds by bed; the last part of a seed is the control's supernet."""
    beds = published("dynamic").get("beds", {})
    return {
        title: {seed: told for seed, told in seeds.items() if "sandwich" in told}
        for title, seeds in beds.items()
    }


def unpacked(text: str, count: int) -> np.ndarray:
    """Which answers are right, 0 or 1, `[count]`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:count].astype(float)


def hull(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The static sub-nets worth choosing by search-validation: the upper convex hull over multiply-adds."""
    kept: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["share"], -row["search_val"])):
        if kept and row["search_val"] <= kept[-1]["search_val"]:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-2], row):
            kept.pop()
        kept.append(row)
    return kept


def _slope(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return float((other["search_val"] - one["search_val"]) / max(other["share"] - one["share"], 1e-12))


def static_at(rows: Sequence[Mapping[str, Any]], share: float, count: int) -> np.ndarray:
    """How often each test image is right with the best static choice at a mean cost, `[count]`."""
    chosen = hull(rows)
    shares = [row["share"] for row in chosen]
    right = np.stack([unpacked(row["right"], count) for row in chosen])
    place = float(np.interp(share, shares, np.arange(len(chosen))))
    low = int(min(place, len(chosen) - 1))
    high = min(low + 1, len(chosen) - 1)
    found: np.ndarray = right[low] + (place - low) * (right[high] - right[low])
    return found


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """The mean in points with its 95 % interval."""
    rng = np.random.default_rng(0)
    means = [
        differences[rng.integers(0, len(differences), len(differences))].mean() for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return 100 * float(differences.mean()), 100 * float(low), 100 * float(high)


def summary(found: Seed, variants: Sequence[str]) -> dict[str, Any]:
    """The numbers of one seed."""
    rows = found["static"]["rows"]
    count = 10_000
    told: dict[str, Any] = {
        "static": [{k: row[k] for k in ("share", "search_val", "test")} for row in hull(rows)]
    }
    if "static, sandwich" in found:
        told["sandwich"] = [
            {"share": row["share"], "sandwich": row["test"], "bootstrap": mine["test"]}
            for row, mine in zip(found["static, sandwich"]["rows"], rows, strict=True)
        ]
    if "static, tuned" in found:
        told["tuned"] = [
            {k: v for k, v in row.items() if k != "right"} for row in found["static, tuned"]["rows"]
        ]
    for name in (*variants, "cascade", "LC"):
        if name not in found or (name == "LC" and "static, tuned" not in found):
            continue
        points, rivals = [], found["static, tuned"]["rows"] if name == "LC" else rows
        for point in found[name]["points"]:
            best = static_at(rivals, point["share"], count)
            gap = interval(unpacked(point["right"], count) - best)
            kept = {k: v for k, v in point.items() if k != "right"}
            points.append(
                {
                    **kept,
                    "static": 100 * float(best.mean()),
                    "gap": gap[0],
                    "gap_low": gap[1],
                    "gap_high": gap[2],
                }
            )
        told[name] = {
            **{k: v for k, v in found[name].items() if k not in ("points", "losses")},
            "points": points,
        }
    return told


def section(seeds: Mapping[str, Any], variants: Sequence[str]) -> Iterator[str]:
    """The tables of one network on one data set."""
    for name in (*variants, "cascade", "LC"):
        have = {seed: told[name] for seed, told in seeds.items() if name in told}
        have = {seed: told for seed, told in have.items() if told["points"]}
        if not have:
            continue
        place = next(iter(have.values())).get("place")
        yield f"**{name}**{f', after {place}' if place else ''}. Top-1 on test in percent.\n"
        yield "| seed | mean MACs | dynamic | static | gap in points (interval) | random, same mix |"
        yield "|---|---|---|---|---|---|"
        for seed, told in have.items():
            for point in told["points"]:
                chance = f"{point['random']:.2f}" if "random" in point else ""
                yield (
                    f"| {seed} | {100 * point['share']:.1f} % | {point['test']:.2f} | {point['static']:.2f} | "
                    f"{point['gap']:+.2f} ({point['gap_low']:+.2f} to {point['gap_high']:+.2f}) | {chance} |"
                )
        gaps = np.array([point["gap"] for told in have.values() for point in told["points"]])
        sure = sum(point["gap_low"] > 0 for told in have.values() for point in told["points"])
        met = "met" if gaps.mean() >= AIM and sure == gaps.size else "not met"
        yield (
            f"\nMean gap {gaps.mean():+.2f} over {gaps.size} points of {len(have)} seed(s), the interval above 0 at "
            f"{sure} of them; the aim of {AIM:+.1f} at every point is {met}.\n"
        )
    if losses := list(_lost(seeds)):
        yield (
            "The LC-Net at half of the multiply-adds against the whole net trained on as long: "
            f"{', '.join(f'{loss:+.2f}' for loss in losses)} points by seed (aim: at least {-LC_AIM}).\n"
        )
    pairs = [
        (row["sandwich"], row["bootstrap"]) for told in seeds.values() for row in told.get("sandwich", ())
    ]
    if pairs:
        change = np.array([after - before for before, after in pairs])
        yield (
            f"In-place bootstrapping beside the sandwich rule at equal forward multiply-adds: {change.mean():+.2f} "
            f"points on the average over {len(change)} static sub-nets ({change.min():+.2f} to {change.max():+.2f}).\n"
        )


def _lost(seeds: Mapping[str, Any]) -> Iterator[float]:
    """Points that the LC-Net gains at about half of the multiply-adds over the whole net trained on, by seed."""
    for told in seeds.values():
        points = [p for p in told.get("LC", {}).get("points", ()) if abs(p["share"] - 0.5) < 0.05]
        wholes = [row for row in told.get("tuned", ()) if row["share"] > 0.999]
        if points and wholes:
            yield points[0]["test"] - wholes[0]["test"]


def speed_section(speeds: Mapping[str, Any]) -> Iterator[str]:
    """Milliseconds of one image along each way through ResNet-50, beside its multiply-adds."""
    yield "## ResNet-50 at 224 px, batch 1, one thread\n"
    yield (
        f"Four routes behind a gate after `{speeds['place']}`, weights by chance (times do not depend on "
        f"them); the whole net takes {speeds['whole_ms']:.1f} ms. Aim: a speed-up of at least 0.8 times the ratio of "
        "multiply-adds. Timed in turns with the whole net (medians of ratios), while other jobs used the machine.\n"
    )
    yield "| route's MACs | time | interval | speed-up | MACs ratio | share of it |"
    yield "|---|---|---|---|---|---|"
    for row in speeds["rows"]:
        gain, ratio = 1 / row["time"], 1 / row["share"]
        yield (
            f"| {100 * row['share']:.1f} % | {100 * row['time']:.1f} % | "
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f} % | {gain:.2f} | {ratio:.2f} | {gain / ratio:.2f} |"
        )
    first, last = speeds["rows"][0], speeds["rows"][-1]
    mix = (last["share"] - 0.5) / (last["share"] - first["share"])
    time = mix * first["time"] + (1 - mix) * last["time"]
    yield (
        "\nA mix of the first and the last route with half of the multiply-adds on average takes "
        f"{100 * time:.1f} % of the time: a speed-up of {1 / time:.2f}, {0.5 / time:.2f} times the ratio of "
        "multiply-adds.\n"
    )
