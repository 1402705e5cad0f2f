"""The stages of a run, in order: what each one does, and how one sees that it is done.

A stage reads what earlier stages left in the run folder and leaves files of its own; stopped anywhere, it is
done again or, where that takes long, continued.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from search_spaces import InvalidInput, SubnetConfig, SubnetSearchError
from search_spaces.files import config_to_json, costs_to_json, space_to_json
from subnet_search.choosing import choose_spread, choose_under, named_values
from subnet_search.data import describe
from subnet_search.exporting import export
from subnet_search.finetuning import finetune
from subnet_search.measure import describe_device, prove, top1_percent
from subnet_search.ranking import RANKERS, random_ranking, rank
from subnet_search.rebuilding import describe_network, rebuild_network
from subnet_search.record import Evaluation, Objective, ParetoFront, Run, worst_values
from subnet_search.searchers import Budget, SearchResult, search
from subnet_search.training import PlainStep, SandwichStep, train
from subnet_search.workbench import Workbench, chosen_keys, save_weights

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
    run, supernet = bench.run, bench.new_supernet()
    if bench.recipe.rank.ranker == "bn_scale" and not supernet.uses_batch_norm:
        raise InvalidInput('the ranker "bn_scale" needs batch norm, and this network has none; try "taylor"')
    if bench.recipe.model.epochs == 0:
        save_weights(run, "teacher.safetensors", supernet.model)
    run.write_json("device.json", describe_device())
    run.write_json(
        "splits.json", {**bench.recipe.data.model_dump(mode="json"), "images": describe(bench.splits)}
    )
    run.write_json("space.json", space_to_json(supernet.space))
    run.write_json("costs.json", costs_to_json(supernet.costs))
    for limits in (bench.recipe.search.limits, *bench.recipe.search.choose_under):
        bench.limits(limits)
    run.write_json("coverage.json", supernet.coverage)
    share = 100 * supernet.coverage["reachable_macs_share"]
    bench.say(f"  {Decimal(supernet.space.size):.3g} sub-nets; {share:.0f} % of the MACs are elastic")


def train_teacher(bench: Workbench) -> None:
    """Ordinary training of a network that came without trained weights."""
    supernet, settings = bench.new_supernet(), bench.recipe.train
    settings = settings.model_copy(update={"epochs": bench.recipe.model.epochs})
    train(supernet, bench.splits, PlainStep(), settings, bench.run)
    save_weights(bench.run, "teacher.safetensors", supernet.model)


def rank_channels(bench: Workbench) -> None:
    """Which channels of the trained network go first, before sub-nets are trained as prefixes of that order.

    Ranking anew after the sandwich rule would tear apart what it trained to work together.
    """
    settings = bench.recipe.rank
    ranker = RANKERS[settings.ranker]
    if ranker is random_ranking:
        ranker = functools.partial(random_ranking, seed=settings.seed)
    ranking = rank(bench.new_supernet().to(bench.device), bench.calibration(settings.images), ranker)
    order = {name: units.tolist() for name, units in ranking.items()}
    bench.run.write_json(
        "ranking.json", {"ranker": settings.ranker, "weights": bench.teacher_checksum(), "order": order}
    )


def train_supernet(bench: Workbench) -> None:
    """Training of all sub-nets together by the sandwich rule, from the ranked weights."""
    supernet, settings = bench.ranked_supernet(), bench.recipe.train
    step = SandwichStep(num_random=settings.num_random, distill=settings.distill)
    train(supernet, bench.splits, step, settings, bench.run)
    save_weights(bench.run, "supernet.safetensors", supernet.model)


def search_front(bench: Workbench) -> None:
    """The search, continued where its journal ends, and the front it found."""
    settings, evaluator = bench.recipe.search, bench.evaluator
    budget = Budget(evaluations=settings.evaluations, minutes=settings.minutes)
    result = search(
        bench.space,
        evaluator,
        settings.searcher,
        budget=budget,
        limits=bench.limits(settings.limits),
        costs=bench.costs,
        seed=settings.seed,
        run=bench.run,
    )
    if not len(result.front):
        raise SubnetSearchError(
            f"no evaluated sub-net meets the limits {dict(settings.limits)}; the nearest values are "
            f"{dict(result.nearest)}. Search longer or loosen the limits in a new run"
        )
    write_front(bench.run, result, evaluator.objectives)
    bench.say(f"  {len(result.evaluations)} evaluations, {len(result.front)} sub-nets on the front")


def write_front(run: Run, result: SearchResult, objectives: tuple[Objective, ...]) -> None:
    """Writes front.json; its reference point is 0 for what is to be high, else the worst value seen."""
    worst = worst_values(objectives, result.evaluations)
    reference = {o.name: worst[o.name] if o.goal == "min" else min(0.0, worst[o.name]) for o in objectives}
    run.write_json(
        "front.json",
        {
            "objectives": [{"name": o.name, "goal": o.goal} for o in objectives],
            "members": [
                {"key": e.config.key, "config": dict(e.config), "values": named_values(objectives, e)}
                for e in result.front
            ],
            "evaluations": len(result.evaluations),
            "reference": reference,
            "hypervolume": result.front.hypervolume(reference),
        },
    )


def read_front(run: Run) -> ParetoFront:
    """The front that `write_front` wrote."""
    stored = run.read_json("front.json")
    objectives = tuple(Objective(o["name"], o["goal"]) for o in stored["objectives"])
    members = [
        Evaluation(SubnetConfig(m["config"]), tuple(m["values"][o.name] for o in objectives))
        for m in stored["members"]
    ]
    return ParetoFront.of(objectives, members)


def choose_and_tune(bench: Workbench) -> None:
    """Chooses members of the front and trains each by itself, the supernet as its teacher."""
    run, settings = bench.run, bench.recipe.search
    front = read_front(run)
    members = (
        _best_under_each(bench, front) if settings.choose_under else choose_spread(front, settings.choose)
    )
    for member in members:
        run.write_json(f"subnets/{member.config.key}/config.json", config_to_json(member.config))
    for config in bench.chosen():
        if not is_tuned(run, config.key):
            run.delete("metrics.json")  # what is tuned anew has to be looked at on test
            tune(bench, config)


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


def tune(bench: Workbench, config: SubnetConfig) -> None:
    """Fine-tunes one sub-net; what search-validation said before and after goes to metrics.json."""
    run, place, settings = bench.run, f"subnets/{config.key}", bench.recipe.finetune
    checkpoint = f"{place}/checkpoint"
    net = bench.extracted(config)
    result = finetune(net, bench.splits, settings, teacher=bench.supernet, run=run, checkpoint=checkpoint)
    save_weights(run, f"{place}/net.safetensors", result.net)
    run.write_json(
        f"{place}/metrics.json",
        {
            "before": {"top1_percent": result.before},
            "after": {"top1_percent": result.after},
            "split": "search_val",
            "seeds": [settings.seed],
            "seconds": result.seconds,
        },
    )
    drop_checkpoint(run, checkpoint)
    bench.say(f"  {config.key}: {result.before:.2f} -> {result.after:.2f} % on search-validation")


def drop_checkpoint(run: Run, name: str) -> None:
    """Deletes a checkpoint that a finished result has replaced."""
    for ending in (".safetensors", ".json"):
        run.delete(name + ending)


def look_at_test(bench: Workbench) -> None:
    """The only look at the test split: the whole network and each fine-tuned sub-net."""
    run, test = bench.run, bench.splits.test
    for config in bench.chosen():
        name = f"subnets/{config.key}/metrics.json"
        found = top1_percent(bench.tuned(config), test)
        run.write_json(name, {**run.read_json(name), "test": {"top1_percent": found}})
        bench.say(f"  {config.key}: {found:.2f} % on test")
    full = top1_percent(bench.new_model().to(bench.device), test)
    run.write_json("metrics.json", {"test": {"top1_percent": full}})
    bench.say(f"  the whole network: {full:.2f} % on test")


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
    with tempfile.TemporaryDirectory() as folder:
        for exported in export(net, bench.example, folder, bench.recipe.export.formats):
            with run.writing(f"{place}/{Path(exported.path).name}") as path:
                shutil.copyfile(exported.path, path)
    network = describe_network(bench.recipe.model, bench.supernet, config)
    run.write_json(f"{place}/network.json", network)
    proof = prove(
        bench.supernet,
        config,
        bench.statistics(config),
        net,
        build=lambda: rebuild_network(network),
        weights=run.verify(f"{place}/net.safetensors"),
        batches=bench.splits.search_val,
        accuracy_stored=run.read_json(f"{place}/metrics.json")["after"]["top1_percent"],
    )
    run.write_json(f"{place}/proof.json", asdict(proof))
    if not proof.passed:
        raise SubnetSearchError(f"sub-net {config.key} failed its proof: {proof}; do not use its files")
    bench.say(f"  {config.key}: proved and exported to {run.folder}/{place}")


def is_searched(run: Run) -> bool:
    """Whether there is a front, and the journal still holds as many evaluations as it was taken from."""
    if not run.has("front.json"):
        return False
    answered = {line["key"] for line in run.journal.lines() if line["kind"] != "ask"}
    return len(answered) >= int(run.read_json("front.json")["evaluations"])


def is_tuned(run: Run, key: str) -> bool:
    """Whether a sub-net is fine-tuned."""
    return all(
        run.has(f"subnets/{key}/{name}") for name in ("config.json", "metrics.json", "net.safetensors")
    )


def is_proved(run: Run, key: str) -> bool:
    """Whether a sub-net is exported and passed its proof."""
    name = f"subnets/{key}/proof.json"
    if not run.has(name) or any(gone.startswith(f"subnets/{key}/") for gone in run.missing()):
        return False
    return bool(run.read_json(name)["passed"])


def each_chosen(done: Callable[[Run, str], bool]) -> Callable[[Run], bool]:
    """Whether sub-nets are chosen, and all of them are `done`."""
    return lambda run: bool(keys := chosen_keys(run)) and all(done(run, key) for key in keys)


STAGES = (
    Stage("prepare", lambda run: all(map(run.has, PREPARED)), prepare),
    Stage("teacher", lambda run: run.has("teacher.safetensors"), train_teacher),
    Stage("rank", lambda run: run.has("ranking.json"), rank_channels),
    Stage("train", lambda run: run.has("supernet.safetensors"), train_supernet),
    Stage("search", is_searched, search_front),
    Stage("finetune", each_chosen(is_tuned), choose_and_tune),
    Stage("test", lambda run: run.has("metrics.json"), look_at_test),
    Stage("export", each_chosen(is_proved), prove_and_export),
)
