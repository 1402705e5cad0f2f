"""The properties of conversion on networks put together at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.knobs import EmptySpaceError
from subnet_search.settings import ElasticSettings
from tests.elastic.judges import (
    configs,
    judge_costs,
    judge_extracted,
    judge_gradients,
    judge_largest,
    judge_reordered,
)
from tests.elastic.random_networks import KINDS, Step, random_network

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CHOICE = st.integers(0, 3)
STEPS = st.lists(st.tuples(st.sampled_from(sorted(KINDS)), CHOICE, CHOICE), min_size=1, max_size=5)
UNHURRIED = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def judge(steps: list[Step], head: int) -> None:
    model = random_network(steps, head)
    try:
        supernet = make_elastic(model, X, ElasticSettings(step=4, form="graph")).eval()
    except EmptySpaceError:  # everything is coupled into too few units
        return
    chosen = configs(supernet, 2)
    judge_largest(model, supernet, X)
    judge_extracted(supernet, X, chosen)
    judge_costs(supernet, X, chosen)
    judge_gradients(supernet, X, chosen[::3])
    judge_reordered(supernet, X)


@pytest.mark.slow
@settings(max_examples=5, derandomize=True, **UNHURRIED)
@given(steps=STEPS, head=CHOICE)
@example(steps=[("shuffle", 0, 2), ("picked", 2, 1)], head=0)  # channels in an order of their own
@example(steps=[("uneven", 0, 0), ("mlp", 1, 1)], head=1)  # channels that only an activation tells apart
@example(steps=[("mlp", 0, 0), ("shuffle", 0, 0)], head=3)  # a shuffle that begins where a module ends
@example(steps=[("picked", 0, 1), ("attention", 0, 0)], head=3)  # every second channel, copied
def test_random_networks_have_all_properties(steps: list[Step], head: int) -> None:
    judge(steps, head)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=150, **UNHURRIED)
@given(steps=STEPS, head=CHOICE)
def test_many_random_networks_have_all_properties(steps: list[Step], head: int) -> None:
    judge(steps, head)


@pytest.mark.slow
@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_step_has_all_properties(kind: str, a: int) -> None:
    for b in range(4):
        judge([(kind, a, b), ("conv", 0, 0)], a)
