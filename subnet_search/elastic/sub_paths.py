"""The stages of a converted network whose second half can be skipped."""

from __future__ import annotations

from torch import nn

from search_spaces.presets import SkipPaths, skip_paths
from subnet_search.elastic.supernet import Supernet

WEIGHED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def find_skip_paths(supernet: Supernet, parts: int | None = None) -> SkipPaths:
    """`skip_paths` of a supernet.

    What stands before a run of skippable blocks, by its number, begins their stage if it is a block too: of the class
    of one that can be skipped, or of two layers or more. So the stem before the blocks of a MobileNetV2 is none.

    Raises:
        InvalidInput: as `skip_paths`.
    """
    modules = dict(supernet.model.named_modules())
    kinds = {type(modules[path]) for path in supernet.blocks if path in modules}
    leading = {
        path
        for path, module in modules.items()
        if type(module) in kinds or sum(isinstance(part, WEIGHED) for part in module.modules()) > 1
    }
    return skip_paths(supernet.space, parts, leading)
