"""Label trees: coarse classes for the thin parts of a network, finer ones for the thicker parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces import InvalidInput
from subnet_search.training.losses import at_least_float

Branch = Mapping[str, Any] | Sequence[Any]  # names of groups to what is in them; or a list of classes


@dataclass(frozen=True)
class LabelTree:
    """Which group each class belongs to, level by level from the coarsest to the classes themselves.

    Attributes:
        classes: their names, in the order of the class numbers.
        groups: the names of the groups of each level.
        members: for each level the number of the group of each class, `[num_levels][num_classes]`.
    """

    classes: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    members: tuple[tuple[int, ...], ...]

    @property
    def levels(self) -> int:
        """How many levels there are; the last one has every class for itself."""
        return len(self.groups)

    def size(self, level: int) -> int:
        """The number of groups of a level."""
        return len(self.groups[level])

    def labels(self, labels: Tensor, level: int) -> Tensor:
        """The group numbers `[B]` at a level of class numbers `[B]`.

        Raises:
            InvalidInput: there is no such level, or a label is no class (seen on the CPU).
        """
        if not 0 <= level < self.levels:
            raise InvalidInput(f"the label tree has levels 0 to {self.levels - 1}, got {level}")
        known = len(self.classes)
        if labels.device.type == "cpu" and not bool(((labels >= 0) & (labels < known)).all()):
            raise InvalidInput(
                f"labels must be class numbers from 0 to {known - 1}, got {int(labels.min())} to {int(labels.max())}"
            )
        return torch.tensor(self.members[level], device=labels.device)[labels]

    def coarsen(self, probabilities: Tensor, level: int, to: int) -> Tensor:
        """Sums what belongs together: `[B, size(level)]` to `[B, size(to)]`, where `to` is no finer.

        Raises:
            InvalidInput: `to` is a finer level.
        """
        if not 0 <= to <= level < self.levels:
            raise InvalidInput(
                f"probabilities of level {level} can be summed to levels 0 to {level}, got {to}"
            )
        place = torch.zeros(self.size(level), dtype=torch.long, device=probabilities.device)
        place[list(self.members[level])] = torch.tensor(self.members[to], device=probabilities.device)
        summed = probabilities.new_zeros(len(probabilities), self.size(to))
        return summed.index_add(1, place, probabilities)

    def spread(self, branches: int) -> tuple[int, ...]:
        """A level for each of so many sub-nets, thin to thick: each level for as many of them as possible alike.

        Raises:
            InvalidInput: there are fewer sub-nets than levels.
        """
        if branches < self.levels:
            raise InvalidInput(f"{self.levels} levels need as many sub-nets at least, got {branches}")
        return tuple(k * self.levels // branches for k in range(branches))


def label_tree(classes: Sequence[str], tree: Branch) -> LabelTree:
    """Reads a tree: `{"animal": {"pet": ["cat", "dog"], "wild": ["deer"]}, "vehicle": ["car", "ship"]}`.

    Any depth, and branches of different depths: a class that stands higher up than others is a group of its own from
    there on.

    Args:
        classes: names in the order of the class numbers.
        tree: mappings of groups, down to lists of classes.

    Raises:
        InvalidInput: the tree does not hold every class exactly once, or has an empty group.
    """
    known = tuple(classes)
    if len(set(known)) < len(known) or len(known) < 2:
        raise InvalidInput(f"a label tree needs at least two classes of different names, got {list(known)}")
    trails: dict[str, tuple[str, ...]] = {}
    for trail, name in _leaves(tree, ()):
        if name not in known:
            raise InvalidInput(
                f"the label tree names {name!r}, which is no class; classes are {', '.join(known)}"
            )
        if name in trails:
            raise InvalidInput(f"the label tree holds the class {name!r} twice; leave it in one group")
        trails[name] = trail
    if missing := [name for name in known if name not in trails]:
        raise InvalidInput(
            f"the label tree must hold every class, it lacks {', '.join(missing)}; put them into a group, or "
            "on their own at the top"
        )
    depth = max(map(len, trails.values()))
    groups, members = [], []
    for level in range(depth + 1):
        names = [_at(trails[name], name, level) for name in known]
        order = list(dict.fromkeys(names))
        if level == depth:
            order = [(trails[name], name) for name in known]  # the class numbers themselves
        groups.append(tuple(" / ".join([*trail, *own]) for trail, *own in order))
        members.append(tuple(range(len(known))) if level == depth else tuple(map(order.index, names)))
    kept = [i for i in range(depth + 1) if len(groups[i]) > 1 and (i == depth or len(groups[i]) < len(known))]
    return LabelTree(known, tuple(groups[i] for i in kept), tuple(members[i] for i in kept))


def _at(trail: tuple[str, ...], name: str, level: int) -> tuple[Any, ...]:
    """The group of a class at a level: its trail so far, or itself where that ends earlier; a group of one name with a
    class is another one.
    """
    return (trail[: level + 1],) if level < len(trail) else (trail, name)


def _leaves(tree: Branch, trail: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(tree, str) or not isinstance(tree, Mapping | Sequence):
        raise InvalidInput(f"a label tree is made of mappings and lists of class names, got {tree!r}")
    if not tree:
        raise InvalidInput(
            f"the group {' / '.join(trail) or 'at the top'} of the label tree is empty; leave it out"
        )
    if isinstance(tree, Mapping):
        if len({str(name) for name in tree}) < len(tree):
            raise InvalidInput(f"names of groups must differ as text, got {list(tree)}")
        for name, inside in tree.items():
            yield from _leaves(inside, (*trail, str(name)))
        return
    for one in tree:
        if isinstance(one, str):
            yield trail, one
        else:
            yield from _leaves(one, trail)


def taxonomy_loss(
    answers: Sequence[Tensor], labels: Tensor, tree: LabelTree, levels: Sequence[int]
) -> Tensor:
    """Sum over sub-nets of the cross-entropy with the labels of each one's level.

    Source:
        Lee, Shin, "Anytime Neural Prediction via Slicing Networks Vertically", 2018, arXiv:1807.02609. The form
        of the loss is ours.

    Args:
        answers: logits `[B, tree.size(level)]` of each sub-net, thin to thick.
        labels: class numbers `[B]`.
        tree: of the classes.
        levels: of each sub-net; never coarser from one to the next.

    Raises:
        InvalidInput: levels that are not as many as answers, or become coarser.
    """
    if len(levels) != len(answers) or list(levels) != sorted(levels):
        raise InvalidInput(f"{len(answers)} sub-nets need as many levels, never coarser, got {list(levels)}")
    losses = [
        F.cross_entropy(at_least_float(answer), tree.labels(labels, level))
        for answer, level in zip(answers, levels, strict=True)
    ]
    return torch.stack(losses).sum()
