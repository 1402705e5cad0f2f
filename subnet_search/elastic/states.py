"""Puts tensors into a module by name, whatever its own loading code does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from search_spaces import InvalidInput


def check_sized(net: nn.Module) -> None:
    """Raises `InvalidInput` for lazy layers, which have no weights before their first input."""
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            path = name.rpartition(".")[0]
            raise InvalidInput(
                f"{path} is a {type(net.get_submodule(path)).__name__} whose size is not known yet; run the network on "
                "one input where it is built, then return it"
            )


def assign_state(net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Makes the tensors of `state` the parameters and saved buffers of `net`.

    Unlike `load_state_dict`, no code of the model runs (some demand version numbers that safetensors files do
    not carry), nothing is copied, and a parameter with two names stays one where the state says so.

    Raises:
        InvalidInput: a name is missing or unknown, or a shape differs; nothing is changed then.
    """
    own = _checked(net, state)
    wrapped: dict[int, nn.Parameter] = {}
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        module = net.get_submodule(path)
        if leaf in module._parameters:
            if not isinstance(tensor, nn.Parameter):
                shared = id(own[name])
                wrapped.setdefault(shared, nn.Parameter(tensor, own[name].requires_grad))
                tensor = wrapped[shared]
            module._parameters[leaf] = tensor
        else:
            module._buffers[leaf] = tensor
    return net


@torch.no_grad()
def copy_state(net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The same, into the memory that `net` has already: an optimizer keeps its hold on the parameters."""
    for name, tensor in _checked(net, state).items():
        tensor.copy_(state[name])
    return net


def _checked(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `net` by name, if those of `state` can take their place."""
    own: dict[str, Tensor] = net.state_dict(keep_vars=True)
    missing, unknown = [n for n in own if n not in state], [n for n in state if n not in own]
    if missing or unknown:
        raise InvalidInput(
            f"the weights do not fit {type(net).__name__}: missing {missing[:3] or 'none'}, unknown "
            f"{unknown[:3] or 'none'}; build the network that the weights were saved from"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise InvalidInput(
                f"the weight {name} must be {list(own[name].shape)} for {type(net).__name__}, got "
                f"{list(tensor.shape)}; build the network that the weights were saved from"
            )
    return own
