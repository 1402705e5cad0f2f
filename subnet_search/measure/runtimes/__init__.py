"""Where nets run and are timed: one file for each runtime, and the table that names them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.elastic.graph import Example
from subnet_search.measure.runtimes.base import (
    Arguments,
    Prepared,
    Runtime,
    check_agreement,
    fixed_arguments,
    quietly,
    raise_stop,
    reason_of,
    rejected,
)
from subnet_search.measure.runtimes.command import COMMAND
from subnet_search.measure.runtimes.compiled import COMPILED
from subnet_search.measure.runtimes.eager import EAGER
from subnet_search.measure.runtimes.executorch_xnnpack import EXECUTORCH
from subnet_search.measure.runtimes.onnx_files import ONNX
from subnet_search.measure.runtimes.openvino_cpu import OPENVINO
from subnet_search.settings import DeviceSettings, RuntimeName

RUNTIMES: dict[RuntimeName, Runtime] = {
    "torch": EAGER,
    "compile": COMPILED,
    "onnxruntime": ONNX,
    "openvino": OPENVINO,
    "executorch": EXECUTORCH,
    "command": COMMAND,
}
WRITTEN_BY: dict[str, RuntimeName] = {"onnx": "onnxruntime", "pte": "executorch"}  # needs what that one needs

__all__ = [
    "RUNTIMES",
    "WRITTEN_BY",
    "Arguments",
    "Prepared",
    "Runtime",
    "check_runtime",
    "open_file",
    "prepare",
]


def check_runtime(profile: DeviceSettings) -> None:
    """Raises `InvalidInput` where the profile's runtime, or what writes files for it, is not installed here."""
    names = [profile.runtime]
    if profile.runtime == "command" and profile.command_format in WRITTEN_BY:
        names.append(WRITTEN_BY[profile.command_format])
    for runtime in (RUNTIMES[name] for name in names):
        if missing := runtime.missing:
            raise InvalidInput(
                f'runtime = "{profile.runtime}" needs {", ".join(missing)}, not installed here; '
                f'pip install "subnet-search[{runtime.extra}]"'
            )


def prepare(net: nn.Module, example: Example, profile: DeviceSettings, folder: Path) -> Prepared:
    """Makes a net ready in the profile's runtime, and compares its answers with those of eager torch.

    Args:
        net: in evaluation mode; left untouched.
        example: its input; the first entry is repeated to the profile's batch.
        profile: runtime, threads, precision and so on.
        folder: for the files that the runtime reads; must live as long as what is returned.

    Raises:
        InvalidInput: the runtime is not installed, or does not have what the profile asks for.
        SubnetSearchError: the runtime rejects the net, or answers differently.
    """
    check_runtime(profile)
    arguments = fixed_arguments(net, example, profile)
    try:
        with quietly():
            prepared = RUNTIMES[profile.runtime].prepare(net, arguments, profile, folder)
            if profile.runtime != "torch":
                check_agreement(prepared, net, arguments, profile)
    except SubnetSearchError:
        raise
    except Exception as error:  # converters raise nearly anything
        raise_stop(error)
        raise rejected(profile, error) from error
    return prepared


def open_file(path: Path, profile: DeviceSettings) -> Prepared:
    """Makes a model file ready that was written elsewhere.

    Raises:
        InvalidInput: the runtime is not installed, or does not read files of that kind, or not this one.
    """
    check_runtime(profile)
    known = RUNTIMES[profile.runtime].open
    if path.suffix not in known:
        takers = [name for name, runtime in RUNTIMES.items() if path.suffix in runtime.open]
        way_out = f"; {', '.join(takers)} can" if takers else ""
        raise InvalidInput(
            f'the runtime "{profile.runtime}" does not read {path.name}{way_out}; give the folder of an exported '
            "sub-net, RUN/subnets/KEY, which every runtime can take"
        )
    try:
        with quietly():
            return known[path.suffix](path, profile)
    except SubnetSearchError:
        raise
    except Exception as error:  # runtimes raise nearly anything
        raise_stop(error)
        raise InvalidInput(
            f'the runtime "{profile.runtime}" cannot load {path}: {reason_of(error)}; write the file anew, or give the '
            "folder of an exported sub-net, RUN/subnets/KEY"
        ) from error
