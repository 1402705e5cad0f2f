"""How channels pass through products of tensors: linear maps, attention, einsum."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from subnet_search.elastic.operations.labels import Factor, Factors, Labels, axes_of


class Operand(NamedTuple):
    """A tensor of a product: one letter for each of its axes, as in einsum."""

    letters: str
    shape: tuple[int, ...]
    factors: Factors


def contract(labels: Labels, operands: Sequence[Operand], out: str, what: str) -> Factors:
    """Couples what a product couples; returns the factors of its output.

    Along a letter of the output that several operands carry, they keep the same positions: in attention that makes a
    head's queries, keys and values one unit. Along a letter that is summed over, too; a factor that varies there and
    along another letter keeps only the freedom along the other.

    Args:
        labels: of the whole network.
        operands: all letters have one size, or 1.
        out: the letters of the output.
        what: names the product in reasons.
    """
    letters = sorted({c for operand in operands for c in operand.letters})
    held = [[_spread(f, o.letters, letters) for f in map(labels.roots, o.factors)] for o in operands]
    for letter in (*out, *(c for c in letters if c not in out)):
        axis = letters.index(letter)
        carriers = [i for i, o in enumerate(operands) if letter in o.letters and _size(o, letter) > 1]
        varying = [(i, f) for i in carriers for f in held[i] if f.shape[axis] > 1]
        alone = letter not in out and any(_is_joint(f, axis, held, carriers) for _, f in varying)
        if varying and (alone or len({i for i, _ in varying}) < len(carriers)):
            for i in carriers:
                held[i] = list(labels.restrict(tuple(held[i]), axis, f"{what} needs all of it"))
        else:
            for (_, first), (_, second) in itertools.pairwise(varying):
                labels.unite(first, second)
            held = [[labels.roots(f) for f in factors] for factors in held]
    summed = {axis for axis, letter in enumerate(letters) if letter not in out}
    left = [f for factors in held for f in factors if not set(axes_of(f)) <= summed]
    for axis in summed:
        left = [labels.collapse(f, axis) for f in left]
    found = [_gathered(f, letters, out) for f in left]
    return distinct(labels, found)


def distinct(labels: Labels, factors: Sequence[Factor]) -> Factors:
    """Every factor once, in terms of representatives; those that vary nowhere are left out."""
    found: list[Factor] = []
    for factor in map(labels.roots, factors):
        if axes_of(factor) and not any(f.shape == factor.shape and bool((f == factor).all()) for f in found):
            found.append(factor)
    return tuple(found)


def _is_joint(factor: Factor, axis: int, held: Sequence[Sequence[Factor]], carriers: Sequence[int]) -> bool:
    """Whether a factor varies along letters where not every operand that carries `axis` varies with it."""
    others = [a for a in axes_of(factor) if a != axis]
    return any(all(f.shape[a] == 1 for f in held[i]) for a in others for i in carriers)


def _size(operand: Operand, letter: str) -> int:
    return operand.shape[operand.letters.index(letter)]


def _spread(factor: Factor, letters: str, all_letters: Sequence[str]) -> Factor:
    """The factor over all letters in order."""
    order = sorted(range(len(letters)), key=lambda i: all_letters.index(letters[i]))
    factor = factor.permute(order)
    for axis, letter in enumerate(all_letters):
        if letter not in letters:
            factor = factor.unsqueeze(axis)
    return factor


def _gathered(factor: Factor, letters: Sequence[str], out: str) -> Factor:
    """The factor over the letters of the output, in its order; the others have size 1."""
    for axis in reversed(range(len(letters))):
        if letters[axis] not in out:
            factor = factor.squeeze(axis)
    left = [letter for letter in letters if letter in out]
    return factor.permute([left.index(letter) for letter in out])
