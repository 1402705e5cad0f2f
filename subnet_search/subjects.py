"""What can be compared on a target: a net with an example, or a file that a runtime reads."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.batches import device_of, resolve_device
from subnet_search.elastic.graph import first_line
from subnet_search.measure.runtimes import Prepared, open_file, prepare
from subnet_search.measure.subnet_latency import profile_device
from subnet_search.modes import evaluation_mode
from subnet_search.pipeline import read_settings
from subnet_search.rebuilding import NETWORK, load_subnet
from subnet_search.record import open_run
from subnet_search.settings import DeviceSettings
from subnet_search.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Subject:
    """A net with an example, or a file that a runtime reads."""

    name: str
    path: Path
    net: nn.Module | None = None
    example: Tensor | None = None

    def prepare(self, profile: DeviceSettings, folder: Path) -> Prepared:
        """Ready in a runtime; a file stays where it is."""
        if self.net is None or self.example is None:
            return open_file(self.path, profile)
        with naming(self.name):
            return prepare(self.net, self.example, profile, folder)

    def prepare_again(self, ready: Prepared, profile: DeviceSettings, folder: Path) -> Prepared:
        """Ready once more, at other places in memory."""
        if ready.file is not None:
            return open_file(ready.file, profile)
        return replace(self, net=copy.deepcopy(self.net)).prepare(profile, folder)


def load_subject(
    path: str | Path, profile: DeviceSettings, input_shape: tuple[int, ...] | None = None
) -> Subject:
    """The net or file behind a name on the command line.

    Raises:
        InvalidInput: there is nothing that can be compared.
    """
    path = Path(path)
    if path.is_file():
        return Subject(path.name, path)
    device = resolve_device(profile_device(profile))
    if (path / NETWORK).is_file():
        run = path.resolve().parents[1]
        return _tried(Subject(path.name, path, load_subnet(path).to(device), _example(run, input_shape)))
    if (path / "settings.toml").is_file():
        with open_run(path, write=False) as opened:
            bench = Workbench(opened, read_settings(opened), lambda message: None)
            net = bench.new_model().to(device).eval()
            return _tried(Subject(f"{path.name} (whole)", path, net, _example(path, input_shape)))
    raise InvalidInput(
        f"{path} is no exported sub-net (RUN/subnets/KEY), no run folder and no model file; compare needs two of these"
    )


def _tried(subject: Subject) -> Subject:
    """The same, once its net has taken its example."""
    assert subject.net is not None
    assert subject.example is not None
    try:
        with torch.no_grad(), evaluation_mode(subject.net):
            subject.net(subject.example.to(device_of(subject.net)))
    except Exception as error:  # whatever a forward raises
        shape = "x".join(map(str, subject.example.shape[1:]))
        raise InvalidInput(
            f"{subject.name} does not take an input of {shape}: {first_line(error)}; leave --input out, or give the "
            "size that the net is for"
        ) from error
    return subject


def _example(run: Path, input_shape: tuple[int, ...] | None) -> Tensor:
    if input_shape is not None:
        return torch.zeros(1, *input_shape)
    if not (run / "settings.toml").is_file():
        raise InvalidInput(
            f"{run} is no run folder, so the size of an image is not known; say --input 3x224x224"
        )
    with open_run(run, write=False) as opened:
        return Workbench(opened, read_settings(opened), lambda message: None).example


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Without all that was to be compared there is no answer, so a net that cannot be timed is a refused input."""
    try:
        yield
    except InvalidInput:
        raise
    except SubnetSearchError as error:
        raise InvalidInput(f"{name} cannot be timed: {error}") from error
