"""Reads a model once: its operations in order, the shapes they make, and which module called which."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.errors import InvalidInput
from subnet_search.elastic.custom import registered_functions, rule_for
from subnet_search.elastic.padding import PaddedShortcut

Example = Tensor | tuple[Any, ...] | dict[str, Any]


class UntraceableModelError(InvalidInput):
    """The model's own forward cannot be followed, so nothing in it can be made elastic."""


@dataclass(frozen=True)
class Call:
    """One call of a module that is not a leaf: what went in and what came out.

    Attributes:
        path: of the module.
        inputs: the values that went in.
        outputs: those that came out; none where the module returned something else beside them.
        places: of each input among the arguments of the call, its position or name; none where one argument was
            given for one output, and in exported graphs.
        packed: "tuple" or "list", where the outputs were returned in one.
    """

    path: str
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    places: tuple[int | str, ...] = ()
    packed: str | None = None


@dataclass(frozen=True)
class Traced:
    """The graph of a model, with `shape`, `memory`, `macs` and `scope` in each node's meta.

    `shape` is the tensor's shape at batch 1 (None for values that are no tensors), `memory` the address it
    lives at (None for weights and their views), `macs` the multiply-adds of operations whose kind the rules
    do not price, and `scope` the paths of the modules around the node, outermost first.
    """

    model: nn.Module
    graph: fx.Graph
    calls: tuple[Call, ...]
    opaque: Mapping[str, str]  # path of a module that could not be followed -> reason
    parts: frozenset[str] = (
        frozenset()
    )  # of an exported graph: paths of the modules that are called as they are

    def module(self, node: fx.Node) -> nn.Module:
        """The leaf module that a `call_module` node calls."""
        return self.model.get_submodule(str(node.target))

    @cached_property
    def uncalled(self) -> tuple[str, ...]:
        """Paths of layers that evaluation does not call, such as those of auxiliary heads."""
        called = {str(n.target) for n in self.graph.nodes if n.op == "call_module"}
        read = {str(n.target).rpartition(".")[0] for n in self.graph.nodes if n.op == "get_attr"}
        return tuple(
            path
            for path, module in self.model.named_modules()
            if path not in read
            and called.isdisjoint(enclosing(path))
            and any(True for _ in module.parameters(recurse=False))
        )


def enclosing(path: str) -> list[str]:
    """The paths of the modules around a module, its own last; for a tensor's name, of those that hold it."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def home_paths(model: nn.Module) -> dict[str, str]:
    """For every path of a module the first one it goes by: one module may stand in several containers."""
    homes: dict[int, str] = {}
    return {
        path: homes.setdefault(id(module), path)
        for path, module in model.named_modules(remove_duplicate=False)
    }


def plain_kind(module: nn.Module) -> type[nn.Module]:
    """The class whose computation a layer does: its own, or torch's where a sub-class changes none of it."""
    for kind in type(module).__mro__:
        if kind in _LAYERS:
            same = all(
                getattr(type(module), name, None) is getattr(kind, name, None)
                for name in ("forward", "_conv_forward", "__call__")
            )
            return kind if same else type(module)
    return type(module)


class _ScopedTracer(fx.Tracer):
    def __init__(self, opaque: Mapping[str, str]) -> None:
        super().__init__(autowrap_functions=registered_functions())
        self.opaque = opaque
        self.calls: list[Call] = []
        self.open: list[str] = []
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = module_qualified_name in self.opaque or plain_kind(m) is not type(m)
        known = known or rule_for(m) is not None
        return known or isinstance(m, PaddedShortcut) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        self.open.append(path)
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or path
            raise
        finally:
            self.open.pop()
        if not self.is_leaf_module(m, path):
            given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            self.calls.append(_call(path, dict(given), output))
        return output


def _call(path: str, given: Mapping[int | str, Any], answer: Any) -> Call:
    places = {place: value.node for place, value in given.items() if isinstance(value, fx.Proxy)}
    packed = type(answer).__name__ if type(answer) in (tuple, list) else None
    values = answer if packed else (answer,)
    outputs = tuple(v.node for v in values) if all(isinstance(v, fx.Proxy) for v in values) else ()
    simple = list(given) == [0] and packed is None
    return Call(path, tuple(places.values()), outputs, () if simple else tuple(places), packed)


class _ShapeReader(fx.Interpreter):
    """Runs the graph once and notes shapes, memory, and the multiply-adds of everything but plain layers."""

    def __init__(self, module: fx.GraphModule, opaque: Collection[str]) -> None:
        super().__init__(module)
        self.opaque = opaque
        self.weights = {_address(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self.held: list[Tensor] = []  # so that no address is used twice

    def run_node(self, n: fx.Node) -> Any:
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        priced = isinstance(layer, _PRICED_BY_FORMULA) and str(n.target) not in self.opaque
        if n.op in ("placeholder", "output", "get_attr") or priced:
            value, macs = super().run_node(n), 0
        else:
            with counting_macs() as counted:
                value = super().run_node(n)
            macs = counted()
        n.meta["shape"] = n.meta["memory"] = None
        if isinstance(value, Tensor):
            self.held.append(value)
            address = _address(value)
            n.meta["shape"], n.meta["memory"] = (
                tuple(value.shape),
                None if address in self.weights else address,
            )
        n.meta["macs"] = macs
        stack = n.meta.get("nn_module_stack") or {}
        n.meta["scope"] = tuple(entry[0] for entry in stack.values())
        return value


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


_LAYERS = frozenset(
    {nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
)
_PRICED_BY_FORMULA = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def trace(model: nn.Module, example: Example) -> Traced:
    """Reads `model.forward` in evaluation mode.

    A module whose forward cannot be followed (it branches on values, say) stays opaque: it keeps its
    full width and is listed with the reason.

    Raises:
        UntraceableModelError: the outermost forward itself cannot be followed.
        InvalidInput: the model does not run on the example.
    """
    model = copied(model).eval()
    left_out = _defaults_of_rest(model, example)
    opaque: dict[str, str] = {}
    while True:
        tracer = _ScopedTracer(opaque)
        try:
            graph = tracer.trace(model, left_out)
            break
        except Exception as error:  # user code runs here: anything can come
            reason = first_line(error)
            if tracer.failed_in is None or tracer.failed_in in opaque:
                check_runs(model, example)
                raise UntraceableModelError(
                    f"{type(model).__name__}.forward cannot be traced: {reason}. Move the part that depends "
                    "on tensor values into a module of its own; that module then keeps its full width."
                ) from error
            opaque[tracer.failed_in] = f"its forward cannot be traced: {reason}"
    args, kwargs = call_arguments(example)
    values = list(args)
    for node in [n for n in graph.nodes if n.op == "placeholder"][len(args) :]:
        values.append(kwargs.get(str(node.target), node.args[0] if node.args else None))
    try:
        with torch.no_grad():
            _ShapeReader(fx.GraphModule(model, graph), opaque).run(*values)
    except Exception as error:  # user code runs here: anything can come
        check_runs(model, example)
        raise UntraceableModelError(
            f"what was traced of {type(model).__name__} does not run: {first_line(error)}. Its forward asks for more "
            "than tensors tell while they are traced (an input that is None, say)"
        ) from error
    return Traced(model, graph, tuple(tracer.calls), opaque)


def _defaults_of_rest(model: nn.Module, example: Example) -> dict[str, Any]:
    """The arguments that the example leaves out: the forward may ask whether they are None."""
    args, kwargs = call_arguments(example)
    return {
        parameter.name: parameter.default
        for parameter in list(inspect.signature(model.forward).parameters.values())[len(args) :]
        if parameter.name not in kwargs and parameter.default is not parameter.empty
    }


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Attention by the operations that training uses, whose numbers differ in the last bits."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def counting_macs() -> Iterator[Callable[[], int]]:
    """Counts multiply-adds as an independent judge does: fused attention, which hides its products, is off."""
    with without_fast_path(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield lambda: int(counter.get_total_flops()) // 2


def copied(model: nn.Module) -> nn.Module:
    """A copy with buffers of its own, which shares the parameters; a model that cannot be copied is refused."""
    try:
        return copy.deepcopy(model, memo={id(parameter): parameter for parameter in model.parameters()})
    except Exception as error:  # user code runs here: anything can come
        raise InvalidInput(
            f"{type(model).__name__} cannot be copied: {str(error).strip().splitlines()[0]} Conversion works on a "
            "copy; take off weight norm and pruning masks (torch.nn.utils.remove_weight_norm, prune.remove) first"
        ) from error


def call_arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as positional and keyword arguments of the model's forward, which may overwrite them."""

    def fresh(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    if isinstance(example, Tensor):
        return (fresh(example),), {}
    if isinstance(example, tuple):
        return tuple(map(fresh, example)), {}
    if isinstance(example, dict):
        return (), {name: fresh(value) for name, value in example.items()}
    raise InvalidInput(
        f"example must be a tensor, a tuple or a dict of the model's inputs, got {type(example).__name__}"
    )


def at_batch_one(example: Example) -> Example:
    """The example's first row: costs are stated for batch 1."""

    def first(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0 and not len(value):
            raise InvalidInput(f"example must hold at least one input, got a tensor of {list(value.shape)}")
        return value[:1] if isinstance(value, Tensor) and value.ndim > 0 else value

    if isinstance(example, dict):
        return {name: first(value) for name, value in example.items()}
    args, _ = call_arguments(example)
    return first(example) if isinstance(example, Tensor) else tuple(first(value) for value in args)


def check_runs(model: nn.Module, example: Example) -> Any:
    """The model's answer; an example that it cannot take is refused."""
    args, kwargs = call_arguments(example)
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:  # user code runs here: anything can come
        shapes = [tuple(v.shape) for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        raise InvalidInput(
            f"{type(model).__name__} does not run on the example of shape {shapes}: {error}. "
            "Pass an example input of the size and type that the model was made for (in a recipe: [data] size)."
        ) from error
