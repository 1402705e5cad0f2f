from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from subnet_search.ranking.ends import around, ends
from subnet_search.ranking.rows import Rows, _rows, beside, find_rows
from tests.small import small_supernet


def with_class_token(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros(len(x), 1, x.shape[2]), x], dim=1)


@pytest.mark.parametrize(
    ("tokens", "arranged", "expected"),
    [
        (7, lambda x: x, Rows(0, 1)),
        (7, lambda x: x.transpose(0, 1), Rows(1, 1)),  # attention, tokens first
        (7, lambda x: x.transpose(0, 1).flatten(0, 1), Rows(0, 1)),
        (7, lambda x: x.flatten(0, 1), Rows(0, 7)),  # windows
        (6, lambda x: x.reshape(3, 2, 3, 4).transpose(0, 1).flatten(0, 2), Rows(0, 3)),
        (7, with_class_token, Rows(0, 1)),
        (1, lambda x: with_class_token(x).transpose(0, 1), Rows(1, 1)),
        (2, lambda x: with_class_token(x).transpose(0, 1), Rows(1, 1)),
        (1, lambda x: torch.zeros(1, 3, 4), Rows(1, 1)),  # class tokens
        (1, lambda x: torch.zeros(5, 4), None),  # a table
        (7, lambda x: x.sum(0), None),
        (7, lambda x: x[:2], None),
    ],
)
def test_images_are_found_wherever_the_batch_went(
    tokens: int, arranged: Callable[[Tensor], Tensor], expected: Rows | None
) -> None:
    images = torch.zeros(3, tokens, 4)
    images[1] = torch.nan
    assert _rows(arranged(images).isnan()) == expected


@pytest.mark.parametrize("rows", [Rows(0, 1), Rows(1, 1), Rows(0, 7), Rows(2, 1)])
def test_each_image_gets_its_own_values(rows: Rows) -> None:
    values, images = torch.rand(4, 3), torch.arange(4.0).reshape(4, 1, 1).expand(4, 7, 3)
    arranged = {
        Rows(0, 1): images,
        Rows(1, 1): images.transpose(0, 1),
        Rows(0, 7): images.flatten(0, 1),
        Rows(2, 1): images.permute(1, 2, 0),
    }[rows]
    axis = 1 if rows.axis == 2 else -1
    factor = beside(values, arranged, axis, rows).expand(arranged.shape).movedim(axis, -1)
    torch.testing.assert_close(factor, values[arranged.movedim(axis, -1)[..., 0].long()])


def test_where_images_are_not_apart_all_have_the_values_of_the_first() -> None:
    values, table = torch.rand(4, 3), torch.rand(4, 3)
    assert torch.equal(beside(values, table, -1, None), values[:1])
    assert torch.equal(beside(values, table[:3], -1, Rows(0, 1)), values[:1])
    assert torch.equal(beside(values, table, -1, Rows(1, 1)), values[:1])


def test_a_convolutional_net_keeps_the_batch_in_front() -> None:
    supernet = small_supernet().double().eval()
    places = {end.path: end.attach for end in ends(supernet)}
    outputs = {block: after for block in supernet.blocks for _, after in around(supernet, block)}
    assert set(find_rows(supernet, {**places, **outputs}).values()) == {Rows(0, 1)}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in supernet.modules())


def test_a_net_that_refuses_such_images_tells_nothing() -> None:
    supernet = small_supernet().eval()

    def refuse(_: nn.Module, args: tuple[Tensor]) -> None:
        if args[0].isnan().any():
            raise ValueError("no number")

    supernet.model.register_forward_pre_hook(refuse)
    assert find_rows(supernet, {end: end.attach for end in ends(supernet)}) == {}
