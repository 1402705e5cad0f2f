"""What of this installation works: versions against their floors, devices, and runtimes that are really tried."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

DISTRIBUTION = "subnet-search"
IMPORT_NAMES = {"scikit-learn": "sklearn", "pillow": "PIL", "pytest-xdist": "xdist"}
ADDS = {
    "onnx": 'the export format "onnx", and latencies in ONNX Runtime',
    "openvino": "latencies in OpenVINO",
    "executorch": "latencies in ExecuTorch with XNNPACK",
    "ray": "searches and trials on Ray workers and clusters",
    "timm": 'networks of timm by name, "timm:NAME"',
    "storage": "studies that several searches share on PostgreSQL or MySQL",
    "dev": "what tests and static checks need",
}
OLDEST_PYTHON = (3, 11)

Status = Literal["ok", "old", "missing", "broken"]
MARKS: dict[Status, str] = {"ok": "ok", "old": "too old", "missing": "not there", "broken": "does not work"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `needed` says whether nothing goes without it."""

    area: Literal["packages", "devices", "runtimes", "extras"]
    name: str
    status: Status
    detail: str
    needed: bool = True


def examine() -> list[Check]:
    """Looks at everything; what fails is part of the answer."""
    return [*_packages(), *_devices(), *_runtimes(), *_extras()]


def works(checks: list[Check]) -> bool:
    """Whether all that is needed is there and works."""
    return all(check.status == "ok" for check in checks if check.needed)


def to_json(checks: list[Check]) -> dict[str, Any]:
    """The checks as plain data, and whether the basics work."""
    return {"works": works(checks), "checks": [asdict(check) for check in checks]}


def table(checks: list[Check]) -> str:
    """The checks for people, by area, and a last line that sums up."""
    lines: list[str] = []
    width = max(len(check.name) for check in checks)
    for area in dict.fromkeys(check.area for check in checks):
        lines.append(f"{area}:")
        for check in (check for check in checks if check.area == area):
            lines.append(f"  {check.name:<{width}}  {MARKS[check.status]:<13}  {check.detail}".rstrip())
    bad = [check.name for check in checks if check.needed and check.status != "ok"]
    lines.append(f"the basics do not work: {', '.join(bad)}" if bad else "the basics work")
    return "\n".join(lines)


def _packages() -> Iterator[Check]:
    version, floor = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
    yield Check(
        "packages", "python", "ok" if _numbers(version) >= OLDEST_PYTHON else "old", f"{version} (>= {floor})"
    )
    needed = [(name, floor) for name, floor, extra in requirements() if not extra]
    for name, floor in needed:
        yield Check("packages", name, *_package(name, floor))
    if not needed:
        yield Check("packages", DISTRIBUTION, "missing", "not installed, so its requirements are not known")


def _extras() -> Iterator[Check]:
    names = dict.fromkeys(extra for _, _, extra in requirements() if extra)
    for extra in names:
        found = {name: _package(name, floor) for name, floor, of in requirements() if of == extra}
        bad = {name: (status, told) for name, (status, told) in found.items() if status != "ok"}
        worst: Status = next((status for status, _ in bad.values()), "ok")
        lacking = ", ".join(f"{name} {told}" for name, (_, told) in bad.items())
        way_out = f'; lacks {lacking}: pip install "{DISTRIBUTION}[{extra}]"' if bad else ""
        yield Check("extras", f"[{extra}]", worst, f"{ADDS.get(extra, '')}{way_out}", needed=False)


def requirements() -> list[tuple[str, str, str]]:
    """What this distribution names: triples of package, least version and extra ("" for what is always needed)."""
    found = []
    try:
        listed = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    for text in listed:
        name, floor, extra = (
            re.search(p, text) for p in (r"^[\w.-]+", r">=([\d.]+)", r"extra == ['\"](\w+)")
        )
        if name and name[0] != DISTRIBUTION:
            found.append((name[0], floor[1] if floor else "0", extra[1] if extra else ""))
    return found


def _package(name: str, floor: str) -> tuple[Status, str]:
    wanted = f"(>= {floor})"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing", wanted
    if _numbers(version) < _numbers(floor):
        return "old", f"{version} {wanted}"
    if not name.startswith("types-"):
        try:
            importlib.import_module(IMPORT_NAMES.get(name, name.replace("-", "_")))
        except Exception as error:  # a broken installation raises anything
            return "broken", f"{version}: {_reason(error)}"
    return "ok", f"{version} {wanted}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))[:3]


def _devices() -> Iterator[Check]:
    try:
        import torch

        from subnet_search.measure import describe_device

        about = describe_device()
        memory = f", {about['memory_gib']} GiB" if about["memory_gib"] else ""
        detail = f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads of torch{memory}"
        yield Check("devices", "cpu", "ok", detail)
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for place in range(count):
            properties = torch.cuda.get_device_properties(place)
            detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            yield Check("devices", f"cuda:{place}", "ok", detail, needed=False)
        if not count:
            yield Check("devices", "cuda", "missing", "torch finds no CUDA device", needed=False)
    except Exception as error:  # without torch nothing can be said
        yield Check("devices", "cpu", "broken", _reason(error))


def _runtimes() -> Iterator[Check]:
    yield _tried("torch on the cpu", "matrix product, convolution, gradient", lambda: try_torch("cpu"))
    yield _tried("torchvision operators", "non-maximum suppression", _try_torchvision)
    yield _tried("export to safetensors", "written, read back, compared", lambda: _try_export("safetensors"))
    yield _tried("export to pt2", "written, read back, compared", lambda: _try_export("pt2"))
    if importlib.util.find_spec("torch") and _has_cuda():
        yield _tried(
            "torch on cuda", "matrix product, convolution, gradient", lambda: try_torch("cuda"), needed=False
        )
    if importlib.util.find_spec("onnxruntime"):
        yield _tried(
            "onnxruntime", "a network written, run, compared", lambda: _try_export("onnx"), needed=False
        )


def _tried(name: str, what: str, attempt: Callable[[], None], *, needed: bool = True) -> Check:
    try:
        attempt()
    except Exception as error:  # whatever a broken runtime raises
        return Check("runtimes", name, "broken", _reason(error), needed)
    return Check("runtimes", name, "ok", what, needed)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def try_torch(device: str) -> None:
    """Raises `ArithmeticError` unless a product, a convolution and its gradient come out as they must."""
    import torch

    eye = torch.eye(64, device=device)
    images = torch.ones(2, 3, 8, 8, device=device, requires_grad=True)
    summed = torch.nn.functional.conv2d(images, torch.ones(4, 3, 3, 3, device=device))  # 3 x 3 x 3 ones each
    summed.sum().backward()
    right = bool((eye @ eye == eye).all()) and bool((summed == 27).all())
    if images.grad is None or not right or images.grad[0, 0, 4, 4].item() != 36:  # 4 channels x 9 windows
        raise ArithmeticError(f"wrong results on {device}")


def _try_torchvision() -> None:
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
    if nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() != [0, 2]:
        raise ArithmeticError("wrong results")


def _try_export(name: str) -> None:
    import torch

    from subnet_search.exporting import export

    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )
    with tempfile.TemporaryDirectory() as folder:
        export(net, torch.ones(1, 1, 4, 4), folder, (name,))


def _reason(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
