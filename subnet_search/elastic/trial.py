"""Tries a fresh supernet out: whether it is the model, and whether the model's forward lets it shrink."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from search_spaces import InvalidInput, SubnetConfig
from subnet_search.elastic.extraction import tensors_in
from subnet_search.elastic.graph import Example, call_arguments, copied
from subnet_search.elastic.supernet import Supernet


@torch.no_grad()
def unshrinkable(supernet: Supernet, model: nn.Module, also_training: bool) -> dict[str, str]:
    """Runs the largest and the smallest sub-net.

    Args:
        supernet: fresh from conversion.
        model: what it was made from.
        also_training: also runs the smallest sub-net in training mode, in which more layers may be called.

    Returns:
        Paths of writers and blocks that the model's forward does not let shrink, with the reason; empty if all
        is well.
    """
    training = [(m, m.training) for root in (supernet, model) for m in root.modules()]
    try:
        args, kwargs = call_arguments(supernet.example)
        wanted = model.eval()(*args, **kwargs)
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
        if _failure(supernet, supernet.space.smallest()) is not None:
            return _broken_parts(supernet)
        if not also_training or not _runs_in_training(model, supernet.example):
            return {}
        with torch.random.fork_rng(devices=[]):
            supernet.train()
            return _broken_parts(supernet) if _failure(supernet, supernet.space.smallest()) else {}
    finally:
        for module, mode in training:
            module.training = mode


def _failure(supernet: Supernet, config: SubnetConfig) -> str | None:
    args, kwargs = call_arguments(_twice(supernet.example) if supernet.training else supernet.example)
    try:
        with supernet.subnet(config):
            supernet(*args, **kwargs)
    except Exception as error:  # user code runs here: anything can come
        return (str(error).strip() or type(error).__name__).splitlines()[0]
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


def _broken_parts(supernet: Supernet) -> dict[str, str]:
    """Tries every knob by itself."""
    largest, broken = supernet.space.largest(), {}
    for knob in supernet.space.knobs:
        failure = _failure(supernet, SubnetConfig({**largest, knob.name: knob.smallest}))
        if failure is not None:
            tied = [g for g in supernet.groups.values() if supernet.knob_of[g.name] == knob.name]
            for path in [path for group in tied for path in group.writers] or [knob.name]:
                broken[path] = f"the model's forward fails when it shrinks: {failure}"
    if not broken:
        raise InvalidInput(
            "the smallest sub-net does not run though every knob can be lowered alone: "
            f"{_failure(supernet, supernet.space.smallest())}; raise min_share or exclude layers"
        )
    return broken
