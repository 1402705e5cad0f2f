"""How much of the long stages a run has behind it, as its checkpoints and results say."""

from __future__ import annotations

import tomllib

from subnet_search.recipe import Recipe
from subnet_search.record import Run
from subnet_search.record.run import SETTINGS
from subnet_search.training import PlainStep
from subnet_search.training.checkpoint import stored_place
from subnet_search.training.loop import describe_step

JOINED, JOINING = "joined.safetensors", "checkpoint-join"  # weights and checkpoint of a path's joint training


def is_on_a_path(run: Run) -> bool:
    """Whether the run's search is a progressive one."""
    search = tomllib.loads(run.read(SETTINGS).decode()).get("search", {})
    return bool(search.get("searcher") == "progressive")


def chosen_keys(run: Run) -> list[str]:
    """Keys of the sub-nets that were chosen."""
    return sorted({name.split("/")[1] for name in run.names() if name.startswith("subnets/")})


def begun_epochs(run: Run, recipe: Recipe) -> dict[str, tuple[int, int]]:
    """Of "teacher", "train", "join" and "finetune", if begun: the epochs they were begun with, and those finished.

    A stage keeps the epochs it was begun with, whatever is planned later; all sub-nets are tuned equally long.
    """
    found: dict[str, tuple[int, int]] = {}
    if stored := stored_place(run, "checkpoint"):
        identity, place = stored
        stage = "teacher" if identity["stage"] == describe_step(PlainStep()) else "train"
        found[stage] = (int(identity["epochs"]), place.epoch)
    if stored := stored_place(run, JOINING):
        found["join"] = (int(stored[0]["epochs"]), stored[1].epoch)
    for key in chosen_keys(run):
        if stored := stored_place(run, f"subnets/{key}/checkpoint"):
            identity, place = stored
            found["finetune"] = (int(identity["epochs"]), place.epoch)
        elif run.has(f"subnets/{key}/metrics.json"):
            metrics = run.read_json(f"subnets/{key}/metrics.json")
            found.setdefault("finetune", (int(metrics.get("epochs", recipe.finetune.epochs)), 0))
    return found


def num_evaluated(run: Run) -> int:
    """Sub-nets that the record knows, of the weights and data that it looked at last."""
    answers = [line for line in run.journal.lines() if line["kind"] != "ask"]
    return len({line["key"] for line in answers if line["context"] == answers[-1]["context"]})
