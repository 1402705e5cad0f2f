"""What every evaluator must keep to; a new one inherits this and says how it is made."""

from __future__ import annotations

import math

import numpy as np

from subnet_search.elastic.supernet import Supernet
from subnet_search.searchers import Evaluator
from tests.small import small_supernet


def context_of(evaluator: Evaluator) -> str:
    context: str = evaluator.context  # type: ignore[attr-defined]
    return context


class EvaluatorContract:
    def make(self, supernet: Supernet) -> Evaluator:
        raise NotImplementedError

    def test_it_answers_in_the_order_of_its_objectives_with_finite_numbers(self) -> None:
        supernet = small_supernet()
        evaluator = self.make(supernet)
        for config in supernet.space.sample(np.random.default_rng(0), 3):
            evaluation = evaluator(config)
            assert evaluation.config == config
            assert evaluation.status == "ok"
            assert evaluation.source == "measured"
            assert len(evaluation.values) == len(evaluator.objectives)
            assert all(math.isfinite(value) for value in evaluation.values)

    def test_the_same_subnet_has_the_same_values_whatever_was_measured_before(self) -> None:
        supernet = small_supernet()
        first, second = supernet.space.smallest(), supernet.space.uniform(0.5)
        evaluator = self.make(supernet)
        values = [evaluator(config).values for config in (first, second, first)]
        assert values[0] == values[2] == self.make(small_supernet())(first).values

    def test_a_config_that_is_not_canonical_is_answered_as_its_canonical_form(self) -> None:
        supernet = small_supernet()
        evaluator = self.make(supernet)
        plain = {**supernet.space.largest(), "block1": 0}
        evaluation = evaluator({**plain, "block1.conv1": 4})  # type: ignore[arg-type]
        assert evaluation == evaluator(supernet.space.canonical(plain))

    def test_nothing_in_the_supernet_changes(self) -> None:
        supernet = small_supernet().train()
        before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
        self.make(supernet)(supernet.space.smallest())
        assert all((tensor == before[name]).all() for name, tensor in supernet.state_dict().items())
        assert supernet.active == supernet.space.largest()
        assert all(module.training for module in supernet.modules())

    def test_the_context_names_the_weights(self) -> None:
        supernet = small_supernet()
        context = context_of(self.make(supernet))
        assert context == context_of(self.make(small_supernet()))
        assert context != context_of(self.make(small_supernet(seed=1)))
