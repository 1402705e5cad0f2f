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


def test_only_what_may_lead_begins_a_stage() -> None:
    space = space_of("block1", "block2", "block3")
    assert skip_paths(space).stages[0].mandatory == ("block0", "block1")
    assert skip_paths(space, leading=()).stages[0].mandatory == ("block1", "block2")
    with pytest.raises(InvalidInput, match="stages of at least two numbered blocks"):
        skip_paths(space_of("f.3"), leading=())


def test_streams_that_take_turns_have_stages_of_their_own() -> None:
    space = space_of("a.0", "b.0", "a.1", "b.1", "a.2", "b.2", "b.10")
    stages = [(s.mandatory, s.skippable) for s in skip_paths(space, leading=()).stages]
    assert stages == [(("a.0", "a.1"), ("a.2",)), (("b.0", "b.1"), ("b.2",))]


def test_no_stage_is_cut_to_a_single_block() -> None:
    with pytest.raises(
        InvalidInput, match=r"parts=3 would cut the 4 blocks from b\.0 to b\.3 .* parts=2 at most"
    ):
        skip_paths(space_of(*(f"b.{n}" for n in range(4))), parts=3)
    for blocks in range(2, 40):
        for parts in range(1, blocks // 2 + 1):
            found = sizes(space_of(*(f"b.{n}" for n in range(blocks))), parts)
            assert len(found) == parts
            assert sum(map(sum, found)) == blocks
            assert min(min(stage) for stage in found) > 0
