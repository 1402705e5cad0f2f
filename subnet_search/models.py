"""Finds the network that a recipe names, and loads its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from search_spaces import InvalidInput, nearest_names
from subnet_search.elastic.states import assign_state, check_sized
from subnet_search.factories import call_factory, torchvision_part

WEIGHT_FILES = (".safetensors", ".npz")


def load_model(name: str, weights: str | None = None, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Builds a network, with the weights named.

    Args:
        name: "torchvision:NAME", "timm:NAME" (needs timm), or "package.module:factory" for any callable that
            returns a module.
        weights: a .safetensors or .npz file; for torchvision and timm also the name of published weights
            ("DEFAULT"; torchvision's "IMAGENET1K_V1", timm's tags such as "a1_in1k"), which are downloaded. None
            leaves the initialisation as it is.
        options: keyword arguments of the factory.

    Raises:
        InvalidInput: the network cannot be found or built, or the weights do not fit it.
    """
    source, separator, entry = name.partition(":")
    if not separator or not source or not entry:
        raise InvalidInput(
            f"a model is named 'torchvision:NAME', 'timm:NAME' or 'package.module:factory', got {name!r}; "
            "for example 'torchvision:resnet18' or 'subnet_search.small_models:resnet20'"
        )
    from_file = weights is not None and weights.endswith(WEIGHT_FILES)
    options = dict(options or {})
    if source == "torchvision":
        model = _torchvision_model(entry, None if from_file else weights, options)
    elif source == "timm":
        model = _timm_model(entry, None if from_file else weights, options)
    else:
        if weights is not None and not from_file:
            raise InvalidInput(
                f"weights of {name} must be a file ending in {' or '.join(WEIGHT_FILES)}, got {weights!r}; those of "
                "torch.save become one by torch.load and safetensors.torch.save_file"
            )
        model = call_factory(name, options, nn.Module, "model")
    check_sized(model)
    return load_weights(model, weights) if from_file and weights is not None else model


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Loads a .safetensors or .npz file of named tensors into a network.

    Counters and index tables (integer buffers) that the file lacks stay as they are; anything else must fit.

    Raises:
        InvalidInput: the file is missing or damaged, or does not fit the network.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            state = load_file(path)
    except FileNotFoundError:
        raise InvalidInput(f"there is no weight file {path}; check the path") from None
    except (OSError, ValueError, SafetensorError, EOFError, KeyError) as error:
        raise InvalidInput(
            f"the weight file {path} cannot be read: {error}; fetch or save it again"
        ) from error
    except Exception as error:  # a broken zip archive raises many kinds
        raise InvalidInput(
            f"the weight file {path} cannot be read: {error}; fetch or save it again"
        ) from error
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state and not tensor.is_floating_point() and not tensor.is_meta:
            state[name] = tensor
    try:
        return assign_state(model, {name: _like(own.get(name), tensor) for name, tensor in state.items()})
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _like(own: Tensor | None, tensor: Tensor) -> Tensor:
    """A copy in memory of its own: in files tensors lie at any address, and there some kernels round differently."""
    if own is None or own.is_meta:
        return tensor.clone()
    return tensor.to(own.device, own.dtype, copy=True)


def _torchvision_model(name: str, weights: str | None, options: dict[str, Any]) -> nn.Module:
    models = torchvision_part("models")
    known = models.list_models(module=models)
    if name not in known:
        hint = nearest_names(name, known) or "; torchvision.models.list_models() lists them"
        raise InvalidInput(f"torchvision has no model {name!r}{hint}")
    try:
        model: nn.Module = models.get_model(name, weights=weights, **options)
    except Exception as error:  # unknown weights, no network, wrong options
        raise InvalidInput(
            f"torchvision:{name} with weights={weights!r} and options {options} cannot be built: {error}; "
            "without a network, give weights as a local .safetensors file"
        ) from error
    return model


def _timm_model(name: str, weights: str | None, options: dict[str, Any]) -> nn.Module:
    timm = _timm()
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        hint = nearest_names(name, known) or "; timm.list_models() lists them"
        raise InvalidInput(f"timm has no model {name!r}{hint}")
    tagged = name if weights in (None, "DEFAULT") else f"{name}.{weights}"
    try:
        model: nn.Module = timm.create_model(tagged, pretrained=weights is not None, **options)
    except Exception as error:  # unknown weights, no network, wrong options
        raise InvalidInput(
            f"timm:{name} with weights={weights!r} and options {options} cannot be built: {error}; "
            "without a network, give weights as a local .safetensors file"
        ) from error
    return model


def _timm() -> ModuleType:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # operators that do not match torch raise RuntimeError
        raise InvalidInput(
            f"timm cannot be imported: {error}. Install it: pip install 'subnet-search[timm]'"
        ) from error
    module: ModuleType = timm
    return module
