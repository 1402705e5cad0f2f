"""The page of `benchmarks.evidence.pss`: its tables and its figure, from the files of the arms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.evidence.published import RESULTS
from subnet_search.measure import describe_device

SHARES = (0.15, 0.25, 0.4, 0.6, 0.8)  # of the whole net's multiply-adds
MINE = "PSS"
AIMS = {
    "US-Net natural": 2.3,
    "US-Net reordered": 1.0,
    "random ranking": 1.5,
    "control": None,
}
COMMAND = "python -m benchmarks.evidence.pss"
HEAD = """# Progressive sub-net search beside US-Net

A ResNet-20 of width 8, trained alone, is what every arm of a seed begins with. Each arm on a data set may spend the
same price, in forward multiply-adds as many as so many forwards of the whole net: ranking, the path's search with its
recalibration, every net of every training step and the teacher are counted (a teacher in place is the largest net of
the step itself, counted once). Search-validation (a tenth of the training images, drawn anew for each seed) chose
paths and variants; test was read after that. Accuracies between two sub-nets are interpolated over the logarithm of
the multiply-adds. Nets alone got their widths from a path for nothing.

Made by `{command}` (resumable arm by arm; `{command} BED SEED` for one seed on one data set).
"""

Rows = list[dict[str, Any]]  # measured sub-nets by rising share of the multiply-adds, the whole net last
Seed = Mapping[str, Any]  # the files of one seed by stem


def file_of(arm: str) -> str:
    """The stem of an arm's file."""
    return arm.replace(" ", "_").replace(",", "")


def at_shares(rows: Rows, split: str) -> list[float]:
    """Accuracies at `SHARES`, on straight lines over the logarithm of the multiply-adds."""
    places = np.log([row["share"] for row in rows])
    return [float(np.interp(math.log(share), places, [row[split] for row in rows])) for share in SHARES]


def write_page(
    prices: Mapping[str, int],
    titles: Mapping[str, str],
    arms: Sequence[tuple[str, str]],
    beds: Mapping[str, Mapping[str, Seed]],
) -> None:
    """Writes pss.md, pss.json and pss.png.

    Args:
        prices: of an arm, in forwards of the whole net, for each data set.
        titles: of the data sets.
        arms: name and kind of each, in the order of the table.
        beds: for each data set the files of its seeds.
    """
    found = {
        "command": COMMAND,
        "date": date.today().isoformat(),
        "machine": describe_device(),
        "prices": {name: prices[name] for name in beds},
        "beds": beds,
    }
    (RESULTS / "pss.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    results = {name: Results(titles[name], prices[name], arms, seeds) for name, seeds in beds.items()}
    machine = describe_device()
    parts = [HEAD.format(command=COMMAND)]
    parts += [part for result in results.values() for part in result.page()]
    parts.append("![Top-1 on test against multiply-adds](pss.png)\n")
    parts.append(f"{machine['cpu']}, one thread, torch {machine['torch']}, {found['date']}.\n")
    (RESULTS / "pss.md").write_text("\n".join(parts), "utf-8")
    draw(list(results.values()), RESULTS / "pss.png")


@dataclass(frozen=True)
class Results:
    """All that was measured on one data set."""

    title: str
    price: int
    arms: Sequence[tuple[str, str]]
    seeds: Mapping[str, Seed]

    def rows(self, arm: str) -> list[Rows]:
        """What an arm measured, for each seed that has it."""
        return [seed[file_of(arm)]["rows"] for seed in self.seeds.values() if file_of(arm) in seed]

    def at_shares(self, arm: str, split: str = "test") -> np.ndarray:
        """`[num_seeds, num_shares]`."""
        return np.array([at_shares(rows, split) for rows in self.rows(arm)])

    def best(self, kind: str) -> str | None:
        """The arm of a kind, finished for all seeds, with the highest mean accuracy on search-validation."""
        finished = [arm for arm, of in self.arms if of == kind and len(self.rows(arm)) == len(self.seeds)]
        return max(finished, key=lambda arm: float(self.at_shares(arm, "search_val").mean()), default=None)

    def page(self) -> Iterator[str]:
        """The section of this data set."""
        yield f"## {self.title}\n"
        yield f"Price of an arm: {self.price:,} forwards of the whole net.\n"
        yield from self._arms()
        mine = self.best(MINE)
        if mine is not None:
            yield from self._gaps(mine)
        yield from self._search()

    def _arms(self) -> Iterator[str]:
        missing = [arm for arm, _ in self.arms if len(self.rows(arm)) < len(self.seeds)]
        if missing:
            yield f"**Not finished** for all seeds: {'; '.join(missing)}.\n"
        starts = ", ".join(f"{seed['teacher']['test']:.2f}" for seed in self.seeds.values())
        yield f"Seeds {', '.join(self.seeds)}. The whole net before: {starts} %. Top-1 on test in percent.\n"
        yield f"| arm | {' | '.join(f'{share:.0%}' for share in SHARES)} | mean | by seed | whole net, by seed |"
        yield f"|---|{'---|' * (len(SHARES) + 3)}"
        for arm, _ in self.arms:
            if rows := self.rows(arm):
                tests = self.at_shares(arm)
                each = ", ".join(f"{mean:.2f}" for mean in tests.mean(axis=1))
                whole = ", ".join(f"{one[-1]['test']:.2f}" for one in rows if one[-1]["share"] == 1)
                cells = " | ".join(f"{value:.2f}" for value in (*tests.mean(axis=0), tests.mean()))
                yield f"| {arm} | {cells} | {each} | {whole} |"
        yield ""

    def _gaps(self, mine: str) -> Iterator[str]:
        yield f"{mine} against the best arm of each kind, chosen on search-validation; points on test.\n"
        shares = " | ".join(f"{share:.0%}" for share in SHARES)
        yield f"| against | mean | aim | by seed | {shares} | worst | wins of {len(SHARES) * len(self.seeds)} |"
        yield f"|---|{'---|' * (len(SHARES) + 5)}"
        for kind, aim in AIMS.items():
            if (other := self.best(kind)) is None:
                continue
            gaps = self.at_shares(mine) - self.at_shares(other)
            each = ", ".join(f"{gap:+.2f}" for gap in gaps.mean(axis=1))
            by_share = gaps.mean(axis=0)
            cells = " | ".join(f"{gap:+.2f}" for gap in by_share)
            aimed = "" if aim is None else f">= {aim:+.1f}"
            wins = int((gaps > 0).sum())
            yield f"| {other} | {gaps.mean():+.2f} | {aimed} | {each} | {cells} | {by_share.min():+.2f} | {wins} |"
        yield from self._ahead(mine)
        ends = [
            (rows[-1]["test"], seed["teacher"]["test"])
            for rows, seed in zip(self.rows(mine), self.seeds.values(), strict=True)
        ]
        told = ", ".join(f"{after - before:+.2f}" for after, before in ends)
        yield f"\nThe whole net after, against before (aim >= -1.0): {told}.\n"

    def _ahead(self, mine: str) -> Iterator[str]:
        """Controls that the table leaves out because seeds are missing, although they beat the one in it so far."""
        for arm, kind in self.arms:
            have = [i for i, seed in enumerate(self.seeds.values()) if file_of(arm) in seed]
            rival = self.best(kind) if kind in AIMS else None
            if rival is None or not 0 < len(have) < len(self.seeds):
                continue
            known = self.at_shares(rival, "search_val")[have].mean()
            if self.at_shares(arm, "search_val").mean() > known:
                gaps = (self.at_shares(mine)[have] - self.at_shares(arm)).mean(axis=1)
                each = ", ".join(f"{gap:+.2f}" for gap in gaps)
                names = ", ".join(list(self.seeds)[i] for i in have)
                yield (
                    f"\n**A stronger control is not finished**: {arm} beats {rival} on search-validation; against it, "
                    f"on seeds {names}: {each} (mean {gaps.mean():+.2f})."
                )

    def _search(self) -> Iterator[str]:
        done = {name: seed["scored_in_full"] for name, seed in self.seeds.items() if "scored_in_full" in seed}
        if not done:
            return
        yield (
            "What the path's search costs in image forwards, recalibration included (aim: at most 150,000), beside\n"
            "every drop scored in full; and the mean of the five on test for both paths, before any joint training.\n"
        )
        yield "| seed | forwards | in full | top-1 | in full |"
        yield "|---|---|---|---|---|"
        for name, found in done.items():
            both = found["screened"], found["in full"]
            counts = " | ".join(f"{one['images']:,}" for one in both)
            means = " | ".join(f"{np.mean(at_shares(one['rows'], 'test')):.2f}" for one in both)
            yield f"| {name} | {counts} | {means} |"
        yield ""


def draw(results: Sequence[Results], path: Path) -> None:
    """Mean test accuracy of each arm at the five shares."""
    figure = Figure(figsize=(6 * max(len(results), 1), 4.5), layout="constrained")
    for place, found in enumerate(results, start=1):
        axes = figure.add_subplot(1, len(results), place)
        for arm, kind in found.arms:
            if found.rows(arm):
                means, width = found.at_shares(arm).mean(axis=0), 2.5 if kind == MINE else 1.0
                shares = [100 * share for share in SHARES]
                axes.plot(shares, means, "o-", label=arm, linewidth=width, markersize=3)
        axes.set(xlabel="multiply-adds, % of the whole net's", ylabel="top-1 on test, %", title=found.title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.savefig(path, dpi=120)
