"""A measuring kit: well-chosen sub-nets as files, with a program that times them on a board without this package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from predictors import LatencyPredictor
from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError, nearest_names
from search_spaces.files import config_to_json
from subnet_search.elastic.extraction import cut_out
from subnet_search.elastic.supernet import Supernet
from subnet_search.exporting import check_formats
from subnet_search.kit_boards import BOARDS, Board, board_predictor, import_results
from subnet_search.measure.runtimes.base import fixed_arguments
from subnet_search.measure.runtimes.command import WRITERS
from subnet_search.pipeline import read_settings
from subnet_search.progress import progress
from subnet_search.record import Run
from subnet_search.settings import DeviceSettings
from subnet_search.workbench import Workbench, set_up_process

KITS = "kits"
BOARD = "board"  # its name where none is given
POOL = 400  # random sub-nets among which a kit's are chosen
LEAST_NETS = 2
README = """# Measuring kit {number}

{count} sub-nets ({formats}) to be timed on a board. The first, n00, is the largest one, beside which all others are
timed. Nothing here needs subnet-search or torch. Copy this folder to the board and run one of

    python3 measure.py --threads 1
    python3 measure.py --command "./bench {{file}} --runs {{runs}}" --unit ms{other}

The first needs Python 3 with numpy and onnxruntime. The second needs Python 3 alone: the program is handed a file
and prints the time of one run on a line of its own, in the unit that is named (several lines: their median counts).
A call that was broken off goes on where it stopped. Let the board do nothing else meanwhile, cool it, and fix its
clock if you can.

Where no Python runs at all, measure each file of nets/ by whatever means and write a table by hand:

    net,latency_ms
    n00,12.5
    n01,8.31

Then, at home:

    subnet-search kit {run} --import results.csv --number {number} --device NAME

Inputs: {inputs}.
"""


def write_kit(
    bench: Workbench,
    count: int,
    formats: Sequence[str] = ("onnx",),
    *,
    device: str | None = None,
    configs: Sequence[SubnetConfig] = (),
) -> Path:
    """Writes a kit into the run, as `kits/<number>`.

    Args:
        bench: of a prepared run; its trained supernet is cut where there is one, though weights do not change times.
        count: nets in the kit, the largest and the smallest one included.
        formats: of "onnx", "pt2", "pte".
        device: a board that was measured already: what is chosen tells most beyond that.
        configs: take these besides the largest one, such as a front's, so that what was predicted is measured.

    Raises:
        InvalidInput: a wrong count or format, or a config that is not of the space.
        SubnetSearchError: no net can be written in that format.
    """
    _check(count, formats)
    supernet = bench.supernet if bench.run.has("supernet.safetensors") else bench.new_supernet().eval()
    space = supernet.space
    chosen = (
        list(dict.fromkeys([space.largest(), *map(space.canonical, configs)]))[:count]
        if configs
        else choose_nets(supernet, count, _predictor(bench, device))
    )
    number = 1 + max(
        (int(name.split("/")[1]) for name in bench.run.names() if name.startswith(f"{KITS}/")), default=0
    )
    place = f"{KITS}/{number}"
    nets, inputs = _write_nets(bench, supernet, chosen, formats, place)
    kit = {"formats": list(formats), "inputs": inputs, "nets": nets, "checksum": _checksum(nets)}
    runner = files("subnet_search").joinpath("kit_runner.py.txt").read_text("utf-8")
    words = {"run": bench.run.folder, "number": number, "count": len(nets), "formats": ", ".join(formats)}
    other = f"\n    (and --format {formats[1]} for the other files)" if len(formats) > 1 else ""
    bench.run.write(f"{place}/measure.py", runner)
    bench.run.write(f"{place}/README.md", README.format(**words, inputs=inputs, other=other))
    bench.run.write_json(f"{place}/kit.json", kit)
    return bench.run.path(f"{place}/kit.json").parent


def kit_for(
    run: Run, count: int, formats: str, device: str | None, front: bool, *, say: Callable[[str], None]
) -> Path:
    """`write_kit` as the command line calls it: formats with commas between, the recipe's board by default."""
    recipe = read_settings(run)
    set_up_process(recipe)
    kinds = [name.strip() for name in formats.split(",")]
    configs = _front(run, count) if front else []
    board = device or recipe.device.board or BOARD
    return write_kit(Workbench(run, recipe, say), count, kinds, device=board, configs=configs)


def import_into(run: Run, results: Path, device: str | None = None, number: int | None = None) -> Board:
    """Brings the results of one of the run's kits back; see `import_results`. The recipe's board by default."""
    board = device or read_settings(run).device.board or BOARD
    return import_results(run, results, kit_of(run, number), board)


def choose_nets(
    supernet: Supernet, count: int, predictor: LatencyPredictor | None = None, seed: int = 0
) -> list[SubnetConfig]:
    """The largest and the smallest sub-net, and those whose times tell most about the others'.

    Args:
        supernet: whose sub-nets.
        count: how many, fewer if there are not so many.
        predictor: fitted to what is known of the board; by default of an unknown one.
        seed: of the sub-nets that may be chosen.
    """
    space = supernet.space
    ends = list(dict.fromkeys([space.largest(), space.smallest()]))
    predictor = predictor or LatencyPredictor(space, supernet.costs)
    pool = [c for c in space.sample(np.random.default_rng(seed), max(POOL, 4 * count)) if c not in ends]
    more = predictor.suggest(pool, count - len(ends)) if pool and count > len(ends) else []
    return [*ends, *more]


def kit_of(run: Run, number: int | None = None) -> dict[str, Any]:
    """The content of `kit.json` of a kit of the run, the latest if no number is given.

    Raises:
        InvalidInput: there is no such kit.
    """
    numbers = sorted(
        int(name.split("/")[1])
        for name in run.names()
        if name.startswith(f"{KITS}/") and name.endswith("kit.json")
    )
    if not numbers:
        raise InvalidInput(f"run {run.folder} has no kit yet; write one with subnet-search kit {run.folder}")
    if number is not None and number not in numbers:
        raise InvalidInput(f"run {run.folder} has no kit {number}, only {', '.join(map(str, numbers))}")
    kit: dict[str, Any] = run.read_json(f"{KITS}/{number or numbers[-1]}/kit.json")
    return kit


def _check(count: int, formats: Sequence[str]) -> None:
    if count < LEAST_NETS:
        raise InvalidInput(f"a kit has at least {LEAST_NETS} nets, the largest and the smallest, got {count}")
    if not formats or len(set(formats)) < len(formats):
        raise InvalidInput(f"a kit needs different formats, at least one, got {list(formats)}")
    for name in formats:
        if name not in WRITERS:
            raise InvalidInput(
                f"a kit's format is one of {', '.join(WRITERS)}, got {name!r}{nearest_names(name, WRITERS)}"
            )
    check_formats([name for name in formats if name == "onnx"])


def _predictor(bench: Workbench, device: str | None) -> LatencyPredictor | None:
    if device is None or not bench.run.has(f"{BOARDS}/{device}.json"):
        return None
    return board_predictor(bench.run, device)


def _front(run: Run, count: int) -> list[SubnetConfig]:
    """Members of the front, spread over it, with room for the largest sub-net."""
    if not run.has("front.json"):
        raise InvalidInput(f"run {run.folder} has no front yet; search first")
    members = [SubnetConfig(member["config"]) for member in run.read_json("front.json")["members"]]
    picks = np.linspace(0, len(members) - 1, max(min(count - 1, len(members)), 1)).round().astype(int)
    return [members[i] for i in np.unique(picks)]


def _write_nets(
    bench: Workbench, supernet: Supernet, configs: Sequence[SubnetConfig], formats: Sequence[str], place: str
) -> tuple[list[dict[str, Any]], str]:
    costs = supernet.costs.evaluate(supernet.space.encode(configs), ("macs", "params"))
    written: list[dict[str, Any]] = []
    profile, reasons, inputs = bench.recipe.device, list[str](), ""
    for place_in_list, config in enumerate(progress(configs, "kit", "net")):
        name = f"n{len(written):02d}"
        try:
            made, inputs = _write_net(bench.run, supernet, config, formats, f"{place}/nets/{name}", profile)
        except SubnetSearchError as error:
            reasons.append(str(error))
            if not written:
                raise
            bench.say(f"  {config.key} is left out: {error}")
            continue
        numbers = {cost: int(values[place_in_list]) for cost, values in costs.items()}
        of_kit = {kind: f"nets/{name}.{kind}" for kind in formats}
        known = {"net": name, "key": config.key, "config": config_to_json(config)}
        written.append({**known, **numbers, "files": of_kit, "sha256": made})
    return written, inputs


def _write_net(
    run: Run,
    supernet: Supernet,
    config: SubnetConfig,
    formats: Sequence[str],
    stem: str,
    profile: DeviceSettings,
) -> tuple[dict[str, str], str]:
    """Writes one net; the sum of each of its files, and what it takes in words."""
    net = cut_out(supernet, config).eval()  # statistics and weights do not change its speed
    arguments = fixed_arguments(net, supernet.example, profile)
    sums = {}
    for kind in formats:
        write: Callable[..., None] = WRITERS[kind]
        with run.writing(f"{stem}.{kind}") as path:
            try:
                write(net, arguments, path)
            except (SubnetSearchError, OSError):
                raise
            except Exception as error:  # exporters raise nearly anything
                raise SubnetSearchError(f'a sub-net cannot be written as "{kind}": {error}') from error
        sums[kind] = hashlib.sha256(run.path(f"{stem}.{kind}").read_bytes()).hexdigest()
    tensors = [*arguments[0], *arguments[1].values()]
    return sums, ", ".join(
        f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensors if hasattr(t, "shape")
    )


def _checksum(nets: Sequence[dict[str, Any]]) -> str:
    content = json.dumps([[net["net"], net["key"], net["sha256"]] for net in nets])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
