"""Finds, tunes, proves and exports the good sub-networks of a trained vision model.

Names are imported when they are first used, so that `subnet-search --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "elastic": (
        "Passes",
        "Ranking",
        "Supernet",
        "Statistics",
        "extract",
        "make_elastic",
        "recalibrate",
        "register_rule",
    ),
    "data": ("Splits",),
    "dynamic": ("ControlSettings", "DynamicNet", "save_dynamic"),
    "exporting": ("Exported", "export"),
    "finetuning": ("FinetuneResult", "finetune"),
    "measure": ("TaskEvaluator", "make_evaluator", "measure_latency", "measure_nets", "prove"),
    "models": ("load_model",),
    "rebuilding": ("load_subnet",),
    "paths": ("progressive_search",),
    "ranking": (
        "bn_scale_ranking",
        "l1_ranking",
        "noise_levels",
        "noise_ranking",
        "predicted_increase",
        "random_ranking",
        "rank",
        "taylor_ranking",
        "weight_noise_ranking",
    ),
    "record": ("Evaluation", "Objective", "ParetoFront", "Run", "create_run", "open_run"),
    "searchers": (
        "Budget",
        "Evaluator",
        "EvaluatorFactory",
        "Racing",
        "SearchResult",
        "Searcher",
        "SpaceExhausted",
        "StudyClaims",
        "Workers",
        "make_searcher",
        "search",
    ),
    "settings": (
        "DeviceSettings",
        "ElasticSettings",
        "EvaluateSettings",
        "FinetuneSettings",
        "ProgressiveSettings",
        "TrainSettings",
    ),
    "subnet_sets": ("load_subnets", "save_subnets"),
    "training": (
        "Among",
        "BootstrapStep",
        "PlainStep",
        "SandwichStep",
        "SkipPathStep",
        "TrainResult",
        "UniformWidths",
        "make_skip_aware",
        "train",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
