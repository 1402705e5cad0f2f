"""A path in a run folder: its elements, the weights it was tuned to, and what it was begun with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import safetensors.torch

from search_spaces import InvalidInput, SubnetConfig
from search_spaces.presets import ladders, steps_down
from subnet_search.elastic.states import copy_state
from subnet_search.elastic.supernet import Supernet
from subnet_search.record import Run
from subnet_search.searchers.path import PathElement, path_from_json, path_to_json
from subnet_search.settings import ProgressiveSettings

PATH = "path.json"

Predict = Callable[[SubnetConfig], float]


def is_walked(run: Run) -> bool:
    """Whether a path was walked to its end, and the weights that it was last tuned to are there."""
    if not run.has(PATH):
        return False
    complete, tuned = run.read_json(PATH).get("complete"), _last_tuned(read_path(run))
    return bool(complete) and (tuned is None or run.has(_weights(tuned)))


def read_path(run: Run) -> list[PathElement]:
    """The path that the run has so far."""
    return path_from_json(run.read_json(PATH)["elements"])


def load_path(
    run: Run, supernet: Supernet, settings: ProgressiveSettings, predict: Predict | None = None
) -> list[PathElement]:
    """The path that `find_path` left in the run; the supernet gets the weights that go with it.

    Args:
        run: where it was walked.
        supernet: with the weights it was begun with.
        settings: those of the walk.
        predict: that of the walk.

    Raises:
        InvalidInput: it was begun with other weights, settings or predictions, or is damaged.
    """
    return KeptPath(run, supernet, settings, predict).load()


def store_path(
    run: Run,
    supernet: Supernet,
    settings: ProgressiveSettings,
    path: Sequence[PathElement],
    predict: Predict | None = None,
) -> None:
    """Writes path.json as the walk that comes to this path would."""
    KeptPath(run, supernet, settings, predict).save(path, complete=True)


class KeptPath:
    """path.json, and beside it the weights that the last tuning left.

    Attributes:
        timing: the `timing` of what latencies are measured with; None where nothing is timed, or by a stranger.
    """

    def __init__(
        self, run: Run, supernet: Supernet, settings: ProgressiveSettings, predict: Predict | None
    ) -> None:
        self._run, self._supernet = run, supernet
        self.timing: Mapping[str, Any] | None = None
        told = set(ProgressiveSettings.model_fields) - {"device", "memory_mib"}
        digest = hashlib.sha256(settings.model_dump_json(include=told).encode())
        if predict is not None:
            digest.update(_foretold(supernet, settings, predict).encode())
        for name, tensor in sorted(supernet.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).numpy().tobytes())
        self._context = digest.hexdigest()[:16]

    def load(self) -> list[PathElement]:
        """The path so far; the supernet gets the weights that go with it.

        Raises:
            InvalidInput: it was begun with other weights, settings or predictions.
        """
        if not self._run.has(PATH):
            return []
        stored = self._run.read_json(PATH)
        if stored.get("context") != self._context:
            raise InvalidInput(
                f"{self._run.folder}/{PATH} was begun with other weights or settings, those of its ranking included; "
                "delete it to walk again, or begin a new run with --name"
            )
        path = path_from_json(stored["elements"])
        if (tuned := _last_tuned(path)) is not None:
            if not self._run.has(_weights(tuned)):
                return []  # without its weights a path cannot go on
            state = safetensors.torch.load_file(self._run.verify(_weights(tuned)))
            copy_state(self._supernet.model, state)
        self.timing = stored.get("timing")
        return path

    def go_on_with(self, timing: Mapping[str, Any] | None, begun: Sequence[PathElement]) -> None:
        """Takes what the walk measures latencies with from here on.

        Raises:
            InvalidInput: the path was begun with another machine, whose milliseconds are not to be compared.
        """
        if begun and timing != self.timing:
            raise InvalidInput(
                f"the latencies in {self._run.folder}/{PATH} were measured by other means, on another machine, with "
                "other threads or another batch size; go on with those, or delete it to walk again"
            )
        self.timing = timing

    def save(self, path: Sequence[PathElement], *, complete: bool = False) -> None:
        """Writes path.json; weights of earlier tunings are needed no longer."""
        content = {"context": self._context, "complete": complete, "elements": path_to_json(path)}
        if self.timing is not None:
            content["timing"] = self.timing
        self._run.write_json(PATH, content)
        tuned = [place for place, element in enumerate(path) if element.tuned]
        for place in tuned[:-1]:
            self._run.delete(_weights(place))

    def save_weights(self, place: int) -> None:
        """Writes the weights after the tuning of an element, before path.json knows of it."""
        state = {
            n: t.detach().cpu().clone().contiguous() for n, t in self._supernet.model.state_dict().items()
        }
        self._run.write(_weights(place), safetensors.torch.save(state))


def _foretold(supernet: Supernet, settings: ProgressiveSettings, predict: Predict) -> str:
    """What a prediction says about the first drops and about the smallest sub-net, to 6 digits.

    That tells predictions apart on every machine: the last digits of a sum may differ from one to the next.
    """
    space = supernet.space
    rungs = ladders(space, settings.groups, settings.step, settings.floor)
    told = [drop for _, drop in steps_down(space, space.largest(), rungs)]
    return " ".join(f"{predict(config):.6g}" for config in (*told, space.smallest()))


def _last_tuned(path: Sequence[PathElement]) -> int | None:
    return max((place for place, element in enumerate(path) if element.tuned), default=None)


def _weights(place: int) -> str:
    return f"path-weights-{place}.safetensors"
