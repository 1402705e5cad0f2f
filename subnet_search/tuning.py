"""Fine-tuning of one sub-net of a run, and what it leaves."""

from __future__ import annotations

from torch import nn

from search_spaces import SubnetConfig
from subnet_search.finetuning import finetune
from subnet_search.measuring import measured_or_why
from subnet_search.planning import shortened
from subnet_search.record import Run
from subnet_search.settings import LATENCY, FinetuneSettings
from subnet_search.workbench import Workbench, save_weights

TRIED = "trials.json"


def tune(bench: Workbench, config: SubnetConfig, into: Run | None = None, epochs: int | None = None) -> None:
    """Fine-tunes one sub-net; what search-validation said before and after goes to metrics.json.

    Args:
        bench: of the run.
        config: which sub-net.
        into: another folder for what comes of it than the run, which a worker may only read.
        epochs: as planned, where this process does not know the plan.
    """
    run, place, settings = into or bench.run, f"subnets/{config.key}", finetune_settings(bench)
    amount = bench.amount("finetune") if epochs is None else epochs
    settings = settings.model_copy(update=shortened(settings, amount, settings.epochs))
    checkpoint = f"{place}/checkpoint"
    net = bench.extracted(config)
    result = finetune(net, bench.splits, settings, teacher=bench.supernet, run=run, checkpoint=checkpoint)
    save_weights(run, f"{place}/net.safetensors", result.net)
    before, after, failed = _values_beside_top1(bench, config.key, net, result.net)
    run.write_json(
        f"{place}/metrics.json",
        {
            "before": {**before, "top1_percent": result.before},
            "after": {**after, "top1_percent": result.after},
            "split": "search_val",
            "seeds": [settings.seed],
            "epochs": settings.epochs,
            "seconds": result.seconds,
            **({"failed": failed} if failed else {}),
        },
    )
    drop_checkpoint(run, checkpoint)
    bench.say(f"  {config.key}: {result.before:.2f} -> {result.after:.2f} % on search-validation")


def _values_beside_top1(
    bench: Workbench, key: str, net: nn.Module, tuned: nn.Module
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """The recipe's metrics before and after tuning, and the latency: one, as tuning changes no size.

    The third are reasons, by name, why a value is missing: a latency that could not be measured twice.
    """
    latency, failed = {}, {}
    if bench.times_nets:
        found, reason = measured_or_why(lambda: bench.meter(tuned), key, bench.say)
        latency = {} if found is None else {LATENCY: found.median_ms}
        failed = {LATENCY: reason} if reason else {}
    if not bench.metrics:
        return latency, latency, failed
    before, after = (bench.judge(one, bench.splits.search_val) for one in (net, tuned))
    return before | latency, after | latency, failed


def drop_checkpoint(run: Run, name: str) -> None:
    """Deletes a checkpoint that a finished result has replaced; last what `is_tuned` looks for."""
    for ending in (".json", ".safetensors"):
        run.delete(name + ending)


def is_tuned(run: Run, key: str) -> bool:
    """Whether a sub-net is fine-tuned, its checkpoint gone."""
    needed = ("config.json", "metrics.json", "net.safetensors")
    made = all(run.has(f"subnets/{key}/{name}") for name in needed)
    return made and not run.has(f"subnets/{key}/checkpoint.safetensors")


def finetune_settings(bench: Workbench) -> FinetuneSettings:
    """Those of the recipe, with what trials found better, if there were any."""
    settings = bench.recipe.finetune
    if not bench.run.has(TRIED):
        return settings
    return FinetuneSettings(**{**settings.model_dump(), **bench.run.read_json(TRIED)["best"]})
