from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from search_spaces import InvalidInput
from subnet_search.dynamic.taxonomy import label_tree, taxonomy_loss

CLASSES = ("cat", "dog", "deer", "car", "ship")
TREE = {"animal": {"pet": ["cat", "dog"], "wild": ["deer"]}, "vehicle": ["car", "ship"]}


def test_levels_go_from_coarse_to_the_classes() -> None:
    tree = label_tree(CLASSES, TREE)
    assert tree.groups[:2] == (
        ("animal", "vehicle"),
        ("animal / pet", "animal / wild", "vehicle / car", "vehicle / ship"),
    )
    assert tree.members == ((0, 0, 0, 1, 1), (0, 0, 1, 2, 3), (0, 1, 2, 3, 4))
    assert [tree.size(level) for level in range(tree.levels)] == [2, 4, 5]
    assert tree.labels(torch.tensor([4, 0, 2]), 0).tolist() == [1, 0, 0]
    assert tree.spread(6) == (0, 0, 1, 1, 2, 2)


def test_a_coarse_probability_is_the_sum_of_what_is_inside() -> None:
    tree = label_tree(CLASSES, TREE)
    fine = torch.tensor([[0.1, 0.2, 0.3, 0.15, 0.25]])
    torch.testing.assert_close(tree.coarsen(fine, 2, 0), torch.tensor([[0.6, 0.4]]))
    torch.testing.assert_close(tree.coarsen(fine, 2, 1), torch.tensor([[0.3, 0.3, 0.15, 0.25]]))
    torch.testing.assert_close(tree.coarsen(tree.coarsen(fine, 2, 1), 1, 0), tree.coarsen(fine, 2, 0))
    with pytest.raises(InvalidInput, match="levels 0 to 0, got 1"):
        tree.coarsen(torch.ones(1, 2), 0, 1)


def test_the_loss_is_the_sum_over_levels() -> None:
    tree, y = label_tree(CLASSES, TREE), torch.tensor([0, 4])
    coarse, fine = torch.randn(2, 2), torch.randn(2, 5)
    wanted = F.cross_entropy(coarse, torch.tensor([0, 1])) + F.cross_entropy(fine, y)
    torch.testing.assert_close(taxonomy_loss([coarse, fine], y, tree, [0, 2]), wanted)
    with pytest.raises(InvalidInput, match=r"never coarser, got \[2, 0\]"):
        taxonomy_loss([fine, coarse], y, tree, [2, 0])


def test_a_flat_list_is_a_tree_of_one_level() -> None:
    tree = label_tree(CLASSES, CLASSES)
    assert (tree.levels, tree.members) == (1, ((0, 1, 2, 3, 4),))


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"animal": ["cat", "dog", "deer"]}, "must hold every class, it lacks car, ship"),
        ([*CLASSES, "cat"], "the class 'cat' twice"),
        ([*CLASSES, "owl"], "names 'owl', which is no class"),
        ({"animal": [*CLASSES], "empty": []}, "the group empty of the label tree is empty"),
        ({"animal": "cat"}, "made of mappings and lists"),
    ],
)
def test_trees_that_do_not_fit_the_classes_are_refused(tree: object, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        label_tree(CLASSES, tree)  # type: ignore[arg-type]


def test_more_levels_than_subnets_are_refused() -> None:
    with pytest.raises(InvalidInput, match="3 levels need as many sub-nets at least, got 2"):
        label_tree(CLASSES, TREE).spread(2)


def test_a_level_that_the_tree_does_not_have_is_refused() -> None:
    tree = label_tree(CLASSES, list(CLASSES))
    with pytest.raises(InvalidInput, match="levels 0 to 0, got 1"):
        taxonomy_loss([torch.zeros(1, len(CLASSES))], torch.zeros(1, dtype=torch.long), tree, [1])


def test_a_class_with_the_name_of_a_group_is_a_group_of_its_own() -> None:
    tree = label_tree(("cat", "persian", "siamese", "dog"), ["cat", {"cat": ["persian", "siamese"]}, "dog"])
    assert tree.members == ((0, 1, 1, 2), (0, 1, 2, 3))
    with pytest.raises(InvalidInput, match=r"must differ as text, got \[1, '1'\]"):
        label_tree(("a", "b"), {1: ["a"], "1": ["b"]})


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_that_are_no_class_are_refused(label: int) -> None:
    tree = label_tree(CLASSES, TREE)
    with pytest.raises(InvalidInput, match="class numbers from 0 to 4"):
        taxonomy_loss([torch.randn(2, 2)], torch.tensor([0, label]), tree, [0])
