"""Spaces, configs and cost tables as plain dictionaries ready for JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .config import SubnetConfig
from .costs import COST_NAMES, CostTable, Polynomial
from .errors import InvalidInput
from .knob import Knob, whole_number
from .space import SearchSpace

FORMAT = 1


def config_to_json(config: SubnetConfig) -> dict[str, Any]:
    """`{format, key, values}`."""
    return {"format": FORMAT, "key": config.key, "values": dict(config)}


def config_from_json(data: object) -> SubnetConfig:
    """Reads what `config_to_json` wrote; `InvalidInput` for anything else, such as a key of other values."""
    fields = _fields(data, "config", ("key", "values"))
    config = SubnetConfig(fields["values"])
    if fields["key"] != config.key:
        raise InvalidInput(
            f"the config's key must be {config.key}, that of its values, got {fields['key']!r}"
        )
    return config


def space_to_json(space: SearchSpace) -> dict[str, Any]:
    """`{format, knobs [{name, choices, kind}], inactive_when {knob: [[depth knob]]}}`."""
    return {
        "format": FORMAT,
        "knobs": [{"name": k.name, "choices": list(k.choices), "kind": k.kind} for k in space.knobs],
        "inactive_when": {name: [list(p) for p in places] for name, places in space.inactive_when.items()},
    }


def space_from_json(data: object) -> SearchSpace:
    """Reads what `space_to_json` wrote; `InvalidInput` for anything else."""
    fields = _fields(data, "space", ("knobs", "inactive_when"))
    knobs = [_exactly(knob, "knob", ("name", "choices", "kind")) for knob in _list(fields["knobs"], "knobs")]
    return SearchSpace(tuple(Knob(**knob) for knob in knobs), fields["inactive_when"])


def costs_to_json(costs: CostTable) -> dict[str, Any]:
    """`{format, knobs, divisors, macs, params, weight_bytes, peak_activation_bytes}`.

    A polynomial is a list of `[coefficient, knob, ...]`, one per monomial; the peak is a list of polynomials. Where
    images can be smaller, `at_resolution` lists `{resolution, macs, params, weight_bytes, peak_activation_bytes}`.
    """
    data = {"format": FORMAT, "knobs": list(costs.knobs), "divisors": list(costs.divisors), **_costs(costs)}
    if costs.at_resolution:
        data["at_resolution"] = [{"resolution": r, **_costs(t)} for r, t in costs.at_resolution.items()]
    return data


def _costs(costs: CostTable) -> dict[str, Any]:
    return {
        "macs": _terms_to_json(costs.macs_terms),
        "params": _terms_to_json(costs.params_terms),
        "weight_bytes": _terms_to_json(costs.weight_bytes_terms),
        "peak_activation_bytes": [_terms_to_json(step) for step in costs.peak_activation_bytes_terms],
    }


def costs_from_json(data: object) -> CostTable:
    """Reads what `costs_to_json` wrote; `InvalidInput` for anything else."""
    told = (
        isinstance(data, Mapping) and "at_resolution" in data
    )  # earlier versions' tables have no such field
    names = ("knobs", "divisors", *COST_NAMES, *(["at_resolution"] if told else []))
    fields = _fields(data, "cost table", names)
    lower = [
        _exactly(one, "cost table at a resolution", ("resolution", *COST_NAMES))
        for one in _list(fields.get("at_resolution", ()), "tables at other resolutions")
    ]
    knobs, divisors = (tuple(_list(fields[name], name)) for name in ("knobs", "divisors"))
    tables = {
        whole_number(one["resolution"], "a resolution"): _table(knobs, divisors, one, {}) for one in lower
    }
    return _table(knobs, divisors, fields, tables)


def _table(
    knobs: tuple[str, ...], divisors: tuple[int, ...], fields: Mapping[str, Any], lower: dict[int, CostTable]
) -> CostTable:
    macs, params, weight_bytes = (_terms_from_json(fields[name]) for name in COST_NAMES[:3])
    steps = tuple(_terms_from_json(step) for step in _list(fields["peak_activation_bytes"], "steps"))
    return CostTable(knobs, divisors, macs, params, weight_bytes, steps, lower)


def _terms_to_json(terms: Polynomial) -> list[list[int | str]]:
    return [[coefficient, *monomial] for monomial, coefficient in terms.items()]


def _terms_from_json(data: object) -> dict[tuple[str, ...], int]:
    terms = {}
    for term in _list(data, "terms"):
        coefficient, *monomial = _list(term, "term") or [None]
        if not all(isinstance(name, str) for name in monomial) or tuple(monomial) in terms:
            raise InvalidInput(f"a term must be [coefficient, knob, ...] and stand once, got {term!r}")
        terms[tuple(monomial)] = coefficient
    return terms


def _fields(data: object, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(data, Mapping) and data.get("format") != FORMAT:
        raise InvalidInput(
            f"the {what} must be of format {FORMAT}, got {data.get('format')!r}; "
            "it was written by another version or is no such file"
        )
    return _exactly(data, what, ("format", *names))


def _exactly(data: object, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, Mapping) or set(data) != set(names):
        came = sorted(map(str, data)) if isinstance(data, Mapping) else repr(data)[:100]
        raise InvalidInput(f"a {what} must have the fields {', '.join(names)}, got {came}")
    return dict(data)


def _list(data: object, what: str) -> list[Any]:
    if isinstance(data, str) or not isinstance(data, Sequence):
        raise InvalidInput(f"the {what} must be a list, got {data!r:.100}")
    return list(data)
