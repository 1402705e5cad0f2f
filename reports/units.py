"""How numbers read: axis labels with their unit, and short texts such as "12.3 M MACs"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

NAMES = {
    "top1": "Top-1 accuracy",
    "macs": "Multiply-adds",
    "params": "Parameters",
    "weight": "Weights",
    "peak_activation": "Peak of live activations",
}
UNITS = {
    "macs": "MACs",
    "params": "",
    "bytes": "B",
    "percent": "%",
    "ms": "ms",
    "mj": "mJ",
    "s": "s",
    "px": "px",
}
TIMES = ("ms", "s")
SCALED = ("macs", "params", "bytes")  # quantities that read better with k, M, G
NO_BREAK = "\u00a0"
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Axis(NamedTuple):
    """An axis of a figure: its label, unit included, and what values are divided by to be in that unit."""

    label: str
    divisor: float


def words(name: str) -> str:
    """The quantity of an objective's name without its unit: "latency_ms" becomes "Latency"."""
    stem, unit = _split(name)
    stem = stem or unit
    return NAMES.get(stem) or (stem.replace("_", " ")[:1].upper() + stem.replace("_", " ")[1:])


def price_unit(name: str, typical: float) -> Axis:
    """The unit in which one more of `name` is priced, such as "M MACs" or "ms", and its size.

    Args:
        name: an objective or a cost.
        typical: what one point of quality costs; the unit is the prefix above it, so that a price is not tiny.
    """
    unit = _split(name)[1]
    if unit not in SCALED:
        return Axis(UNITS.get(unit) or words(name).lower(), 1.0)
    divisor, prefix = _prefix(30 * typical)
    symbol = {"macs": "MACs", "params": "parameters", "bytes": "B"}[unit]
    return Axis(f"{prefix}{'' if unit == 'bytes' else ' '}{symbol}".strip(), divisor)


def points(name: str, value: float) -> str:
    """A difference of objective `name`: points where it is in percent."""
    unit = _split(name)[1]
    return f"{value:.2f}{NO_BREAK}points" if unit == "percent" else text(name, value)


def short(value: float) -> str:
    """A number of three digits, without an exponent where that is possible."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def axis(name: str, values: Iterable[float]) -> Axis:
    """Label and divisor for objective `name`, with the prefix that suits the largest of `values`."""
    unit = _split(name)[1]
    divisor, prefix = 1.0, ""
    if unit in SCALED:
        largest = max((abs(value) for value in values), default=0.0)
        divisor, prefix = _prefix(largest / 3)  # ticks from 0 to 2000 k read better than from 0 to 2 M
    symbol = f"{prefix} {UNITS[unit]}".strip() if unit == "macs" else prefix + UNITS.get(unit, "")
    return Axis(f"{words(name)} ({symbol})" if symbol else words(name), divisor)


def text(name: str, value: float | None) -> str:
    """One value of objective `name` with its unit, three to four digits long; a dash where there is none."""
    if value is None:
        return "–"
    unit = _split(name)[1]
    if unit == "percent":
        return f"{value:.2f}{NO_BREAK}%"
    if unit in SCALED:
        divisor, prefix = _prefix(abs(value))
        digits = 0 if divisor == 1 else _digits(value / divisor)
        symbol = f"{prefix}{NO_BREAK}{UNITS[unit]}" if unit == "macs" and prefix else prefix + UNITS[unit]
        return f"{value / divisor:.{digits}f}{NO_BREAK}{symbol}".strip()
    if unit in TIMES and abs(value) < 1000:
        return f"{value:.{3 if abs(value) < 1 else _digits(value)}f}{NO_BREAK}{UNITS[unit]}"
    return f"{value:.4g}{NO_BREAK}{UNITS.get(unit, '')}".strip()


def count(number: int, noun: str) -> str:
    """ "1 block", "2 blocks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def magnitude(number: int) -> str:
    """A whole number of any size: exact below a million, then such as 1.2 × 10³⁴."""
    if number < 10**6:
        return f"{number:,}"
    digits = len(str(number)) - 1
    power = str(digits).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{number // 10 ** (digits - 1) / 10:.1f} × 10{power}"


def _split(name: str) -> tuple[str, str]:
    stem, _, unit = name.rpartition("_")
    return (stem, unit) if unit in UNITS else (name, "")


def _prefix(value: float) -> tuple[float, str]:
    return next(((size, prefix) for size, prefix in PREFIXES if value >= size), (1.0, ""))


def _digits(value: float) -> int:
    return 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
