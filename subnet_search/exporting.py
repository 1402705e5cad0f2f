"""Writes a plain net in formats that other programs read, and checks each file against the net in memory."""

from __future__ import annotations

import copy
import importlib.util
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from search_spaces import InvalidInput, SubnetSearchError, nearest_names
from subnet_search.elastic.image_size import as_taken
from subnet_search.elastic.operations.source import built_again, source_of
from subnet_search.measure import check_calibrated
from subnet_search.measure.counter import Example, call
from subnet_search.measure.runtimes.onnx_files import open_session, session_answers, write_onnx
from subnet_search.models import load_weights
from subnet_search.record.atomic import telling_what_failed, write_whole

TRACED_BATCH = 2  # a batch of one would be taken for a constant
CHECKED_BATCH = 3  # another one, so that a batch size that was written down is noticed
TOLERANCE = 1e-4  # relative to the largest output: another runtime adds up in another order

Reload = Callable[[Example], Any]  # calls what was read back from the file


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written, its size, and how far its answers are from the net's."""

    format: str
    path: Path
    bytes: int
    max_abs_difference: float


def export(
    net: nn.Module,
    example: Example,
    folder: str | Path,
    formats: Sequence[str] = ("safetensors", "pt2"),
) -> list[Exported]:
    """Writes `net` into `folder` as `net.<format>`, each file whole or not at all.

    Every file takes any batch size, is read back at once and compared with the net in evaluation mode. A
    `.pt2` holds no sample inputs, which would be a pickle. Beside the weights of a sub-net in graph form its source
    is written, `model.py`, in the list as format "source"; `from model import SubNet` and `load_state_dict` make the
    net again.

    Args:
        net: a calibrated plain net; left untouched.
        example: its input, a tensor `[B, ...]`, positional arguments or named ones; the batch comes first. Images are
            resized for a sub-net that takes smaller ones, as the files will.
        folder: made if missing.
        formats: of "safetensors" (weights alone), "pt2" (torch.export), "onnx" (needs the extra [onnx]).

    Raises:
        InvalidInput: an uncalibrated net, or a format that is unknown or not installed.
        SubnetSearchError: the net cannot be expressed in a format, or the file read back answers differently.
    """
    check_calibrated(net, "exported")
    check_formats(formats)
    plain, example = copy.deepcopy(net).cpu().eval(), as_taken(net, example)
    inputs, outputs = _compared(plain, example)
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = []
    for name in formats:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / f"net.{name}"
            try:
                with telling_what_failed(path):
                    reload = FORMATS[name](plain, _batched(example, TRACED_BATCH), path)
                difference = _difference(reload(inputs), outputs)
            except SubnetSearchError:
                raise
            except Exception as error:  # exporters raise nearly anything
                raise SubnetSearchError(
                    f'{type(net).__name__} cannot be written as "{name}": {_reason(error)}. Leave that format out'
                ) from error
            if not difference <= TOLERANCE * max(1.0, _scale(outputs)):
                raise SubnetSearchError(
                    f'the file written as "{name}" answers differently by {difference:.3g}; leave it out'
                )
            final = path.replace(Path(folder) / path.name)
        written.append(Exported(name, final, final.stat().st_size, difference))
        if name == "safetensors" and (source := source_of(net)) is not None:
            final = final.with_name("model.py")
            with telling_what_failed(final):
                write_whole(final, source.encode())
            written.append(Exported("source", final, final.stat().st_size, difference))
    return written


def _reason(error: BaseException) -> str:
    """What went wrong at the bottom: exporters wrap it into advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")


def _write_safetensors(net: nn.Module, example: Example, path: Path) -> Reload:
    # cloned: tied weights share memory, which the format refuses
    save_file({name: t.detach().clone().contiguous() for name, t in net.state_dict().items()}, path)
    source = source_of(net)
    fresh = copy.deepcopy(net) if source is None else built_again(net, source).eval()
    return _caller(load_weights(fresh, path))


def _write_pt2(net: nn.Module, example: Example, path: Path) -> Reload:
    args, kwargs = _arguments(example)
    program = torch.export.export(net, args, kwargs, dynamic_shapes=_any_batch(example))
    program.example_inputs = None
    content = io.BytesIO()  # written by ourselves: the exporter says of a full disk only that it failed
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())
    return _caller(torch.export.load(path).module())


def _write_onnx(net: nn.Module, example: Example, path: Path) -> Reload:
    write_onnx(net, _arguments(example), path, _any_batch(example))
    answers = session_answers(open_session(path))
    return lambda inputs: answers(_arguments(inputs))


FORMATS: dict[str, Callable[[nn.Module, Example, Path], Reload]] = {
    "safetensors": _write_safetensors,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}


def check_formats(names: Sequence[str]) -> None:
    """Raises `InvalidInput` for a format that is unknown, or needs what is not installed here."""
    for name in names:
        if name not in FORMATS:
            raise InvalidInput(
                f"unknown format {name!r}{nearest_names(name, FORMATS)}; known are {', '.join(FORMATS)}"
            )
        needed = ("onnx", "onnxruntime", "onnxscript") if name == "onnx" else ()
        missing = [package for package in needed if not importlib.util.find_spec(package)]
        if missing:
            raise InvalidInput(
                f'format "{name}" needs {", ".join(missing)}, not installed here; '
                f'pip install "subnet-search[{name}]"'
            )


def _arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


def _any_batch(example: Example) -> Any:
    """The same free first dimension for every tensor, in the nesting that torch.export wants."""
    batch = torch.export.Dim("batch")
    args, kwargs = _arguments(example)
    return tree_map(lambda value: {0: batch} if isinstance(value, Tensor) else None, kwargs or args)


def _batched(example: Example, size: int) -> Example:
    """The example's first entry, repeated."""

    def repeat(value: Any) -> Any:
        return (
            value.detach().cpu()[:1].repeat(size, *[1] * (value.ndim - 1))
            if isinstance(value, Tensor)
            else value
        )

    repeated: Example = tree_map(repeat, example)
    return repeated


def _compared(net: nn.Module, example: Example) -> tuple[Example, list[Tensor]]:
    """Inputs of their own for the comparison, noise around the example, and the net's answers to them."""
    generator = torch.Generator().manual_seed(0)

    def vary(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return value + torch.randn(value.shape, generator=generator, dtype=value.dtype)

    inputs: Example = tree_map(vary, _batched(example, CHECKED_BATCH))
    return inputs, _caller(net)(inputs)


def _caller(net: nn.Module) -> Callable[[Example], list[Tensor]]:
    def answer(inputs: Example) -> list[Tensor]:
        with torch.no_grad():
            return [value for value in tree_leaves(call(net, inputs)) if isinstance(value, Tensor)]

    return answer


def _difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return float("inf")
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


def _scale(tensors: list[Tensor]) -> float:
    return max(float(tensor.abs().max()) for tensor in tensors)
