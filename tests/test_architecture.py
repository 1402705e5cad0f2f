"""Who may import whom; what may import torch; what the distribution holds."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["search_spaces", "predictors", "subnet_search", "reports"]  # each imports only earlier ones
ROOMS = [  # of subnet_search: each imports itself and earlier rows
    {"settings", "record", "progress", "factories", "memory", "modes", "deadline", "exits"},
    {"recipe", "models", "data", "elastic", "searchers", "seeding", "batches", "small_models", "workers"},
    {"ranking", "training", "measure"},
    {
        "dynamic",
        "finetuning",
        "exporting",
        "rebuilding",
        "planning",
        "standing",
        "path_tuning",
        "path_files",
        "paths",
        "subnet_sets",
    },
    {
        "kit_results",
        "kit_boards",
        "measuring",
        "comparing",
        "subjects",
        "profiling",
        "aligning",
        "remeasuring",
        "choosing",
        "workbench",
        "fronts",
        "stages",
        "pipeline",
        "run_evaluator",
        "tuning",
        "trials",
    },
    {
        "estimating",
        "timed",
        "doctor",
        "ranks",
        "deciding",
        "deciding_layers",
        "kit",
    },
    {"cli"},
    {"__init__", "__main__"},
]
ONLY_IN = {
    "matplotlib": {"reports/canvas.py", "reports/figures.py"},
    "onnxruntime": {"subnet_search/measure/runtimes/onnx_files.py"},
    "openvino": {"subnet_search/measure/runtimes/openvino_cpu.py"},
    "executorch": {"subnet_search/measure/runtimes/executorch_xnnpack.py"},
    "ray": {"subnet_search/workers/link.py"},
    "timm": {"subnet_search/models.py"},
}
TORCH_FREE = [
    "search_spaces",
    "predictors",
    "subnet_search.record",
    "subnet_search.searchers",
    "subnet_search.workers",
    "reports",
    "subnet_search.planning",
    "subnet_search.cli",
]


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def imports_of(path: Path, *, lazy: bool = True) -> tuple[str, ...]:
    """Dotted names that a file imports, relative ones resolved; `lazy` counts those inside functions."""
    return tuple(_imports(path, lazy))


def _imports(path: Path, lazy: bool) -> Iterator[str]:
    package = list(path.relative_to(ROOT).parent.parts)
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    return name.split(".")[1] if name.startswith("subnet_search.") else ""


def rank_of(room: str) -> int:
    return next((row for row, rooms in enumerate(ROOMS) if room in rooms), -1)


def test_every_room_of_the_engine_has_its_place() -> None:
    rooms = {path.relative_to(ROOT / "subnet_search").parts[0] for path in files_of("subnet_search")}
    assert {room for room in rooms if rank_of(room.removesuffix(".py")) < 0} == set()


@pytest.mark.parametrize("layer", LAYERS)
def test_packages_import_only_earlier_ones(layer: str) -> None:
    later = set(LAYERS[LAYERS.index(layer) + 1 :])
    wrong = {
        (str(path), name)
        for path in files_of(layer)
        if path.name != "cli.py"
        for name in imports_of(path)
        if name.split(".")[0] in later
    }
    assert wrong == set()


def test_rooms_of_the_engine_import_only_earlier_ones() -> None:
    wrong = set()
    for path in files_of("subnet_search"):
        room = path.relative_to(ROOT / "subnet_search").parts[0].removesuffix(".py")
        for name in imports_of(path):
            other = room_of(name)
            if other and other != "__version__" and rank_of(other) > rank_of(room):
                wrong.add((str(path), name))
    assert wrong == set()


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts): p for layer in LAYERS for p in files_of(layer)
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = {n if n in modules else n.rpartition(".")[0] for n in imports_of(path, lazy=False)}
        packages = {package for n in found for package in packages_of(n)} - set(packages_of(name))
        graph[name] = {other for other in (found | packages) & modules.keys() if other != name}
    done: set[str] = set()
    while ready := {name for name in graph.keys() - done if graph[name] <= done}:
        done |= ready
    assert graph.keys() - done == set()


def packages_of(module: str) -> list[str]:
    """The packages around a module, which Python imports before it: a.b.c is in a and a.b."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def test_heavy_packages_are_imported_where_they_belong_and_lazily() -> None:
    for package, allowed in ONLY_IN.items():
        for path in (path for layer in LAYERS for path in files_of(layer)):
            place = str(path.relative_to(ROOT))
            if any(name.split(".")[0] == package for name in imports_of(path)):
                assert place in allowed
            assert not any(name.split(".")[0] == package for name in imports_of(path, lazy=False)), place


def test_reading_and_searching_never_import_torch() -> None:
    code = f"""
import importlib, sys
for name in {TORCH_FREE}:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_are_the_same_for_python_and_for_type_checkers() -> None:
    import subnet_search

    stub = ast.parse((ROOT / "subnet_search/__init__.pyi").read_text("utf-8"))
    homes = {
        alias.asname: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == subnet_search._HOME_OF
    assert sorted(homes) == sorted(set(subnet_search.__all__) - {"__version__"})
    for name in homes:
        assert getattr(subnet_search, name) is not None


def test_no_public_function_shares_the_name_of_a_module() -> None:
    import subnet_search

    modules = {path.stem for path in (ROOT / "subnet_search").iterdir()}
    assert modules & set(subnet_search.__all__) == set()


def test_the_distribution_holds_exactly_the_four_packages() -> None:
    from setuptools import find_packages

    rules = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"][
        "find"
    ]
    found = {name.split(".")[0] for name in find_packages(str(ROOT), include=rules["include"])}
    assert found <= set(LAYERS)
    for layer in (layer for layer in LAYERS if (ROOT / layer).is_dir()):
        importlib.import_module(layer)
        assert layer in found


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for layer in LAYERS for path in files_of(layer)}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_module_reads_pickles() -> None:
    for path in (path for layer in LAYERS for path in files_of(layer)):
        text = path.read_text("utf-8")
        assert "pickle" not in {name.split(".")[0] for name in imports_of(path)}, path
        assert "torch.load(" not in text, path
