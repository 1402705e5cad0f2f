"""Skippable sub-paths: the second half of every residual stage stands or falls as one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..config import SubnetConfig
from ..errors import InvalidInput
from ..knob import whole_number
from ..space import SearchSpace

MANY_BLOCKS = 8  # where one run has so many and is all there is, it is cut into `USUAL_PARTS` stages
USUAL_PARTS = 4


@dataclass(frozen=True, slots=True)
class SkipPath:
    """One residual stage in two parts.

    Attributes:
        mandatory: blocks that every sub-net runs, by path; the first may be one that cannot be skipped.
        skippable: depth knobs, the stage's last blocks.
    """

    mandatory: tuple[str, ...]
    skippable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SkipPaths:
    """The stages of a network; every combination of kept and skipped sub-paths is a sub-net."""

    space: SearchSpace
    stages: tuple[SkipPath, ...]

    def config(self, keep: Sequence[bool]) -> SubnetConfig:
        """The sub-net that keeps the sub-paths marked; all other knobs are at their largest."""
        if len(keep) != len(self.stages):
            raise InvalidInput(f"there are {len(self.stages)} stages to keep or skip, got {len(keep)} marks")
        skipped = {
            knob
            for stage, kept in zip(self.stages, keep, strict=True)
            if not kept
            for knob in stage.skippable
        }
        return self.space.canonical(
            {name: 0 if name in skipped else size for name, size in self.space.largest().items()}
        )

    @property
    def base(self) -> SubnetConfig:
        """All sub-paths skipped."""
        return self.config([False] * len(self.stages))

    def configs(self) -> dict[str, SubnetConfig]:
        """All 2^stages sub-nets by name, the whole net first: "FTF" skips the second of three sub-paths."""
        marks = itertools.product([True, False], repeat=len(self.stages))
        return {"".join("F" if kept else "T" for kept in keep): self.config(keep) for keep in marks}


def skip_paths(
    space: SearchSpace, parts: int | None = None, leading: Collection[str] | None = None
) -> SkipPaths:
    """Splits every residual stage into a mandatory first and a skippable second half.

    A stage is a run of skippable blocks with consecutive numbers in one container, and the block before them, which
    changes the size and cannot be skipped: "layer1.0" before "layer1.1" and "layer1.2". Of n blocks the last n // 2
    are skippable.

    Source:
        Kang, Lee, "Adaptive Depth Networks with Skippable Sub-Paths", NeurIPS 2024, arXiv:2312.16392.

    Args:
        space: of a converted network.
        parts: every run is cut into so many stages of (nearly) equal size; by default one, or four where a single run
            of at least eight blocks is all there is, as in a vision transformer.
        leading: blocks that cannot be skipped and may begin a stage; by default every number before a run is taken for
            one, as a space does not tell. `find_skip_paths` knows them from the network.

    Raises:
        InvalidInput: no numbered block can be skipped, no stage has two blocks, or a run is too short for so many
            parts.
    """
    depth = [knob.name for knob in space.knobs if knob.kind == "depth"]
    outer = [name for name in depth if not any(name.startswith(f"{other}.") for other in depth)]
    runs = [run for run in _runs(outer, leading) if len(run) > 1]
    if parts is None:
        single = len(runs) == 1 and len(runs[0]) >= MANY_BLOCKS
        parts = USUAL_PARTS if single else 1
    if whole_number(parts, "the parts of a run") < 1:
        raise InvalidInput(f"a run of blocks is cut into at least one stage, got parts={parts}")
    if short := [run for run in runs if len(run) < 2 * parts]:
        raise InvalidInput(
            f"every stage needs two blocks, and parts={parts} would cut the {len(short[0])} blocks from {short[0][0]} "
            f"to {short[0][-1]} into smaller ones; give parts={min(map(len, runs)) // 2} at most"
        )
    stages = [
        SkipPath(
            tuple(blocks[: len(blocks) - len(blocks) // 2]), tuple(blocks[len(blocks) - len(blocks) // 2 :])
        )
        for run in runs
        for blocks in _cut(run, parts)
    ]
    if not stages:
        raise InvalidInput(
            "skippable sub-paths need stages of at least two numbered blocks of which the last can be skipped, such as "
            f"layer1.0 and layer1.1; this space can skip {', '.join(sorted(outer)[:6]) or 'no block'}"
        )
    return SkipPaths(space, tuple(stages))


def _runs(names: Sequence[str], leading: Collection[str] | None) -> list[list[str]]:
    """Consecutively numbered names of one container, each run with the number before it, if that may lead."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        if match := re.fullmatch(r"(.*?)(\d+)", name):
            numbers.setdefault(match[1], []).append(int(match[2]))
    found: list[list[str]] = []
    for container, own in numbers.items():
        for number in sorted(own):
            name, before = f"{container}{number}", f"{container}{number - 1}"
            if number - 1 in own:
                found[-1].append(name)
            else:
                leads = number > 0 if leading is None else before in leading
                found.append([before, name] if leads else [name])
    return found


def _cut(run: Sequence[str], parts: int) -> list[list[str]]:
    ends = [round(len(run) * part / parts) for part in range(parts + 1)]
    return [list(run[a:b]) for a, b in itertools.pairwise(ends)]
