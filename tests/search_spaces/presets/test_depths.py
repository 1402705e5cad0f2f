from __future__ import annotations

import pytest

from search_spaces import InvalidInput, Knob, SearchSpace
from search_spaces.presets import skip_paths


def space_of(*blocks: str) -> SearchSpace:
    return SearchSpace((Knob("stem", (8, 16)), *(Knob(block, (0, 1), "depth") for block in blocks)))


def sizes(space: SearchSpace, parts: int | None = None) -> list[tuple[int, int]]:
    return [(len(s.mandatory), len(s.skippable)) for s in skip_paths(space, parts).stages]


def test_the_papers_networks_are_split_as_in_the_paper() -> None:
    resnet50 = [f"layer{s}.{b}" for s, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(1, n)]
    assert sizes(space_of(*resnet50)) == [(2, 1), (2, 2), (3, 3), (2, 1)]
    mobilenet = [f"features.{n}" for n in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    assert sizes(space_of(*mobilenet)) == [(1, 1), (2, 1), (2, 2), (2, 1), (2, 1)]
    vit = [f"encoder.layers.encoder_layer_{n}" for n in range(12)]
    assert sizes(space_of(*vit)) == [(2, 1)] * 4
    swin = [f"features.{s}.{b}" for s, n in ((1, 2), (3, 2), (5, 6), (7, 2)) for b in range(n)]
    assert sizes(space_of(*swin)) == [(1, 1), (1, 1), (3, 3), (1, 1)]


def test_every_combination_is_a_subnet_and_only_skippable_blocks_change() -> None:
    space = space_of("layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2")
    paths = skip_paths(space)
    assert [(s.mandatory, s.skippable) for s in paths.stages] == [
        (("layer1.0", "layer1.1"), ("layer1.2",)),
        (("layer2.0", "layer2.1"), ("layer2.2",)),
    ]
    configs = paths.configs()
    assert list(configs) == ["FF", "FT", "TF", "TT"]
    assert configs["FF"] == space.largest()
    assert configs["TT"] == paths.base
    assert configs["FT"] == {**space.largest(), "layer2.2": 0}
    with pytest.raises(InvalidInput, match="2 stages to keep or skip, got 1"):
        paths.config([True])


def test_blocks_inside_blocks_are_left_alone_and_runs_are_cut_as_asked() -> None:
    assert sizes(space_of("b.0", "b.0.inner.0", "b.1", "b.1.inner.0")) == [(1, 1)]
    assert sizes(space_of(*(f"b.{n}" for n in range(6))), parts=2) == [(2, 1)] * 2
    with pytest.raises(InvalidInput, match=r"parts=0"):
        skip_paths(space_of("b.0", "b.1"), parts=0)


@pytest.mark.parametrize("blocks", [(), ("outer",), ("b.0",)])
def test_networks_without_such_stages_are_refused(blocks: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="stages of at least two numbered blocks"):
        skip_paths(space_of(*blocks))
