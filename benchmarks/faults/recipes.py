"""Mutated recipes: each is valid, or refused with exit code 2 and one clear line for each problem."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tomli_w

from benchmarks.faults.road import RECIPE, Road, Row
from search_spaces import InvalidInput
from subnet_search import cli
from subnet_search.recipe import QUICKSTART, TABLES, parse_recipe, read_recipe, recipe_to_toml
from subnet_search.settings import Settings

T = TypeVar("T")

NUM_MUTATIONS = 1000
LONGEST_LINE = 600  # characters; nobody reads more
RICH = """
name = "rich"
seed = 3
[model]
name = "torchvision:resnet18"
options = { num_classes = 10 }
[data]
source = "npz:images.npz"
size = 28
mean = [0.5]
std = [0.25]
augment = "crop+flip"
classes = ["cat", "dog"]
[elastic]
include = ["layer*"]
tie = [["layer1*", "layer2*"]]
[search]
objectives = ["top1_percent", "macs", "params"]
limits = { macs = "50%", params = 1e6 }
choose_under = [{ macs = "25%" }, { params = 5e5 }]
[export]
formats = ["safetensors", "onnx"]
"""
TEXTS = (RECIPE, "seed = 0\n" + QUICKSTART, RICH, recipe_to_toml(parse_recipe(RECIPE)))

Mutation = Callable[[str, np.random.Generator], bytes]


def mutated_recipes(road: Road) -> list[Row]:
    """A thousand mutations from fixed seeds, each read as `run` reads it; refused ones go through the command line.

    A recipe that is valid is not run. Those that name a model, weights or data that are not there are: only the run
    looks for them.
    """
    rows: dict[str, Row] = {}
    valid: dict[str, int] = dict.fromkeys(MUTATIONS, 0)
    names = list(MUTATIONS)
    path = road.scratch / "recipes" / "mutated.toml"
    path.parent.mkdir(exist_ok=True)
    for number in road.picked(list(range(NUM_MUTATIONS)), NUM_MUTATIONS):
        name, rng = names[number % len(names)], np.random.default_rng([7, number])
        row = rows.setdefault(name, Row("a mutated recipe", name, lost="nothing"))
        path.write_bytes(MUTATIONS[name](_pick(TEXTS, rng), rng))
        row.tries += 1
        valid[name] += _one(row, path, f"recipe {number}", runs=name in ONLY_RUNS_TELL)
    for name, row in rows.items():
        if valid[name]:
            row.codes["valid"] = valid[name]
    return list(rows.values())


def _one(row: Row, path: Path, what: str, *, runs: bool) -> bool:
    """Whether a recipe is valid; if not, it must be refused as it should be."""
    try:
        recipe = read_recipe(path)
    except InvalidInput as error:
        problems = str(error).split("\n")
    except BaseException as error:  # what reading must never let through
        row.check(False, what, f"{type(error).__name__}: {error}")
        return False
    else:
        if not runs:
            same = parse_recipe(recipe_to_toml(recipe)) == recipe
            row.check(same, what, "what is written into the run folder is another recipe")
            return True
        problems = [""]
    code, said = _run(path)
    row.codes[str(code)] += 1
    row.check(code == 2, what, f"exit code {code}: {said[-300:]!r}")
    row.check("Traceback" not in said, what, "a traceback")
    first = said.find("refused: ")
    lines = said[first:].rstrip("\n").split("\n") if first >= 0 else []
    row.check(
        len(lines) == len(problems), what, f"{len(problems)} problems in {len(lines)} lines: {said[-300:]!r}"
    )
    row.check(
        all(len(line) <= LONGEST_LINE for line in lines), what, f"a line of {max(map(len, lines), default=0)}"
    )
    row.check(all(map(str.isprintable, lines)), what, f"control characters in {said[-300:]!r}")
    row.told = row.told or "\n".join(lines)
    return False


def _run(path: Path) -> tuple[int, str]:
    """`subnet-search run` in this process: the exit code, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = cli.run_command(["run", str(path), "--out", str(path.parent / "runs")])
        except BaseException as error:  # what a command line must never let through
            return 70, f"Traceback {error!r}"
    return code, said.getvalue()


ODD_VALUES = (
    '""', '"x"', '"\\u0000"', '"\\u001b[31m\\n"', '"äöü 🙂"', '"25%"', '"-5%"', '"1e999%"', "0", "-1", "1", "0.5",
    "1.5", "-0.0", "1e308", "1e-320", "nan", "inf", "-inf", "99999999999999999999", "9223372036854775807",
    "-9223372036854775808", "0x7fffffff", "1" + "0" * 5000, "true", "false", "[]", "[1]", '["a", "a"]', '[["a"], 1]',
    "[nan]", "[[[[]]]]", "{}", "{ a = 1 }", "{ macs = nan }", "{ macs = { macs = 1 } }", "1979-05-27", "07:32:00",
    "1979-05-27T07:32:00Z", '"' + "long " * 2000 + '"', "[" + "1, " * 2000 + "]", '"""\nseveral\nlines\n"""',
    "'single'",
)  # fmt: skip


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _keys(lines: list[str]) -> list[int]:
    return [number for number, line in enumerate(lines) if re.match(r"\s*\w+\s*=", line)]


def _pick(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]


def _joined(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _another_value(text: str, rng: np.random.Generator) -> bytes:
    lines = _lines(text)
    number = _pick(_keys(lines), rng)
    lines[number] = lines[number].partition("=")[0] + "= " + _pick(ODD_VALUES, rng)
    return _joined(lines)


def _several_values(text: str, rng: np.random.Generator) -> bytes:
    for _ in range(3):
        text = _another_value(text, rng).decode()
    return text.encode()


def _value_of_any_setting(text: str, rng: np.random.Generator) -> bytes:
    table = _pick(list(TABLES), rng)
    kind: type[Settings] = TABLES[table]
    document = tomllib.loads(text)
    document.setdefault(table, {}).pop(key := _pick(list(kind.model_fields), rng), None)
    head, _, tail = (tomli_w.dumps(document)).partition(f"[{table}]\n")
    value = _pick(ODD_VALUES, rng)
    if tail or f"[{table}]\n" in tomli_w.dumps(document):
        return f"{head}[{table}]\n{key} = {value}\n{tail}".encode()
    return f"{head}\n[{table}]\n{key} = {value}\n".encode()


def _misspelt(text: str, rng: np.random.Generator) -> bytes:
    lines = _lines(text)
    number = _pick([n for n, line in enumerate(lines) if re.search(r"\w{3}", line)], rng)
    name = re.search(r"\w{3,}", lines[number])
    assert name is not None
    place, letters = int(rng.integers(name.start(), name.end())), "aeioux_-ß"
    kind, line = int(rng.integers(4)), lines[number]
    lines[number] = {
        0: line[:place] + line[place + 1 :],
        1: line[:place] + _pick(letters, rng) + line[place:],
        2: line[:place] + _pick(letters, rng) + line[place + 1 :],
        3: line[:place] + line[place : place + 1].upper() + line[place + 1 :],
    }[kind]
    return _joined(lines)


def _unknown_key(text: str, rng: np.random.Generator) -> bytes:
    lines = _lines(text)
    key = _pick(
        [
            "x",
            "__class__",
            "model",
            "1",
            '"a b"',
            '""',
            '"\\n"',
            "ключ",
            '"\\u0001"',
            "a.b.c",
            "model_config",
        ],
        rng,
    )
    lines.insert(int(rng.integers(len(lines) + 1)), f"{key} = {_pick(ODD_VALUES, rng)}")
    return _joined(lines)


def _unknown_table(text: str, rng: np.random.Generator) -> bytes:
    table = _pick(
        ["x", "Train", "trains", "model.x", "train.lr", '"a\\nb"', "evaluate.metrics.1x", "search.limits.x"],
        rng,
    )
    opening = _pick([f"[{table}]", f"[[{table}]]"], rng)
    return f"{text}\n{opening}\nepochs = {_pick(ODD_VALUES, rng)}\n".encode()


def _duplicated(text: str, rng: np.random.Generator) -> bytes:
    lines = _lines(text)
    number = int(rng.integers(len(lines)))
    lines.insert(int(rng.integers(number, len(lines))) + 1, lines[number])
    return _joined(lines)


def _moved(text: str, rng: np.random.Generator) -> bytes:
    lines = _lines(text)
    line = lines.pop(int(rng.integers(len(lines))))
    lines.insert(int(rng.integers(len(lines) + 1)), line)
    return _joined(lines)


def _deleted(text: str, rng: np.random.Generator) -> bytes:
    lines = _lines(text)
    del lines[int(rng.integers(len(lines)))]
    return _joined(lines)


def _broken_text(text: str, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(text)))
    return (
        text[:place] + _pick(['"', "[", "]", "=", "{", "\n", "#", "'", ",", "\\", '"""'], rng) + text[place:]
    ).encode()


def _control_characters(text: str, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(text)))
    odd = _pick(["\0", "\r", "\x1b[2J", "\x7f", "\u2028", "\u202e", "\ufeff", "\x85", "🙂", "é"], rng)
    return (text[:place] + odd + text[place:]).encode()


def _damaged_bytes(text: str, rng: np.random.Generator) -> bytes:
    content = bytearray(text.encode())
    for _ in range(int(rng.integers(1, 4))):
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
    return bytes(content[: int(rng.integers(len(content)))]) if rng.random() < 0.3 else bytes(content)


def _no_text(text: str, rng: np.random.Generator) -> bytes:
    kinds = [b"", b"\n\n", b"\xef\xbb\xbf", rng.bytes(400), b"\x7fELF" + rng.bytes(99), text.encode("utf-16")]
    kinds += [b"[" * 100_000, b"a = " + b"[" * 100_000, b"# nothing\n", b"{}", b"x" * 1_000_000]
    return _pick(kinds, rng)


NOT_THERE: dict[tuple[str, str], tuple[Any, ...]] = {
    ("model", "name"): (
        "torchvision:resnet1", "torchvision:", "nothing:here", "subnet_search.small_models:digits_cn", "os:system",
        "json:loads", "os.path:join", "builtins:exit", ":", "..:x", "x", "a:b:c", "", "🙂:🙂",
    ),
    ("model", "weights"): (
        "missing.safetensors", "/", "", "/dev/null", "DEFAULTS", "~nobody/x.safetensors", "a" * 5000,
    ),
    ("data", "source"): (
        "npz:missing.npz", "npz:", "npz:/", "npz:\0", "npz:" + "a" * 5000, "imagefolder:missing",
        "imagefolder:/dev/null", "torchvision:CIFAR11", "torchvision:", "nothing:here", "json:loads", "digit", "",
    ),
    ("device", "name"): ("cuda:99", "cuda:7"),
    ("evaluate", "metrics"): tuple(
        {"odd": {"function": name, "goal": "max"}} for name in ("nothing:here", "os:nothing", "json:loads")
    ),
}  # fmt: skip


def _not_there(text: str, rng: np.random.Generator) -> bytes:
    table, key = _pick(list(NOT_THERE), rng)
    values = NOT_THERE[table, key]
    document = tomllib.loads(_pick((RECIPE, QUICKSTART), rng))
    if key == "metrics":
        document["search"]["objectives"] = ["top1_percent", "macs"]
    document.setdefault(table, {})[key] = _pick(values, rng)
    return tomli_w.dumps(document).encode()


MUTATIONS: dict[str, Mutation] = {
    "another value": _another_value,
    "three other values": _several_values,
    "a value of any setting": _value_of_any_setting,
    "a misspelt word": _misspelt,
    "an unknown key": _unknown_key,
    "an unknown table": _unknown_table,
    "a line twice": _duplicated,
    "a line elsewhere": _moved,
    "a line too few": _deleted,
    "broken TOML": _broken_text,
    "control characters": _control_characters,
    "damaged bytes": _damaged_bytes,
    "no recipe at all": _no_text,
    "a model, data or device that is not there": _not_there,
}
ONLY_RUNS_TELL = {"a model, data or device that is not there"}
