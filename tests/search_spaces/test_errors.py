"""Near names are offered whatever their case."""

from __future__ import annotations

from search_spaces.errors import nearest_names


def test_the_nearest_names_are_offered_as_they_are_written() -> None:
    assert nearest_names("mnist", ["MNIST", "CIFAR10"]) == "; did you mean 'MNIST'?"
    assert nearest_names("Resnet18", ["resnet18", "vgg16"]) == "; did you mean 'resnet18'?"
    assert nearest_names("zzz", ["MNIST"]) == ""
