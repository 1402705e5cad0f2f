"""LC-Net: for each input, small networks score which blocks run and which groups of channels inside of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.dynamic.cutting import example_of
from subnet_search.dynamic.scored_blocks import Decisions, ScoredBlock, Scores, Sliceable, noting
from subnet_search.dynamic.staged import GraphRun
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.supernet import Supernet
from subnet_search.elastic.switchable import switchable_norms
from subnet_search.measure import count_macs


class LayerChannelNet(nn.Module):
    """A network whose blocks are scored for each input by an L-Net, and the channels inside by C-Nets.

    In training everything runs and is masked, with straight-through gradients; in evaluation what is not kept does not
    run: the inputs of a batch are grouped, block by block, by what was decided for them.

    Source:
        Xia, Yin, Dai, Jha, "Fully Dynamic Inference with Deep Neural Networks", 2020, arXiv:2007.15151 (LC-Net). The
        authors' code is not public; masks after batch norm and activation, straight-through scores and thresholds
        follow LAUDNet (arXiv:2308.15949) and ManiDP (arXiv:2103.05861).

    Args:
        supernet: trained, of either form; copied, at its largest.
        channel_groups: parts of each inner group of channels that are kept or left out together.
        seed: of the scores' first weights.
        groups: names of the groups of channels that are scored, block by block, as of an earlier net; by default all
            that can be left out, which is tried with the weights that the supernet has.

    Raises:
        InvalidInput: there is no block that may be skipped, or what is skipped decides about norms.
    """

    def __init__(
        self,
        supernet: Supernet,
        channel_groups: int = 4,
        seed: int = 0,
        groups: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        if supernet.sub_paths is not None or any(True for _ in switchable_norms(supernet.model)):
            raise InvalidInput(
                "blocks of adaptive depth stand or fall together, with norms that go by that, and cannot be skipped "
                'one by one for each input; use method = "ds", or a run without [elastic] adaptive_depth'
            )
        paths = [b for b in supernet.blocks if not any(b.startswith(f"{o}.") for o in supernet.blocks)]
        if not paths:
            raise InvalidInput('no block of this network can be skipped for an input; use method = "ds"')
        supernet.activate(supernet.space.largest())
        self.model = copy.deepcopy(supernet.model).eval()
        example = example_of(supernet)[:1].to(next(self.model.parameters()).device)
        self.total_macs = count_macs(self.model, example)
        self.graph: GraphRun | None = None
        if isinstance(self.model, RunsGraph):
            self.graph = GraphRun(self.model, supernet, paths)
        inputs = _inputs_of(self.model, paths, example) if self.graph is None else self.graph.inputs(example)
        order = sorted(inputs, key=list(inputs).index)
        axes = [_axis(self._first_layer(path), inputs[path]) for path in order]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = Scores(inputs[order[0]].shape[axes[0]], len(order), axis=axes[0])
            self.blocks = [
                ScoredBlock(
                    self._block(number, path),
                    path,
                    number,
                    supernet,
                    channel_groups,
                    inputs[path],
                    axis,
                    None if groups is None else groups[number],
                )
                for number, (path, axis) in enumerate(zip(order, axes, strict=True))
            ]
        for block in self.blocks:
            if self.graph is not None:
                block.note_terms(supernet)
                continue
            block.note_macs(inputs[block.path])
            parent, _, name = block.path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, block)
        if self.graph is not None:
            self.scored = nn.ModuleList(self.blocks)
        full = [float(block.macs(torch.ones(1, max(len(block.groups), 1)))[0]) for block in self.blocks]
        self.base_macs = self.total_macs - sum(full) + self.layers.macs()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of training, for its schedule
        self.steps: Tensor
        self.threshold = 0.5
        self.decisions = Decisions()
        self.calibrated = True

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, num_classes]`; afterwards `decisions` tells what was decided."""
        return self.decide(x, sliced=not self.training)

    def decide(self, x: Tensor, *, sliced: bool) -> Tensor:
        """The answer, by what is kept alone or by masks; in evaluation both are the same up to rounding."""
        self.decisions = Decisions(self.threshold, sliced)
        for block in self.blocks:
            block.decisions = self.decisions
        if self.graph is not None:
            answer: Tensor = self.graph.run(x, self._run_block)
            return answer
        first = self.blocks[0]
        hook = first.register_forward_pre_hook(self._score)
        try:
            logits: Tensor = self.model(x)
        finally:
            hook.remove()
        return logits

    def _run_block(self, number: int, x: Tensor) -> Tensor:
        """A block of the graph form; before the first one the L-Net scores all."""
        if number == 0:
            self.decisions.layers = self.layers(x)
        found: Tensor = self.blocks[number](x)
        return found

    def _block(self, number: int, path: str) -> nn.Module | Sliceable:
        return self.model.get_submodule(path) if self.graph is None else self.graph.block(number)

    def _first_layer(self, path: str) -> nn.Module | None:
        if self.graph is not None:
            return self.graph.first_layer(path)
        return next((m for m in self.model.get_submodule(path).modules() if not list(m.children())), None)

    def _score(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.decisions.layers = self.layers(args[0])

    def used(self) -> Tensor:
        """The share of the last call's inputs that ran each block, `[num_blocks]`."""
        return torch.stack([self.decisions.kept[number].mean() for number in range(len(self.blocks))])

    def costs(self) -> Tensor:
        """Multiply-adds of each input of the last call, all scores included, `[B]`; gradients reach the scores."""
        told = self.decisions
        total = torch.full_like(told.kept[0], float(self.base_macs), dtype=torch.float64)
        for number, block in enumerate(self.blocks):
            scoring = 0 if block.channels is None else block.channels.macs()
            total = total + scoring + told.kept[number] * block.macs(told.shares[number].double())
        return total


def _axis(first: nn.Module | None, x: Tensor) -> int:
    """The axis of the channels that come into a block, by the first of its layers."""
    if isinstance(first, nn.Linear | nn.LayerNorm):
        return -1
    return -1 if x.ndim == 3 and not isinstance(first, nn.Conv1d | nn.BatchNorm1d) else 1


def _inputs_of(model: nn.Module, paths: Sequence[str], example: Tensor) -> dict[str, Tensor]:
    """What comes into each block for an example, in the order of the calls."""
    seen: dict[str, Tensor] = {}
    hooks = [model.get_submodule(path).register_forward_pre_hook(noting(seen, path)) for path in paths]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
