"""What machine the numbers come from."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from subnet_search.measure.runtimes import RUNTIMES
from subnet_search.settings import DeviceSettings


def describe_target(profile: DeviceSettings) -> dict[str, Any]:
    """The profile of the target as plain data, with the version of its runtime."""
    return {**profile.model_dump(mode="json"), "version": RUNTIMES[profile.runtime].version()}


def describe_device() -> dict[str, Any]:
    """Processor, cores, threads, memory, accelerators, operating system and versions, as plain data."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
    }


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is done by the hardware there, in about half the time of fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 does not tell yet
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def processor(device: torch.device) -> str:
    """The name of the processor or the accelerator behind a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return None
