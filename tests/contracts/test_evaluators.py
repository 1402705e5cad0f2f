from __future__ import annotations

from subnet_search.elastic.supernet import Supernet
from subnet_search.measure import make_evaluator
from subnet_search.searchers import Evaluator
from subnet_search.settings import EvaluateSettings
from tests.contracts.evaluator import EvaluatorContract
from tests.small import small_splits


class TestSupernetEvaluator(EvaluatorContract):
    def make(self, supernet: Supernet) -> Evaluator:
        settings = EvaluateSettings(calibration_images=40, device="cpu")
        return make_evaluator(supernet, small_splits(), ("macs", "top1_percent", "params"), settings)
