"""Tries a fresh supernet out: whether it is the model, and whether the model's forward lets it shrink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from search_spaces import InvalidInput, Knob, SubnetConfig
from subnet_search.elastic.extraction import tensors_in
from subnet_search.elastic.graph import (
    Example,
    call_arguments,
    check_runs,
    copied,
    first_line,
    without_fast_path,
)
from subnet_search.elastic.registered_layers import WRONG_RULE
from subnet_search.elastic.supernet import Supernet

REORDERED = 1e-4  # of the largest output: sums are added up in another order


@torch.no_grad()
def unshrinkable(
    supernet: Supernet, model: nn.Module, also_training: bool, ruled: Sequence[str] = ()
) -> dict[str, str]:
    """Runs the largest sub-net, the narrowest and the smallest.

    Args:
        supernet: fresh from conversion.
        model: what it was made from.
        also_training: also runs small sub-nets in training mode, in which more layers may be called.
        ruled: what the user registered rules for, and the network calls.

    Returns:
        Paths of writers and blocks that the model's forward does not let shrink, with the reason; empty if all
        is well.

    Raises:
        InvalidInput: the largest sub-net is not the model, or a rule of the user's is wrong.
    """
    training = [(m, m.training) for root in (supernet, model) for m in root.modules()]
    try:
        with without_fast_path():
            wanted = check_runs(model.eval(), supernet.example)
            args, kwargs = call_arguments(supernet.example)
            got = supernet.eval()(*args, **kwargs)
        pairs = zip(tensors_in(wanted), tensors_in(got), strict=True)
        if not all(torch.equal(answer, again) for answer, again in pairs):
            if not all(answer.isfinite().all() for answer in tensors_in(wanted)):
                raise InvalidInput(
                    f"{type(model).__name__} answers the example with NaN or infinity; mend its weights or the example"
                )
            raise InvalidInput(
                f"{type(model).__name__} answers the same input differently in two calls, or depends on the type of "
                "its layers; in evaluation mode a model must be deterministic"
            )
        if not _lets_shrink(supernet):
            return _broken_parts(supernet)
        if ruled:
            _check_rules(supernet, ruled)
        if not also_training or not _runs_in_training(model, supernet.example):
            return {}
        with torch.random.fork_rng(devices=[]):
            supernet.train()
            return {} if _lets_shrink(supernet) else _broken_parts(supernet)
    finally:
        for module, mode in training:
            module.training = mode


def _check_rules(supernet: Supernet, ruled: Sequence[str]) -> None:
    """Puts the channels into another order, which must not change the answer, and back again."""
    generator = torch.Generator().manual_seed(0)
    orders = {name: torch.randperm(g.units, generator=generator) for name, g in supernet.groups.items()}
    example: Example = tree_map(
        lambda v: v + torch.randn(v.shape, generator=generator).to(v) if _is_real(v) else v, supernet.example
    )
    answers = []
    for order in (orders, {name: order.argsort() for name, order in orders.items()}):
        args, kwargs = call_arguments(example)
        answers.append(tensors_in(supernet(*args, **kwargs)))
        supernet.reorder(order)
    for wanted, got in zip(*answers, strict=True):
        difference = float((got - wanted).abs().max())
        if not difference <= REORDERED * float(wanted.abs().max()):
            raise InvalidInput(
                f"the rule registered for {' or '.join(ruled)} is wrong: with channels in another order the network "
                f"answers differently, by {difference:.3g}; mend the rule or leave it out"
            )


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _failure(supernet: Supernet, config: SubnetConfig) -> str | None:
    args, kwargs = call_arguments(_twice(supernet.example) if supernet.training else supernet.example)
    try:
        with supernet.subnet(config):
            supernet(*args, **kwargs)
    except Exception as error:  # user code runs here: anything can come
        for note in getattr(error, "__notes__", ()):
            if note.startswith(WRONG_RULE):
                raise InvalidInput(
                    f"{note}, but with fewer channels it fails: {first_line(error)}; mend it"
                ) from error
        return first_line(error)
    return None


def _runs_in_training(model: nn.Module, example: Example) -> bool:
    """Whether the whole model itself takes such an example in training mode."""
    args, kwargs = call_arguments(_twice(example))
    try:
        with torch.random.fork_rng(devices=[]):
            copied(model).train()(*args, **kwargs)
    except Exception:  # user code runs here: anything can come
        return False
    return True


def _twice(example: Example) -> Example:
    """A batch of two, for batch norms in training mode."""
    repeated: Example = tree_map(
        lambda v: torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim > 0 else v, example
    )
    return repeated


def _lets_shrink(supernet: Supernet) -> bool:
    """Whether the narrowest sub-net with all blocks runs, and the smallest, which skips blocks and what is in them."""
    narrowest = {k.name: k.choices[-1] if k.kind == "depth" else k.smallest for k in supernet.space.knobs}
    configs = (SubnetConfig(narrowest), supernet.space.smallest())
    return all(_failure(supernet, config) is None for config in configs)


def _broken_parts(supernet: Supernet) -> dict[str, str]:
    """Lowers one knob after the other and leaves those alone with which the forward fails.

    Widths come first: those in a block that is skipped would not be tried. The size of images comes last.
    """
    knobs = supernet.space.knobs
    config, reasons = dict(supernet.space.largest()), dict[str, str]()
    for kind in ("width", "depth", "resolution"):
        reasons |= _lowered(supernet, config, [knob for knob in knobs if knob.kind == kind])
    return {
        path: f"the model's forward fails when it shrinks: {reason}"
        for name, reason in reasons.items()
        for path in _written(supernet, name)
    }


def _lowered(supernet: Supernet, config: dict[str, int], knobs: Sequence[Knob]) -> dict[str, str]:
    """Lowers in `config` the knobs that can be; of the others, what the forward says.

    How many go at once is doubled until one of them fails, and that one is found by halving: broken parts are few and
    often neighbours.
    """

    def failure(count: int) -> str | None:
        return _failure(supernet, SubnetConfig({**config, **{k.name: k.smallest for k in knobs[:count]}}))

    reasons: dict[str, str] = {}
    while knobs and failure(len(knobs)) is not None:
        runs, fails = 0, 1
        while failure(fails) is None:
            runs, fails = fails, min(2 * fails, len(knobs))
        while fails - runs > 1:
            middle = (runs + fails) // 2
            runs, fails = (middle, fails) if failure(middle) is None else (runs, middle)
        reasons[knobs[runs].name] = failure(fails) or "it does not run"
        config |= {knob.name: knob.smallest for knob in knobs[:runs]}
        knobs = knobs[fails:]
    config |= {knob.name: knob.smallest for knob in knobs}
    return reasons


def _written(supernet: Supernet, knob: str) -> list[str]:
    """The layers whose width a knob sets, or the block it may skip."""
    tied = [group for group in supernet.groups.values() if supernet.knob_of[group.name] == knob]
    return [path for group in tied for path in group.writers] or [knob]
