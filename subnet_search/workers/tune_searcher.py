"""Our searchers for those who use Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces import InvalidInput, SearchSpace, SubnetConfig
from subnet_search.record import Evaluation, Objective, check_objectives
from subnet_search.searchers import Searcher, SpaceExhausted

from .link import import_tune


def as_tune_searcher(searcher: Searcher, space: SearchSpace, objectives: Sequence[Objective]) -> Any:
    """A `ray.tune.search.Searcher` that hands on what one of our searchers proposes: `TuneConfig(search_alg=...)`.

    A trial gets the knobs of a sub-net as its config, beside what `param_space` may hold, and reports one number for
    each objective, by name. A trial that fails, or lacks one of them, is told as failed. A searcher that has proposed
    everything ends the experiment.

    Args:
        searcher: from `make_searcher`, for the same space and objectives.
        space: gives the config back its canonical form.
        objectives: what trials report.

    Raises:
        InvalidInput: Ray Tune is not installed.
    """
    base = import_tune().search.Searcher

    class OurSearcher(base):  # type: ignore[misc, valid-type]
        """Keeps which trial evaluates which sub-net; `save` and `restore` write and read JSON."""

        def __init__(self) -> None:
            first = check_objectives(objectives)[0]
            super().__init__(metric=first.name, mode=first.goal)
            self._asked: dict[str, SubnetConfig] = {}
            self._told: list[dict[str, Any]] = []

        def set_search_properties(self, *_: Any, **__: Any) -> bool:
            """Its space and objectives are set already."""
            return True

        def suggest(self, trial_id: str) -> Any:
            """The next sub-net's knobs."""
            try:
                config = searcher.ask()
            except SpaceExhausted:
                return base.FINISHED
            self._asked[trial_id] = config
            return dict(config)

        def on_trial_complete(
            self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
        ) -> None:
            """Tells what came of it."""
            if (config := self._asked.pop(trial_id, None)) is None:
                return
            found = {o.name: (result or {}).get(o.name) for o in objectives}
            self._tell(dict(config), None if error or None in found.values() else list(found.values()))

        def _tell(self, config: Mapping[str, int], values: Sequence[Any] | None) -> None:
            self._told.append({"config": dict(config), "values": values})
            known = space.canonical(SubnetConfig(config))
            failed = Evaluation(known, (), "failed", "the trial failed")
            searcher.tell(failed if values is None else Evaluation(known, tuple(map(float, values))))

        def save(self, checkpoint_path: str) -> None:
            """What was told, and what is under way."""
            asked = {trial: dict(config) for trial, config in self._asked.items()}
            Path(checkpoint_path).write_text(json.dumps({"told": self._told, "asked": asked}))

        def restore(self, checkpoint_path: str) -> None:
            """Tells a new searcher the same; `InvalidInput` for a file of something else."""
            try:
                stored = json.loads(Path(checkpoint_path).read_text())
                told, asked = stored["told"], stored["asked"]
            except (OSError, ValueError, KeyError) as error:
                raise InvalidInput(f"{checkpoint_path} is no state of a searcher: {error}") from error
            for line in told:
                self._tell(line["config"], line["values"])
            self._asked = {trial: space.canonical(SubnetConfig(config)) for trial, config in asked.items()}

    return OurSearcher()
