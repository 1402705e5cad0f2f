"""LC-Net: for each input, small networks score which blocks run and which groups of channels inside of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from search_spaces import InvalidInput
from subnet_search.dynamic.cutting import example_of
from subnet_search.dynamic.scored_blocks import Decisions, ScoredBlock, Scores, noting
from subnet_search.elastic.operations.graph_form import RunsGraph
from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import count_macs


class LayerChannelNet(nn.Module):
    """A network whose blocks are scored for each input by an L-Net, and the channels inside of them by C-Nets.

    In training everything runs and is masked, with straight-through gradients; in evaluation what is not kept does not
    run: the inputs of a batch are grouped, block by block, by what was decided for them.

    Source:
        Xia, Yin, Dai, Jha, "Fully Dynamic Inference with Deep Neural Networks", 2020, arXiv:2007.15151 (LC-Net). The
        authors' code is not public; masks after batch norm and activation, straight-through scores and thresholds
        follow LAUDNet (arXiv:2308.15949) and ManiDP (arXiv:2103.05861).

    Args:
        supernet: trained, of the model's own classes; copied, at its largest.
        channel_groups: parts of each inner group of channels that are kept or left out together.
        seed: of the scores' first weights.

    Raises:
        InvalidInput: there is no block that may be skipped, or the network runs its graph.
    """

    def __init__(self, supernet: Supernet, channel_groups: int = 4, seed: int = 0) -> None:
        super().__init__()
        if isinstance(supernet.model, RunsGraph):
            raise InvalidInput(
                "scores of layers and channels need a network of its own classes, and this one runs the graph of its "
                'operations; convert it with [elastic] form = "own classes", or use method = "ds"'
            )
        paths = [b for b in supernet.blocks if not any(b.startswith(f"{o}.") for o in supernet.blocks)]
        if not paths:
            raise InvalidInput('no block of this network can be skipped for an input; use method = "ds"')
        supernet.activate(supernet.space.largest())
        self.model = copy.deepcopy(supernet.model).eval()
        example = example_of(supernet)[:1].to(next(self.model.parameters()).device)
        inputs = _inputs_of(self.model, paths, example)
        order = sorted(paths, key=list(inputs).index)
        widths = [inputs[path].shape[1 if inputs[path].ndim == 4 else -1] for path in order]
        self.total_macs = count_macs(self.model, example)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = Scores(widths[0], len(order))
            self.blocks = [
                ScoredBlock(self.model.get_submodule(path), path, number, supernet, channel_groups, width)
                for number, (path, width) in enumerate(zip(order, widths, strict=True))
            ]
        for block in self.blocks:
            block.note_macs(inputs[block.path])
            parent, _, name = block.path.rpartition(".")
            setattr(self.model.get_submodule(parent), name, block)
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
        first = self.blocks[0]
        hook = first.register_forward_pre_hook(self._score)
        try:
            logits: Tensor = self.model(x)
        finally:
            hook.remove()
        return logits

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
