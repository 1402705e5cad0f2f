"""The bar of a search: how many sub-nets, the front, its hypervolume, workers and time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tqdm import tqdm

from subnet_search.progress import progress
from subnet_search.record import Evaluation, Images, Objective, ParetoFront, worst_values

from .budget import Budget


class Shown:
    """A bar that is moved by every evaluation; what that costs does not grow with their number.

    Args:
        what: the words in front.
        objectives: of the evaluations.
        budget: of the search.
        enabled: False is silent.
    """

    def __init__(
        self, what: str, objectives: tuple[Objective, ...], budget: Budget, *, enabled: bool
    ) -> None:
        self._objectives, self._minutes = objectives, budget.minutes
        self._bar: tqdm[object] = progress(budget.evaluations, what, "subnet", enabled=enabled)
        self._front = ParetoFront(objectives, ())
        self._controls: list[Evaluation] = []
        self._compares = False
        self._reference: dict[str, float] = {}
        self._controls_volume = self._volume = 0.0
        self._spent = Spent()

    def compare(self) -> None:
        """From here on the front's hypervolume is told, relative to that of the controls."""
        self._compares = True
        self._measure_controls()

    def _measure_controls(self) -> None:
        self._reference = worst_values(self._objectives, self._controls)
        if self._reference:
            controls = ParetoFront.of(self._objectives, self._controls)
            self._controls_volume = controls.hypervolume(self._reference)
            self._volume = self._front.hypervolume(self._reference)

    def add(self, evaluation: Evaluation, *, control: bool, note: str, minutes: float) -> None:
        """Moves the bar by one evaluation; `note` is said of the workers, `minutes` are spent so far."""
        if self._bar.disable:
            return
        if control:
            self._controls.append(evaluation)
            if self._compares:  # one that came late
                self._measure_controls()
        front = ParetoFront.of(self._objectives, [*self._front, evaluation])
        if front != self._front and self._controls_volume > 0:
            self._volume = front.hypervolume(self._reference)
        self._front = front
        self._spent.add(evaluation.images)
        notes = [f"front {len(front)}", self._spent.told(), note]
        if self._controls_volume > 0:
            notes.append(f"hypervolume {self._volume / self._controls_volume:.2f} x controls")
        if self._minutes is not None:
            notes.append(f"{minutes:.1f} of {self._minutes:g} min")
        self._bar.set_postfix_str(", ".join(filter(None, notes)), refresh=False)
        self._bar.update(1)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


@dataclass
class Spent:
    """Images that evaluations cost, and would have cost in full."""

    spent: int = 0
    in_full: int = 0

    def add(self, images: Images | None) -> None:
        """Counts one evaluation."""
        if images is not None:
            self.spent += images.spent
            self.in_full += images.in_full_spent

    def told(self) -> str:
        """Their share; "" where nothing is counted."""
        return f"{100 * self.spent / self.in_full:.0f} % of the images" if self.in_full else ""


def images_told(evaluations: Iterable[Evaluation]) -> str:
    """How many images evaluations cost beside what they cost in full; "" where nothing is counted."""
    counted = Spent()
    for evaluation in evaluations:
        counted.add(evaluation.images)
    return counted.told()
