"""Runtimes against eager torch; a command against what it is told to print."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import InvalidInput, SubnetSearchError
from subnet_search.elastic.padding import PaddedShortcut
from subnet_search.measure import LatencyMeter, measure_nets
from subnet_search.measure.runtimes import RUNTIMES, check_runtime, open_file, prepare
from subnet_search.measure.runtimes.base import (
    Prepared,
    check_agreement,
    fixed_arguments,
    in_this_process,
    reason_of,
)
from subnet_search.measure.timing import Latency, Protocol
from subnet_search.settings import PRECISIONS, DeviceSettings
from tests.small import EXAMPLE, small_net, small_supernet

QUICK = Protocol(least_rounds=3, most_rounds=3, warmup=1, turn_ms=0.01)
ALL = [(name, precision) for name in RUNTIMES if name != "command" for precision in PRECISIONS[name]]
SLOW = [one for one in ALL if one[0] != "torch" and one != ("compile", "bf16")]  # its bf16 is that of torch


def profile_of(runtime: str, **more: object) -> DeviceSettings:
    """One thread on the CPU."""
    return DeviceSettings(name="cpu", runtime=runtime, threads=1, **more)


def padded_net() -> nn.Module:
    """Convolutions around a shortcut that reads channels by their number, -1 among them."""
    torch.manual_seed(0)
    around = (nn.Conv2d(1, 8, 3), PaddedShortcut(8, 12, stride=2), nn.Conv2d(12, 8, 3))
    return nn.Sequential(*around, nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)).eval()


def test_the_table_names_what_settings_know() -> None:
    assert RUNTIMES.keys() == PRECISIONS.keys()


@pytest.mark.parametrize(("runtime", "precision"), [("torch", "fp32"), ("torch", "bf16")])
def test_torch_answers_in_the_precision_asked_for(runtime: str, precision: str, tmp_path: Path) -> None:
    net = small_net().eval()
    prepared = prepare(net, EXAMPLE, profile_of(runtime, precision=precision), tmp_path)
    [found] = prepared.answers(fixed_arguments(net, EXAMPLE, DeviceSettings()))  # type: ignore[misc]
    assert found.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    torch.testing.assert_close(found.float(), net(EXAMPLE[:1]), rtol=0.1, atol=0.05)
    assert next(net.parameters()).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "precision"), SLOW)
def test_every_runtime_computes_what_torch_computes(runtime: str, precision: str, tmp_path: Path) -> None:
    if RUNTIMES[runtime].missing:  # type: ignore[index]
        pytest.skip(f"{runtime} is not installed")
    net, profile = padded_net(), profile_of(runtime, precision=precision, batch_size=2)
    prepared = prepare(net, EXAMPLE, profile, tmp_path)
    args, _ = fixed_arguments(net, torch.rand_like(EXAMPLE[:1]), profile)
    [found] = prepared.answers((args, {}))  # type: ignore[misc]
    loose = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.5}[precision]
    with torch.no_grad():
        wanted = net(*args)
    assert (found.float() - wanted).abs().max() <= loose * wanted.abs().max()
    if runtime != "compile":
        weights = sum(p.numel() for p in net.parameters())
        assert (prepared.file_bytes or 0) > weights * (1 if precision == "int8" else 4)
    turn = prepared.turn(QUICK, time.perf_counter)
    assert turn(2) > 0


@pytest.mark.slow
def test_subnets_are_measured_in_another_runtime() -> None:
    if RUNTIMES["openvino"].missing:
        pytest.skip("openvino is not installed")
    supernet = small_supernet()
    configs = [supernet.space.smallest(), supernet.space.largest()]
    small, large = measure_nets(supernet, configs, profile_of("openvino"), protocol=QUICK)
    assert small.latency is not None
    assert large.latency is not None
    assert (small.file_bytes or 0) < (large.file_bytes or 0)


class Sorts(nn.Module):
    """Has an operator that ONNX, among others, does not."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 3:  # no exporter follows this
            return x
        return torch.sort(x.flatten(1))[0]


def test_what_a_runtime_rejects_is_reported_for_that_net_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet = small_supernet()
    space = supernet.space
    configs = [space.smallest(), *space.sample(np.random.default_rng(0), 2)]
    eager = RUNTIMES["torch"].prepare

    def picky(net: nn.Module, *rest: object) -> Prepared:
        if sum(p.numel() for p in net.parameters()) == supernet.costs.params(space.encode(configs[:1]))[0]:
            raise RuntimeError("operator 'sort' is not implemented.\nstack of the converter")
        return eager(net, *rest)  # type: ignore[arg-type]

    monkeypatch.setitem(RUNTIMES, "torch", RUNTIMES["torch"].__class__(picky, lambda: "picky", {}))
    found = list(measure_nets(supernet, configs, profile_of("torch"), protocol=QUICK))
    assert [one.config for one in found] == [space.canonical(config) for config in configs]
    assert found[0].latency is None
    assert (
        found[0].reason == "the runtime \"torch\" does not run this net: operator 'sort' is not implemented"
    )
    assert all(one.latency is not None and one.latency.median_ms > 0 for one in found[1:])


def test_ctrl_c_in_a_converter_is_no_rejection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(*anything: object) -> Prepared:
        try:
            try:
                raise KeyboardInterrupt
            finally:
                raise AssertionError("a stack that is empty")  # while it cleans up
        except AssertionError as error:
            raise RuntimeError("conversion failed") from error

    changed = RUNTIMES["torch"].__class__(stopped, lambda: "torch", {".onnx": stopped})
    monkeypatch.setitem(RUNTIMES, "torch", changed)
    with pytest.raises(KeyboardInterrupt):
        prepare(small_net().eval(), EXAMPLE, profile_of("torch"), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        open_file(tmp_path / "net.onnx", profile_of("torch"))


@pytest.mark.slow
def test_an_operator_that_the_converter_does_not_know_is_the_reason() -> None:
    if RUNTIMES["onnxruntime"].missing:
        pytest.skip("onnxruntime is not installed")
    with pytest.raises(
        InvalidInput, match='whole network cannot be timed: the runtime "onnxruntime" does not run'
    ):
        LatencyMeter(Sorts().eval(), EXAMPLE, profile_of("onnxruntime"))


@pytest.mark.parametrize(("name", "size"), [("a.onnx", 1 + 10), ("a.xml", 100 + 1000), ("a.pte", 10000)])
def test_the_size_is_that_of_the_file_and_its_own_weights(name: str, size: int, tmp_path: Path) -> None:
    for place, beside in enumerate(("a.onnx", "a.onnx.data", "a.xml", "a.bin", "a.pte", "a.txt")):
        (tmp_path / beside).write_bytes(bytes(10**place))
    turn = in_this_process(lambda: None)
    assert Prepared(turn, file=tmp_path / name).file_bytes == size
    assert Prepared(turn).file_bytes is None


def test_a_runtime_that_answers_differently_is_refused() -> None:
    net, profile = small_net().eval(), profile_of("openvino")
    arguments = fixed_arguments(net, EXAMPLE, profile)
    turn = in_this_process(lambda: None)
    with pytest.raises(SubnetSearchError, match="answers differently than torch, by"):
        check_agreement(Prepared(turn, lambda given: [net(*given[0]) * 1.01]), net, arguments, profile)
    with pytest.raises(
        SubnetSearchError, match=r"in other shapes, \[\], than the net does in torch, \[\[1, "
    ):
        check_agreement(Prepared(turn, lambda given: []), net, arguments, profile)
    check_agreement(Prepared(turn, lambda given: [net(*given[0])]), net, arguments, profile)


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InvalidInput, match=r'"openvino" needs openvino, not installed here; pip install .*\[openvino\]'
    ):
        check_runtime(profile_of("openvino"))
    with pytest.raises(InvalidInput, match=r"needs executorch.*\[executorch\]"):
        check_runtime(DeviceSettings(runtime="command", command="x {file}", command_format="pte"))
    check_runtime(profile_of("torch"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "name"), [("onnxruntime", "net.onnx"), ("openvino", "net.onnx"), ("executorch", "net.pte")]
)
def test_a_corrupt_file_is_refused_with_its_name(runtime: str, name: str, tmp_path: Path) -> None:
    if RUNTIMES[runtime].missing:  # type: ignore[index]
        pytest.skip(f"{runtime} is not installed")
    (tmp_path / name).write_text("no model")
    with pytest.raises(InvalidInput, match=rf'"{runtime}" cannot load .*{name}: .*[^:]; write the file anew'):
        open_file(tmp_path / name, profile_of(runtime))


def test_the_reason_is_what_the_bottom_of_an_error_says() -> None:
    cause = RuntimeError(
        "Exception from src/core.cpp:84:\nException from model.cpp:9:\n\nNo such operator.\n"
    )
    error = ValueError("conversion failed")
    error.__cause__ = cause
    assert reason_of(error) == "No such operator"
    assert reason_of(KeyError()) == "KeyError"
    assert reason_of(RuntimeError("only a place:")) == "only a place:"


def test_images_are_of_the_height_asked_for() -> None:
    seen = list[torch.Size]()

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape)
            return x

    wide = torch.zeros(1, 3, 8, 12)
    meter = LatencyMeter(
        Looks(),
        wide,
        profile_of("torch", input_px=32, batch_size=2),
        known=Latency(1.0, 1.0, 1.0, 1),
        protocol=QUICK,
    )
    meter(Looks())
    assert set(seen) == {torch.Size([2, 3, 32, 48])}
    assert meter.profile["input_px"] == 32
    with pytest.raises(InvalidInput, match="needs a network that takes images"):
        fixed_arguments(Looks(), torch.zeros(1, 3), profile_of("torch", input_px=32))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"runtime": "openvino", "precision": "int8"}, 'must be what the runtime "openvino" has, fp32, bf16'),
        ({"runtime": "command"}, 'command must be given for runtime = "command"'),
        (
            {"runtime": "torch", "command": "bench {file}"},
            'command must be given for runtime = "command", and only',
        ),
        ({"runtime": "command", "command": "bench"}, "must say where the file goes"),
        ({"runtime": "openvino", "name": "cuda"}, 'must be "torch" or "compile" on a CUDA device'),
        ({"runtime": "tflite"}, "runtime should be"),
    ],
)
def test_profiles_that_cannot_be_are_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        DeviceSettings(**given)
