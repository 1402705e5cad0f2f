"""How long it takes to make a network elastic and to say what its sub-nets cost, beside other tools.

`python -m benchmarks.conversion` runs every tool that is installed on every network, each pair in a process of its own
with a time limit, and writes reports/results/conversion.*. `python -m benchmarks conversion` holds conversion alone
against its aim.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from benchmarks.conversion_tools import BATCH, CANDIDATES, ROUNDS, TOOLS
from benchmarks.figure import Figure, interleaved_seconds
from subnet_search import make_elastic
from subnet_search.measure import describe_device

MODELS = ("resnet50", "mobilenet_v3_large")
COMPARED = (
    *("resnet50", "mobilenet_v3_large", "vit_b_16", "convnext_tiny", "densenet121", "shufflenet_v2_x1_0"),
    "swin_t",
)
COMMAND = "python -m benchmarks.conversion"
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "reports" / "results"
LIMIT_S = 240.0
MODULES = {"ours": "subnet_search", "torch_pruning": "torch_pruning", "modelopt": "modelopt"}
HEAD = f"""# Conversion beside other tools

Networks of torchvision with random weights at 224 px, one thread, the same torch. Each tool works on each network in a
process of its own, with a limit of {{limit_s:g}} s.

- **Conversion**: from a network to what candidates are cut from; the median of {ROUNDS} rounds (lowest to highest).
  Ours: `make_elastic`, which also tries the smallest sub-net out. Torch-Pruning:
  `DependencyGraph().build_dependency`. Model-Optimizer: `modelopt.torch.nas.convert`, mode "autonas".
- **One candidate**: multiply-adds and parameters of one sub-net; the median of {CANDIDATES}. Ours: the closed form, one
  config at a time. Torch-Pruning changes the network for good, so it prunes a copy (`BasePruner`, random importance)
  and counts while that runs. Model-Optimizer selects the sub-net and counts while it runs. For both this is the price
  of the tool's own counter.
- **{BATCH:,} candidates**: ours in one call; the others have none for several, so it is {BATCH:,} times the single one
  (marked ~).
- **Knobs**: groups of channels and blocks that have a choice. **Smallest**: the multiply-adds of the smallest member by
  the tool's own count (Torch-Pruning has no smallest one: pruned by 90 %). Each tool has its default settings, so these
  two say what is offered, not what could be.
"""


def measure() -> list[Figure]:
    """Conversion beside one forward."""
    image = torch.randn(1, 3, 224, 224)
    figures = []
    for name in MODELS:
        model = getattr(torchvision.models, name)().eval()
        seconds = interleaved_seconds([partial(make_elastic, model, image), partial(model, image)], rounds=5)
        forward_s = float(np.median(seconds[:, 1]))
        figures.append(
            Figure(
                f"conversion of {name} at 224 px",
                "s",
                tuple(seconds[:, 0]),
                "<=",
                5.0,
                "one forward at batch 1",
                forward_s,
            )
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("models", nargs="*", default=COMPARED, metavar="MODEL", help="names of torchvision")
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_S, help="for one tool on one network")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="the folder of conversion.md and conversion.json"
    )
    arguments = parser.parse_args()
    stored: dict[str, Any] = {
        "command": COMMAND,
        "date": datetime.date.today().isoformat(),
        "load": round(os.getloadavg()[0], 2),
        "machine": describe_device(),
        "limit_s": arguments.limit_seconds,
        "networks": {},
    }
    for model in arguments.models:
        found = {tool: compare(tool, model, arguments.limit_seconds) for tool in TOOLS}
        stored["networks"][model] = found
        for tool, result in found.items():
            print(as_row(model, tool, result), flush=True)
    (arguments.results / "conversion.json").write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    (arguments.results / "conversion.md").write_text(as_page(stored), "utf-8")


def compare(tool: str, model: str, limit_s: float) -> dict[str, Any]:
    """What a tool makes of a network, or why it makes nothing of it."""
    if importlib.util.find_spec(MODULES[tool]) is None:
        return {"reason": f"not installed: pip install {TOOLS[tool].package}", "installed": False}
    command = [sys.executable, "-m", "benchmarks.conversion_tools", tool, model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as late:
        return {**_parts(late.stdout), "reason": f"not done after {limit_s:g} s"}
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return {**_parts(done.stdout), "reason": f"its process ended with code {done.returncode}: {last}"}
    return _parts(done.stdout)


def _parts(printed: bytes | None) -> dict[str, Any]:
    """What a process said before it ended, in one; tools print things of their own besides."""
    found: dict[str, Any] = {}
    for line in (printed or b"").decode(errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):
            found |= json.loads(line)
    return found


def as_row(model: str, tool: str, found: Mapping[str, Any]) -> str:
    """A line of the table; what a tool did not get to is empty, and the reason stands in its place."""
    single = many = share = ""
    if "single_s" in found:
        single_s = float(np.median(found["single_s"]))
        single = f"{_number(1e3 * single_s)} ms"
        many = (
            f"{_number(float(np.median(found['batch_s'])))} s"
            if "batch_s" in found
            else f"~ {_number(BATCH * single_s)} s"
        )
    if "smallest_macs_share" in found:
        share = f"{100 * found['smallest_macs_share']:.1f} %"
    seconds = found.get("converted_s", ())
    converted = f"{np.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})" if seconds else ""
    reason = found.get("reason", "").replace("|", "/")
    told = reason if not reason or found.get("installed") is False else f"fails: {reason}"
    return _line(
        model,
        TOOLS[tool].title,
        converted or told,
        single or (told if converted else ""),
        many,
        str(found.get("knobs", "")),
        share,
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def as_page(stored: Mapping[str, Any]) -> str:
    """The page of the published results."""
    heads = ["network", "tool", "conversion", "one candidate", f"{BATCH:,} candidates", "knobs", "smallest"]
    lines = [HEAD.format(limit_s=stored["limit_s"]), _line(*heads), "|" + "---|" * len(heads)]
    for model, by_tool in stored["networks"].items():
        lines += [as_row(model, tool, found) for tool, found in by_tool.items()]
    machine = stored["machine"]
    versions = {
        f"{TOOLS[tool].title} {found['version']}": None
        for by_tool in stored["networks"].values()
        for tool, found in by_tool.items()
        if "version" in found
    }
    lines += [
        "",
        "Why others fail is what they say themselves: the first line of the error of a default call.",
        f"Made by `{stored['command']}`; the others come into the same environment with "
        f"`pip install {' '.join(_packages())}`.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}, torch {machine['torch']}, torchvision "
        f"{machine['torchvision']}, {', '.join(versions)}, {stored['date']}, load average {stored['load']} when begun.",
        "",
    ]
    return "\n".join(lines)


def _packages() -> Sequence[str]:
    return [tool.package for name, tool in TOOLS.items() if name != "ours"]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
