"""A network that runs, for each input, only the slice that its gates choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from subnet_search.dynamic.gates import DoubleHeadedGate
from subnet_search.dynamic.routes import Decisions
from subnet_search.elastic.image_size import as_taken

HEAD = "head"


def name_of(decisions: Decisions) -> str:
    """How a part or a gate is named: "head" before all decisions, "1_0" after a 1 and a 0."""
    return "_".join(map(str, decisions)) or HEAD


class SlimmingNet(nn.Module):
    """Plain parts joined by gates: every part is dense, and what is not chosen does not run.

    One image takes one way through. The images of a larger batch are grouped by what their gates say, and each group
    runs as a batch of its own. The net is for inference: it is always in evaluation mode.

    Args:
        parts: by the decisions before them; `()` is the head, full rows of decisions end in logits.
        gates: by the decisions before them.
        macs: of one input along each full row of decisions, gates included.
    """

    def __init__(
        self,
        parts: Mapping[Decisions, nn.Module],
        gates: Mapping[Decisions, DoubleHeadedGate],
        macs: Mapping[Decisions, int],
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name_of(decisions): part for decisions, part in parts.items()})
        self.gates = nn.ModuleDict({name_of(decisions): gate for decisions, gate in gates.items()})
        self.leaves = tuple(sorted(macs))
        self.macs = tuple(int(macs[leaf]) for leaf in self.leaves)  # of each leaf
        self.calibrated = True  # every part has statistics of its own
        self.train(False)

    def train(self, mode: bool = True) -> SlimmingNet:
        """Parts stay in evaluation mode, as their statistics are measured; gates alone follow `mode`."""
        super().train(False)
        for gate in self.gates.values():
            gate.train(mode)
        return self

    def gate(self, prefix: Decisions) -> DoubleHeadedGate:
        """The gate after these decisions."""
        gate: DoubleHeadedGate = self.gates[name_of(prefix)]  # type: ignore[assignment]
        return gate

    def prefixes(self) -> tuple[Decisions, ...]:
        """The decisions before each gate."""
        depth = len(self.leaves[0])
        return tuple(sorted({leaf[:d] for leaf in self.leaves for d in range(depth)}))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]`."""
        return self.run(images)[0]

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, num_classes]`, and for each image the number of its way in `leaves`, `[B]`."""
        return self._from((), self.parts[HEAD](as_taken(self, images)))

    def _from(self, prefix: Decisions, features: Tensor) -> tuple[Tensor, Tensor]:
        if name_of(prefix) not in self.gates:
            return features, torch.full((len(features),), self.leaves.index(prefix), device=features.device)
        gate = self.gate(prefix)
        logits, weighed = gate(features)
        choices = gate.decide(logits)
        first = int(choices[0]) if len(choices) else 0
        if bool((choices == first).all()):  # one image, or all alike
            return self._go(prefix, first, weighed)
        groups = [(k, (choices == k).nonzero()[:, 0]) for k in choices.unique().tolist()]
        done = [(rows, *self._go(prefix, k, weighed[rows])) for k, rows in groups]
        answers = done[0][1].new_empty(len(features), *done[0][1].shape[1:])
        ways = choices.new_empty(len(features))
        for rows, found, leaves in done:
            answers[rows], ways[rows] = found, leaves
        return answers, ways

    def _go(self, prefix: Decisions, choice: int, features: Tensor) -> tuple[Tensor, Tensor]:
        after = (*prefix, choice)
        return self._from(after, self.parts[name_of(after)](features))

    def unfold(self, images: Tensor) -> Unfolded:
        """All ways at once, for training gates: logits of every leaf, and of every gate along it."""
        leaves: dict[Decisions, Tensor] = {}
        gates: dict[Decisions, Tensor] = {}
        pooled: dict[Decisions, Tensor] = {}
        with torch.no_grad():
            head = self.parts[HEAD](images)
        for prefix, features in self._all_from((), head):
            if name_of(prefix) in self.gates:
                gate = self.gate(prefix)
                pooled[prefix] = gate.pooled(features)
                gates[prefix] = gate.slimming(gate.units(pooled[prefix]))
            else:
                leaves[prefix] = features
        return Unfolded(torch.stack([leaves[leaf] for leaf in self.leaves], dim=1), gates, pooled)

    def _all_from(self, prefix: Decisions, features: Tensor) -> Iterator[tuple[Decisions, Tensor]]:
        yield prefix, features
        if name_of(prefix) in self.gates:
            gate = self.gate(prefix)
            _, weighed = gate(features)
            for choice in range(gate.num_choices):
                after = (*prefix, choice)
                yield from self._all_from(after, self.parts[name_of(after)](weighed.clone()))


@dataclass(frozen=True)
class Unfolded:
    """What a batch gives along all ways.

    Attributes:
        answers: logits `[B, num_leaves, num_classes]`.
        gates: slimming logits `[B, num_choices]` by the decisions before.
        pooled: what those gates read, `[B, C]`.
    """

    answers: Tensor
    gates: dict[Decisions, Tensor]
    pooled: dict[Decisions, Tensor]


def leaf_weights(
    leaves: tuple[Decisions, ...], chosen: Mapping[Decisions, Tensor], choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """How much each leaf counts, `[B, num_leaves]`: the product of what its gates give.

    Args:
        leaves: full rows of decisions.
        chosen: by the decisions before, what `choose` reads.
        choose: gives rows that sum to one, `[B, num_choices]`.
    """
    weights = {prefix: choose(logits) for prefix, logits in chosen.items()}
    columns = []
    for leaf in leaves:
        parts = [weights[leaf[:depth]][:, choice] for depth, choice in enumerate(leaf)]
        columns.append(torch.stack(parts).prod(dim=0))
    return torch.stack(columns, dim=1)
