"""torch.compile with its default backend; it needs a C++ compiler, and a minute or more for a large net."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subnet_search.measure.runtimes.base import Arguments, Prepared, Runtime
from subnet_search.measure.runtimes.eager import in_precision, prepared_call
from subnet_search.settings import DeviceSettings

_NUMBERS = itertools.count()


def prepare(net: nn.Module, arguments: Arguments, profile: DeviceSettings, folder: Path) -> Prepared:
    """The net as one compiled graph for these sizes; what cannot be one graph is refused."""
    net, arguments = in_precision(net, arguments, profile)
    compiled = torch.compile(_with_code_of_its_own(net), fullgraph=True, dynamic=False)
    args, kwargs = arguments
    with torch.inference_mode():
        compiled(*args, **kwargs)
    return prepared_call(net, compiled, arguments)


def _with_code_of_its_own(net: nn.Module) -> Callable[..., Any]:
    """A call of the net whose code object nobody shares.

    Compiled graphs are kept by code object, and few for each: after some nets of one class torch would go back to eager
    mode, and look through all of them at each call before that.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return net(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{next(_NUMBERS)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


COMPILED = Runtime(prepare, lambda: f"torch {torch.__version__} compile", {})
