"""Whether the smallest sub-net of a network goes through torch.export and ONNX."""

from __future__ import annotations

import math
import tempfile
import time
from typing import Any

import torch

from benchmarks.zoo.look import input_shape, no_branch_silent
from search_spaces import InvalidInput, SubnetSearchError
from subnet_search import export, extract, load_model, make_elastic, recalibrate

FORMATS = ("pt2", "onnx")
CALIBRATION_IMAGES = 4


def look_at_exports(name: str, seed: int = 0) -> dict[str, Any]:
    """Writes the smallest sub-net of a network of random weights as .pt2 and .onnx, reads both back and compares.

    The files take any batch size; they are written with two images and compared with the sub-net in eager mode on
    three others, the .onnx in ONNX Runtime.

    Args:
        name: "torchvision:NAME" or "timm:NAME".
        seed: of weights and inputs.

    Returns:
        `status` "exported" (all formats), "partly" (some), "not exported" or "refused" (by conversion); for each
        format its bytes, seconds and largest difference from eager, or the reason; `wrong` lists these reasons.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = load_model(name).eval()
    no_branch_silent(model)
    shape = input_shape(name, model)
    try:
        supernet = make_elastic(model, torch.randn(1, *shape)).eval()
    except InvalidInput as error:
        return {"status": "refused", "reason": str(error), "wrong": []}
    smallest = supernet.space.smallest()
    statistics = recalibrate(supernet, smallest, [torch.randn(CALIBRATION_IMAGES, *shape)])
    net = extract(supernet, smallest, statistics=statistics).eval()
    form = supernet.coverage["form"]
    del model, supernet
    formats = {written: _try(net, torch.randn(1, *shape), written) for written in FORMATS}
    wrong = [f"{written}: {found['reason']}" for written, found in formats.items() if "reason" in found]
    status = ("exported", "partly", "not exported")[math.ceil(2 * len(wrong) / len(FORMATS))]
    return {"status": status, "form": form, "formats": formats, "wrong": wrong}


def _try(net: torch.nn.Module, example: torch.Tensor, written: str) -> dict[str, Any]:
    """One format: what came of it."""
    begin_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            [file] = export(net, example, folder, (written,))
        except SubnetSearchError as error:
            return {"reason": str(error), "seconds": time.perf_counter() - begin_s}
    return {
        "bytes": file.bytes,
        "difference": file.max_abs_difference,
        "seconds": time.perf_counter() - begin_s,
    }
