"""The stages of a run, in order: what each one does, and how one sees that it is done.

A stage reads what earlier stages left in the run folder and leaves files of its own; stopped anywhere, it is
done again or, where that takes long, continued.
"""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from search_spaces.files import config_to_json, costs_to_json, space_to_json
from subnet_search.batches import resolve_device, sample_images
from subnet_search.choosing import choose_spread, choose_under, order_after_tuning
from subnet_search.data import checksums, describe, doubts
from subnet_search.elastic import Supernet
from subnet_search.elastic.coverage import INPUT
from subnet_search.exporting import export
from subnet_search.fronts import is_searched, read_front, search_front
from subnet_search.measure import describe_device, describe_target, prove
from subnet_search.measure.scoring import SharedScorer
from subnet_search.measuring import try_metrics
from subnet_search.path_files import is_walked, load_path
from subnet_search.paths import find_path, foresee_path
from subnet_search.planning import shortened
from subnet_search.ranking import has_scales, rank_by, table_of
from subnet_search.rebuilding import write_network
from subnet_search.recipe import walks_a_path
from subnet_search.record import Evaluation, ParetoFront, Run, knee
from subnet_search.record.atomic import telling_what_failed
from subnet_search.record.reranking import in_words
from subnet_search.remeasuring import choose_measured
from subnet_search.searchers.progressive import least_accuracy
from subnet_search.settings import LATENCY, PREDICTED
from subnet_search.standing import JOINED, JOINING, chosen_keys, is_on_a_path
from subnet_search.training import Among, PlainStep, SandwichStep, train
from subnet_search.training.of_recipe import step_of
from subnet_search.trials import find_settings, tune_on_workers
from subnet_search.tuning import is_tuned, tune
from subnet_search.workbench import Workbench, save_weights

PREPARED = ("device.json", "splits.json", "space.json", "costs.json", "coverage.json")  # in this order


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the road: its name, whether a run has it behind it, and the work."""

    name: str
    done: Callable[[Run], bool]
    work: Callable[[Workbench], None]


def prepare(bench: Workbench) -> None:
    """Loads data and network and converts it; refuses what a later stage would refuse after hours of work."""
    bench.check_machine()
    bench.check_batches()
    strange = doubts(bench.splits)
    for sentence in strange:
        bench.say(f"  {sentence}")
    run, supernet = bench.run, bench.new_supernet()
    try_metrics(bench.metrics, supernet, bench.example, bench.splits.search_val)
    if bench.recipe.rank.ranker == "bn_scale" and not has_scales(supernet):
        raise InvalidInput(
            'the ranker "bn_scale" needs batch norm with a scale, and this network has none; try "taylor"'
        )
    if bench.recipe.model.epochs == 0:
        save_weights(run, "teacher.safetensors", bench.new_model() if bench.is_structured else supernet.model)
    run.write_json("device.json", {**describe_device(), "target": describe_target(bench.recipe.device)})
    images = {"images": describe(bench.splits), "checksums": checksums(bench.splits)}
    data = {**images, "classes": bench.splits.classes, "doubts": strange}
    run.write_json("splits.json", {**bench.recipe.data.model_dump(mode="json"), **data})
    run.write_json("space.json", space_to_json(supernet.space))
    run.write_json("costs.json", costs_to_json(supernet.costs))
    check_limits(bench, supernet)
    share, heights = 100 * supernet.coverage["reachable_macs_share"], supernet.coverage["resolution"]
    sizes = f"; images of {', '.join(map(str, heights))} pixels" if heights else ""
    bench.say(f"  {Decimal(supernet.space.size):.3g} sub-nets; {share:.0f} % of the MACs are elastic{sizes}")
    for entry in supernet.coverage["fixed"]:
        if entry["path"] == INPUT:
            bench.say(f"  {entry['reason']}")
    if walks_a_path(bench.recipe):
        check_path(bench)
        check_threshold(bench, supernet)
    run.write_json("coverage.json", supernet.coverage)


def check_limits(bench: Workbench, supernet: Supernet) -> None:
    """Raises `InvalidInput` for limits that no sub-net meets; those on a board that is not known yet wait."""
    settings, waits = bench.recipe.search, set[str]()
    if PREDICTED in settings.objectives and not bench.knows_board:
        waits, board = {PREDICTED}, bench.recipe.device.board
        bench.say(
            f"  nothing is known of board {board!r} yet, and the search needs it: subnet-search kit {bench.run.folder} "
            f"writes nets to measure there, and kit {bench.run.folder} --import FILE --device {board} brings their "
            "times back"
        )
    for asked in (settings.limits, *settings.choose_under):
        limits = bench.limits({name: bound for name, bound in asked.items() if name not in waits})
        bench.check_latency_limit(supernet, limits)
        bench.check_board_limit(limits)


def check_path(bench: Workbench) -> None:
    """Raises `InvalidInput` for a path that cannot be, or none of whose sub-nets could meet the recipe's limits."""
    table, space = bench.recipe.progressive, bench.space
    foreseen = foresee_path(space, bench.costs, table)
    least = table.smallest_macs_share * bench.costs.macs(space.encode([space.largest()]))[0]
    bound = bench.limits(bench.recipe.search.limits).get("macs", math.inf)
    if bound < least:
        raise InvalidInput(
            f"no sub-net of the path meets macs <= {bound:.4g}: with [progressive] smallest_macs_share = "
            f"{table.smallest_macs_share:g} it ends above {least:.4g}; lower that share or raise the limit"
        )
    looks = foreseen.first_looks + foreseen.final_looks
    bench.say(f"  a path of about {len(foreseen.path)} sub-nets, found in about {looks:,} looks")


def check_threshold(bench: Workbench, supernet: Supernet) -> None:
    """Raises `InvalidInput` for a threshold above the accuracy that a trained network comes with.

    What is trained in this run may get there, so that only the walk can tell.
    """
    table, model = bench.recipe.progressive, bench.recipe.model
    if table.threshold is None or model.weights is None or model.epochs:
        return
    whole = SharedScorer(supernet, bench.splits, table)(bench.space.largest(), True)
    least_accuracy(whole, table.threshold, None)


def train_teacher(bench: Workbench) -> None:
    """Ordinary training of a network that came without trained weights."""
    supernet, settings = bench.plain_supernet(), bench.recipe.train
    change = shortened(settings, bench.amount("teacher"), bench.recipe.model.epochs)
    settings = settings.model_copy(update={**change, "lr": bench.recipe.model.lr or settings.lr})
    train(supernet, bench.splits, PlainStep(), settings, bench.run)
    bench.save("teacher.safetensors", supernet.model)


def rank_channels(bench: Workbench) -> None:
    """Which channels of the trained network go first, before sub-nets are trained as prefixes of that order.

    Ranking anew after the sandwich rule would tear apart what it trained to work together.
    """
    settings, supernet = bench.recipe.rank, bench.new_supernet().to(bench.device)
    if bench.is_structured:  # no width is chosen freely
        settings = settings.model_copy(update={"ranker": "natural", "curve": False})
    seen = bench.splits.search_val
    images = sample_images(seen, settings.val_images, settings.seed) if settings.curve else []
    ranked = rank_by(settings, supernet, bench.calibration(settings.images), images)
    if ranked.curves is not None:
        for line in table_of(ranked.curves, ranked.ranker):
            bench.say(f"  {line}")
    bench.run.write_json("ranking.json", {**ranked.to_json(), "weights": bench.teacher_checksum()})


def train_supernet(bench: Workbench) -> None:
    """Training of all sub-nets, or of those of uniform width, by the sandwich rule, from the ranked weights."""
    supernet, settings = bench.ranked_supernet(), bench.recipe.train
    settings = settings.model_copy(update=shortened(settings, bench.amount("train"), settings.epochs))
    train(supernet, bench.splits, step_of(bench.recipe.train, supernet), settings, bench.run)
    bench.save("supernet.safetensors", supernet.model)


def walk_path(bench: Workbench) -> None:
    """Finds the path of a progressive search in the trained supernet, or the rest of it.

    Where the noise ranking is known, it says which drops are worth a first look.
    """
    supernet, space, costs = bench.trained_supernet(), bench.space, bench.costs
    predict, latency = bench.prediction(supernet), bench.path_latency(supernet)
    table = bench.recipe.progressive
    path = find_path(supernet, bench.splits, table, bench.run, predict=predict, latency=latency)
    whole, smallest = costs.macs(space.encode([path[0].config, path[-1].config]))
    tuned = sum(element.tuned for element in path)
    bench.say(
        f"  {len(path)} nested sub-nets, the smallest with {100 * smallest / whole:.0f} % of the MACs; "
        f"{path[-1].images:,} images spent{f', weights tuned at {tuned} of them' if tuned else ''}"
    )


def join_path(bench: Workbench) -> None:
    """Joint training of the path's sub-nets; the weights before it stay in their own file."""
    supernet, settings, table = bench.trained_supernet(), bench.recipe.train, bench.recipe.progressive
    load_path(bench.run, supernet, table, bench.prediction(supernet))
    epochs = bench.amount("join")
    change = shortened(settings, epochs, settings.epochs or epochs)
    settings = settings.model_copy(update={**change, "lr": table.lr or settings.lr})
    teacher = None
    if settings.distill and table.teacher == "full":
        teacher = bench.new_model().to(resolve_device(settings.device)).eval()
    sampling = Among(tuple(bench.path()))
    step = SandwichStep(settings.num_random, settings.distill, teacher, sampling)
    train(supernet, bench.splits, step, settings, bench.run, checkpoint=JOINING)
    bench.save(JOINED, supernet.model)


def choose_and_tune(bench: Workbench) -> None:
    """Chooses members of the front and trains each by itself, the supernet as its teacher."""
    run, front = bench.run, read_front(bench.run)
    for member in choose_measured(bench, front, functools.partial(choose_members, bench)):
        run.write_json(f"subnets/{member.config.key}/config.json", config_to_json(member.config))
    if untuned := [config for config in bench.chosen() if not is_tuned(run, config.key)]:
        run.delete("metrics.json")  # what is tuned anew has to be looked at on test
        if bench.trials:
            find_settings(bench, untuned)
        if not bench.workers.are_here:
            tune_on_workers(bench, untuned)
    for config in untuned:
        if not is_tuned(run, config.key):
            tune(bench, config)
    metrics = {config: run.read_json(f"subnets/{config.key}/metrics.json") for config in bench.chosen()}
    for line in in_words(order_after_tuning(front, metrics, bench.space, bench.costs)):
        bench.say(f"  {line}")


def choose_members(bench: Workbench, front: ParetoFront) -> list[Evaluation]:
    """The members that the recipe's [search] table asks for."""
    settings = bench.recipe.search
    members = (
        _best_under_each(bench, front) if settings.choose_under else choose_spread(front, settings.choose)
    )
    if settings.choose_knee:
        bend = knee(front)
        bench.say(f"  the front's knee: {bend.member.config.key}" if bend else "  the front has no knee")
        members += [bend.member] if bend and bend.member not in members else []
    return members


def _best_under_each(bench: Workbench, front: ParetoFront) -> list[Evaluation]:
    """The best member under each of the recipe's limits; limits that none meets are told, unless all are such."""
    members: list[Evaluation] = []
    missed: list[SubnetSearchError] = []
    for limits in [bench.limits(limits) for limits in bench.recipe.search.choose_under]:
        try:
            members.append(choose_under(front, limits, bench.space, bench.costs))
        except SubnetSearchError as unmet:
            missed.append(unmet)
    if not members:
        raise missed[0]
    for told in missed:
        bench.say(f"  left out: {told}")
    return members


def look_at_test(bench: Workbench) -> None:
    """The only look at the test split: the whole network and each fine-tuned sub-net."""
    run, test = bench.run, bench.splits.test
    for config in bench.chosen():
        name = f"subnets/{config.key}/metrics.json"
        metrics = run.read_json(name)
        latency = {key: metrics["after"][key] for key in (LATENCY,) if key in metrics["after"]}
        found = bench.judge(bench.tuned(config), test) | latency
        run.write_json(name, {**metrics, "test": found})
        bench.say(f"  {config.key}: {found['top1_percent']:.2f} % on test")
    latency = {LATENCY: bench.meter.reference.median_ms} if bench.times_nets else {}
    full = bench.judge(bench.new_model().to(bench.device), test) | latency
    run.write_json("metrics.json", {"test": full})
    bench.say(f"  the whole network: {full['top1_percent']:.2f} % on test")


def prove_and_export(bench: Workbench) -> None:
    """Writes each chosen sub-net in the formats asked for, with the proof that it is right."""
    for config in bench.chosen():
        if not is_proved(bench.run, config.key):
            export_one(bench, config)


def export_one(bench: Workbench, config: SubnetConfig) -> None:
    """Writes and proves one sub-net.

    Raises:
        SubnetSearchError: the proof failed; proof.json says in what.
    """
    run, place = bench.run, f"subnets/{config.key}"
    net = bench.tuned(config)
    with telling_what_failed(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        for exported in export(net, bench.example, folder, bench.recipe.export.formats):
            with run.writing(f"{place}/{Path(exported.path).name}") as path:
                shutil.copyfile(exported.path, path)
    build = write_network(run, place, bench.recipe.model, bench.supernet, config)
    proof = prove(
        bench.supernet,
        config,
        bench.statistics(config),
        net,
        build=build,
        weights=run.verify(f"{place}/net.safetensors"),
        batches=bench.splits.search_val,
        accuracy_stored=run.read_json(f"{place}/metrics.json")["after"]["top1_percent"],
    )
    run.write_json(f"{place}/proof.json", asdict(proof))
    if not proof.passed:
        raise SubnetSearchError(f"sub-net {config.key} failed its proof: {proof}; do not use its files")
    bench.say(f"  {config.key}: proved and exported to {run.folder}/{place}")


def is_proved(run: Run, key: str) -> bool:
    """Whether a sub-net is exported and passed its proof."""
    name = f"subnets/{key}/proof.json"
    if not run.has(name) or any(gone.startswith(f"subnets/{key}/") for gone in run.missing()):
        return False
    return bool(run.read_json(name)["passed"])


def each_chosen(done: Callable[[Run, str], bool]) -> Callable[[Run], bool]:
    """Whether sub-nets are chosen, and all of them are `done`."""
    return lambda run: bool(keys := chosen_keys(run)) and all(done(run, key) for key in keys)


def on_a_path(done: Callable[[Run], bool]) -> Callable[[Run], bool]:
    """Whether a stage that only a progressive search has is `done`; other searches have it behind them."""
    return lambda run: not is_on_a_path(run) or done(run)


STAGES = (
    Stage("prepare", lambda run: all(map(run.has, PREPARED)), prepare),
    Stage("teacher", lambda run: run.has("teacher.safetensors"), train_teacher),
    Stage("rank", lambda run: run.has("ranking.json"), rank_channels),
    Stage("train", lambda run: run.has("supernet.safetensors"), train_supernet),
    Stage("path", on_a_path(is_walked), walk_path),
    Stage("join", on_a_path(lambda run: run.has(JOINED)), join_path),
    Stage("search", is_searched, search_front),
    Stage("finetune", each_chosen(is_tuned), choose_and_tune),
    Stage("test", lambda run: run.has("metrics.json"), look_at_test),
    Stage("export", each_chosen(is_proved), prove_and_export),
)
