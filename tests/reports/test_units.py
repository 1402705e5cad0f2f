from __future__ import annotations

import pytest

from reports.units import Axis, axis, count, magnitude, points, price_unit, short, text, words


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("macs", 40_551_808, "40.6 M MACs"),
        ("macs", 1_819_066_368, "1.82 G MACs"),
        ("macs", 512, "512 MACs"),
        ("params", 269_722, "270 k"),
        ("weight_bytes", 1_078_888, "1.08 MB"),
        ("top1_percent", 91.8275, "91.83 %"),
        ("latency_ms", 4.7123, "4.71 ms"),
        ("latency_ms", 0.48, "0.480 ms"),
        ("oddness", 0.5, "0.5"),
        ("top1_percent", None, "–"),
    ],
)
def test_a_value_reads_with_its_unit(name: str, value: float | None, shown: str) -> None:
    assert text(name, value).replace("\u00a0", " ") == shown


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("macs", [1e6, 40e6], Axis("Multiply-adds (M MACs)", 1e6)),
        ("macs", [1e4, 1.6e6], Axis("Multiply-adds (k MACs)", 1e3)),
        ("params", [269_722], Axis("Parameters (k)", 1e3)),
        ("top1_percent", [91.0], Axis("Top-1 accuracy (%)", 1)),
        ("latency_ms", [], Axis("Latency (ms)", 1)),
        ("oddness", [3.0], Axis("Oddness", 1)),
    ],
)
def test_an_axis_has_the_prefix_that_suits_its_values(name: str, values: list[float], expected: Axis) -> None:
    assert axis(name, values) == expected


def test_names_without_a_unit_and_with_spaces_read_as_words() -> None:
    assert words("peak_activation_bytes") == "Peak of live activations"
    assert words("robust_error") == "Robust error"


def test_counts_have_the_right_number() -> None:
    assert (count(1, "block"), count(1200, "block")) == ("1 block", "1,200 blocks")


@pytest.mark.parametrize(
    ("number", "shown"), [(999_999, "999,999"), (10**6, "1.0 × 10⁶"), (1_250 * 10**31, "1.2 × 10³⁴")]
)
def test_spaces_of_any_size_have_a_readable_size(number: int, shown: str) -> None:
    assert magnitude(number) == shown


@pytest.mark.parametrize(
    ("name", "typical", "expected"),
    [
        ("macs", 120_000, Axis("M MACs", 1e6)),
        ("macs", 350e6, Axis("G MACs", 1e9)),
        ("params", 13_000, Axis("k parameters", 1e3)),
        ("weight_bytes", 1e5, Axis("MB", 1e6)),
        ("latency_ms", 0.02, Axis("ms", 1.0)),
        ("oddness", 7.0, Axis("oddness", 1.0)),
    ],
)
def test_a_price_is_for_a_unit_that_is_worth_something(name: str, typical: float, expected: Axis) -> None:
    assert price_unit(name, typical) == expected


def test_differences_of_percentages_are_points() -> None:
    assert points("top1_percent", 0.279).replace("\u00a0", " ") == "0.28 points"
    assert points("oddness", 0.279) == "0.279"


@pytest.mark.parametrize(("value", "shown"), [(12345.6, "12,346"), (123.4, "123"), (0.0123, "0.0123")])
def test_short_numbers_have_three_digits(value: float, shown: str) -> None:
    assert short(value) == shown
