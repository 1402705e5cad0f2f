"""Every classification network of torchvision, and one of each family of timm: what conversion makes of it.

Each network is converted and tried in a process of its own; its result is kept under runs/zoo, so a broken-off call
goes on. The page is written when nothing is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo.exports import look_at_exports
from benchmarks.zoo.look import look
from benchmarks.zoo.names import names_of
from benchmarks.zoo.page import as_page, summary
from benchmarks.zoo.walk import Folder, Limits, code_version, walk
from subnet_search.measure import describe_device

COMMAND = "python -m benchmarks.evidence.zoo"
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "reports" / "results"
SOURCES = ("torchvision", "timm")
GOOD = ("converted", "exported")


def main() -> None:
    arguments = _arguments()
    exports = Folder(arguments.runs / "exports")
    folder = exports if arguments.exports else Folder(arguments.runs)
    looking = look_at_exports if arguments.exports else look
    names = arguments.names or [name for source in arguments.source for name in names_of(source)]
    part, parts = arguments.shard
    now = code_version(looking)
    again = {
        "all": lambda known: True,
        "stale": lambda known: known["code"] != now,
        "bad": lambda known: known["status"] not in GOOD or bool(known["wrong"]),
        "nothing": lambda known: False,
    }[arguments.again]
    walk(
        names[part - 1 :: parts], folder, Limits(arguments.cpu_seconds, arguments.memory_gib), again, looking
    )
    everything = [name for source in SOURCES for name in names_of(source)]
    folder = Folder(arguments.runs)
    results = [
        {**found, "exports": exports.result(name)}
        for name in everything
        if (found := folder.result(name)) is not None
    ]
    if len(results) < len(everything):
        print(
            f"{len(results)} of {len(everything)} networks are known; the page is written when all are",
            file=sys.stderr,
        )
        return
    write_page(results)


def write_page(results: Sequence[Mapping[str, Any]]) -> None:
    """Writes zoo.md and zoo.json among the published results."""
    machine = describe_device()
    networks = [{**found, "fixed": Counter(f["reason"] for f in found.get("fixed", ()))} for found in results]
    stored = {"command": COMMAND, "machine": machine, "summary": summary(results), "networks": networks}
    page = as_page(results, COMMAND, machine)
    (RESULTS / "zoo.json").write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    (RESULTS / "zoo.md").write_text(page, "utf-8")
    print(page[: page.index("## ")])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help='such as "timm:resnet18"; default: all')
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="the i-th of n equal parts"
    )
    parser.add_argument(
        "--again",
        choices=("nothing", "bad", "stale", "all"),
        default="nothing",
        help="also known results: those that failed, those of other code, or all",
    )
    parser.add_argument(
        "--exports",
        action="store_true",
        help="look at torch.export and ONNX of each network's smallest sub-net instead (kept apart)",
    )
    parser.add_argument("--cpu-seconds", type=float, default=Limits.cpu_s, help="limit for one network")
    parser.add_argument("--memory-gib", type=float, default=Limits.memory_gib, help="limit for one network")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "zoo", help="the folder of single results"
    )
    return parser.parse_args()


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"a shard is i/n with 1 <= i <= n, got {text!r}")
    return int(part), int(parts)


if __name__ == "__main__":
    main()
