"""Torch's recurrent layers: the exporter takes every step of them, only to write down one operator in the end."""

from __future__ import annotations

from torch import nn

RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)


def recurrent_layers(model: nn.Module) -> dict[str, str]:
    """The layers of a model that compute what such a layer of torch does, by path, with why they stay whole."""
    kinds = {
        path: kind.__name__
        for path, module in model.named_modules()
        for kind in RECURRENT
        if type(module).forward is kind.forward
    }
    return {path: f"no rule for {kind}" for path, kind in kinds.items()}


def recurrent_constructor(layer: nn.RNN | nn.LSTM | nn.GRU) -> str:
    """The expression that makes a layer of torch anew, without its weights."""
    further = {nn.RNN: ("nonlinearity",), nn.LSTM: ("proj_size",)}.get(type(layer), ())
    names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional", *further)
    told = ", ".join(f"{name}={getattr(layer, name)!r}" for name in names)
    return f"nn.{type(layer).__name__}({layer.input_size}, {layer.hidden_size}, {told})"
