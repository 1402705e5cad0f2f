"""What a runtime makes of a net, and what all runtimes need: inputs, packages, agreement with eager torch."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.batches import device_of
from subnet_search.elastic.graph import Example, at_batch_one, call_arguments
from subnet_search.elastic.image_size import as_taken, resized
from subnet_search.measure.timing import Call, CallTurn, Clock, Protocol, Turn
from subnet_search.settings import DeviceSettings

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional and named ones of a net's forward

TOLERANCE = {
    "fp32": 1e-3,
    "bf16": 0.2,
}  # of answers, relative to the largest one; int8 may answer anything finite
USUAL = Protocol()
SMALLEST_SCALE = 1e-3  # answers of untrained nets may be tiny


@dataclass(frozen=True, slots=True)
class Prepared:
    """A net that a runtime holds ready.

    Attributes:
        turn: makes what is timed, warmed up.
        answers: all tensors that the net answers to arguments of the example's sizes; None where nobody sees them.
        file: what the runtime read; None where it took the net from memory.
    """

    turn: Callable[[Protocol, Clock], Turn]
    answers: Callable[[Arguments], list[Tensor]] | None = None
    file: Path | None = None

    @property
    def file_bytes(self) -> int | None:
        """The size of what the runtime read; None without a file.

        With it the weights in a file of their own: NAME.onnx.data of NAME.onnx, NAME.bin of NAME.xml.
        """
        if self.file is None:
            return None
        weights = self.file.with_suffix(".bin" if self.file.suffix == ".xml" else f"{self.file.suffix}.data")
        return sum(part.stat().st_size for part in (self.file, weights) if part.exists())


Prepare = Callable[[nn.Module, Arguments, DeviceSettings, Path], Prepared]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Something that runs nets.

    Attributes:
        prepare: makes a net in evaluation mode ready for arguments of fixed sizes; files go into the folder.
        version: name and version, for the record.
        open: makes a model file ready that was written elsewhere, by its suffix.
        packages: must be there to be imported.
        extra: of this distribution, that brings them.
        protocol: how much is measured, where nobody says otherwise.
        own_clock: it tells its times itself.
    """

    prepare: Prepare
    version: Callable[[], str]
    open: dict[str, Callable[[Path, DeviceSettings], Prepared]]
    packages: tuple[str, ...] = ()
    extra: str = ""
    protocol: Protocol = USUAL
    own_clock: bool = False

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed here."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


def in_this_process(call: Call) -> Callable[[Protocol, Clock], Turn]:
    """Turns of a call in this process."""
    return lambda protocol, clock_s: CallTurn(call, protocol, clock_s)


def fixed_arguments(net: nn.Module, example: Example, profile: DeviceSettings) -> Arguments:
    """The first entry of the example as the profile's batch, in the size that the net takes, on its device."""
    device = device_of(net)

    def repeated(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        return value.detach().repeat(profile.batch_size, *[1] * (value.ndim - 1)).to(device)

    args, kwargs = call_arguments(at_batch_one(_at_height(example, profile.input_px)))
    taken: Arguments = tree_map(repeated, as_taken(net, (args, kwargs)))
    return taken


def _at_height(example: Example, height: int | None) -> Example:
    """The example with images of this height, as wide as they are now for theirs."""
    if height is None:
        return example
    images = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor) and leaf.ndim == 4]
    if not images:
        raise InvalidInput(
            f"input_px = {height} needs a network that takes images [B, C, H, W]; leave input_px out"
        )
    high, wide = images[0].shape[-2:]
    return resized(example, (height, max(round(height * wide / high), 1)))


def tensors_of(arguments: Arguments) -> list[Tensor]:
    """The tensors among the arguments, in the order in which an exported file takes them."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def check_agreement(
    prepared: Prepared, net: nn.Module, arguments: Arguments, profile: DeviceSettings
) -> None:
    """Raises `SubnetSearchError` where the runtime's answers to noise are not those of the net in eager torch."""
    if prepared.answers is None:
        return
    generator = torch.Generator().manual_seed(0)

    def noise(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        return torch.randn(value.shape, generator=generator).to(value)

    inputs: Arguments = tree_map(noise, arguments)
    with torch.no_grad():
        answer = net(*inputs[0], **inputs[1])
    wanted = [leaf.float().cpu() for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
    found = [leaf.float().cpu() for leaf in prepared.answers(inputs)]
    if [t.shape for t in found] != [t.shape for t in wanted]:
        raise SubnetSearchError(
            f'the runtime "{profile.runtime}" answers in other shapes, {[list(t.shape) for t in found]}, than the net '
            f"does in torch, {[list(t.shape) for t in wanted]}"
        )
    scale = max([float(t.abs().max()) for t in wanted] + [SMALLEST_SCALE])
    worst = max((float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)), default=0.0)
    if not worst <= TOLERANCE.get(profile.precision, float("inf")) * scale:
        raise SubnetSearchError(
            f'the runtime "{profile.runtime}" in {profile.precision} answers differently than torch, by '
            f"{worst / scale:.2g} of the largest answer"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps what libraries log, in Python and below, off the terminal; errors are raised all the same."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.disable(disabled)


def rejected(profile: DeviceSettings, error: BaseException) -> SubnetSearchError:
    """The net does not run there; what is at the bottom of the error says why."""
    return SubnetSearchError(f'the runtime "{profile.runtime}" does not run this net: {reason_of(error)}')


def raise_stop(error: BaseException) -> None:
    """Raises the Ctrl-C that an error hides: converters that it stops fail while they clean up.

    That would pass for a net that the runtime rejects, and be kept as such.
    """
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if isinstance(one, KeyboardInterrupt):
            raise one
        if one is not None:
            left += [one.__cause__, one.__context__]


def reason_of(error: BaseException) -> str:
    """The first line of what is at the bottom of an error, places in a runtime's source left out."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = [line.strip() for line in lines if line.strip() and not line.rstrip().endswith(":")]
    return (told or lines)[0].removesuffix(".")[:300]
