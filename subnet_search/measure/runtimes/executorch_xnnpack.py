"""ExecuTorch on the CPU: what XNNPACK takes runs there, the rest in portable kernels."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.measure.runtimes.base import Arguments, Prepared, Runtime, in_this_process, tensors_of
from subnet_search.settings import DeviceSettings

FLOAT = 6  # of torch's numbers for types


def write_pte(net: nn.Module, arguments: Arguments, path: Path) -> None:
    """Writes a net in evaluation mode for arguments of these sizes, lowered to XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    args, kwargs = arguments
    exported = torch.export.export(net, args, kwargs)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(program.buffer)


def prepare(net: nn.Module, arguments: Arguments, profile: DeviceSettings, folder: Path) -> Prepared:
    """The net as a .pte file for these sizes. Threads are set for all of ExecuTorch in this process."""
    path = folder / "net.pte"
    write_pte(net, arguments, path)
    return _ready(path, [tensor.cpu().contiguous() for tensor in tensors_of(arguments)], profile)


def open_pte(path: Path, profile: DeviceSettings) -> Prepared:
    """A file that was written elsewhere, with zeros for its inputs."""
    known = _loaded(path, profile).metadata
    metas = [known.input_tensor_meta(i) for i in range(known.num_inputs())]
    if any(meta.dtype() != FLOAT for meta in metas):
        raise InvalidInput(
            f"{path} takes inputs that are not float32, which only their maker knows how to fill"
        )
    return _ready(path, [torch.zeros(meta.sizes()) for meta in metas], profile)


def _ready(path: Path, inputs: list[Tensor], profile: DeviceSettings) -> Prepared:
    method = _loaded(path, profile)

    def answers(given: Arguments) -> list[Tensor]:
        found = method.execute([tensor.cpu().contiguous() for tensor in tensors_of(given)])
        return [tensor.clone() for tensor in found if isinstance(tensor, Tensor)]

    return Prepared(in_this_process(lambda: method.execute(inputs)), answers, path)


def _loaded(path: Path, profile: DeviceSettings) -> Any:
    """The file's method `forward`, ready to be executed."""
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime as ExecuTorch

    threads = profile.threads or torch.get_num_threads()
    if portable_lib._threadpool_get_thread_count() != threads:
        portable_lib._unsafe_reset_threadpool(threads)
    return ExecuTorch.get().load_program(path).load_method("forward")


EXECUTORCH = Runtime(
    prepare, lambda: f"executorch {version('executorch')}", {".pte": open_pte}, ("executorch",), "executorch"
)
