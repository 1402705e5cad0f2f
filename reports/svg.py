"""Turns a figure's SVG file into an element that lives well inside a page."""

from __future__ import annotations

import re
from collections.abc import Mapping


def inline(drawn: str, name: str, variables: Mapping[str, str]) -> str:
    """The `<svg>` element of an SVG file by matplotlib, without anything that would reach outside the page.

    Args:
        drawn: the file's text.
        name: becomes part of every id, so that several figures can stand in one page.
        variables: from a colour such as "#0072b2" to the CSS variable that replaces it.
    """
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<(metadata|style)\b.*?</\1>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", drawn).replace("xlink:href", "href")
    drawn = re.sub(r'(\sid="|url\(#|\shref="#)', rf"\g<1>{name}-", drawn)
    drawn = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*", _size_and_weight, drawn)
    for colour, variable in variables.items():
        drawn = drawn.replace(colour, f"var({variable})")
    opening = r'<svg style="width: \1pt" viewBox="\2" aria-hidden="true">'
    return re.sub(r'<svg[^>]*width="([\d.]+)pt"[^>]*viewBox="([^"]*)"[^>]*>', opening, drawn, count=1)


def _size_and_weight(font: re.Match[str]) -> str:
    """Keeps a text's size and weight; the family is the page's."""
    return f"font-size: {font[2]}px; font-weight: {font[1] or 400}"
