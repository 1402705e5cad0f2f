"""Nets in several runtimes, each timed beside the whole network; runtimes that read ONNX share one file of a net."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from subnet_search.elastic.graph import Example
from subnet_search.measure.latency import CLOCKS, REFERENCE_PROTOCOL, LatencyMeter, clock_name
from subnet_search.measure.runtimes import Prepared, open_file, prepare
from subnet_search.measure.runtimes.base import check_agreement, fixed_arguments, quietly
from subnet_search.measure.runtimes.onnx_files import write_onnx
from subnet_search.measure.timing import Latency, Protocol, Turn, turns_alone, turns_beside
from subnet_search.settings import DeviceSettings, RuntimeName

READ_ONNX = ("onnxruntime", "openvino")
PROTOCOL = Protocol(narrow=0.01, most_rounds=200, most_seconds=1.2)


class Files:
    """A net in evaluation mode and its ONNX file, which is written once it is needed and gone with this object."""

    def __init__(self, net: nn.Module, example: Example) -> None:
        self.net, self.example = net.eval(), example
        self._folder = tempfile.TemporaryDirectory(prefix="subnet-")

    @cached_property
    def onnx(self) -> Path:
        """The file, with sizes fixed."""
        path = Path(self._folder.name) / "net.onnx"
        with quietly():
            write_onnx(self.net, fixed_arguments(self.net, self.example, DeviceSettings()), path)
        return path

    def prepared(self, profile: DeviceSettings) -> Prepared:
        """The net ready in a runtime, its answers those of eager torch."""
        if profile.runtime not in READ_ONNX:
            folder = Path(tempfile.mkdtemp(dir=self._folder.name))
            return prepare(self.net, self.example, profile, folder)
        prepared = open_file(self.onnx, profile)
        check_agreement(prepared, self.net, fixed_arguments(self.net, self.example, profile), profile)
        return prepared


class Target:
    """One runtime with one thread, and the whole network in it, beside which nets take turns.

    Attributes:
        timing: the profile and the whole network's latency.

    Args:
        runtime: its name.
        whole: the whole network.
        stored: `timing` of an earlier call; one of another machine or version is refused.
    """

    def __init__(self, runtime: RuntimeName, whole: Files, stored: Mapping[str, Any] | None) -> None:
        self._profile = DeviceSettings(name="cpu", runtime=runtime, threads=1)
        self._clock_s = CLOCKS[clock_name(self._profile, torch.device("cpu"))]
        self._whole = whole.prepared(self._profile)
        profile = LatencyMeter.profile_of(whole.net, self._profile)
        if stored is not None and stored["profile"] != profile:
            raise SystemExit(f"stored times are of {stored['profile']}, this is {profile}: move them away")
        known = stored["reference"] if stored else asdict(self._alone())
        self.timing = {"profile": profile, "reference": known}

    def _alone(self) -> Latency:
        with torch.inference_mode():
            turn = self._whole.turn(REFERENCE_PROTOCOL, self._clock_s)
            return turns_alone(turn, np.random.default_rng(0), REFERENCE_PROTOCOL, self._clock_s)

    def of(self, net: Files, seed: int) -> Latency:
        """The latency of a net; whatever a runtime raises that rejects it."""
        prepared, rng = net.prepared(self._profile), np.random.default_rng(seed)
        with torch.inference_mode():
            ours, whole = (self._turn(one) for one in (prepared, self._whole))
            whole_ms = self.timing["reference"]["median_ms"]
            return turns_beside(ours, whole, whole_ms, rng, PROTOCOL, self._clock_s)

    def _turn(self, prepared: Prepared) -> Turn:
        return prepared.turn(PROTOCOL, self._clock_s)
