from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from search_spaces import InvalidInput
from subnet_search.dynamic.anytime import FixedSteps, branch_loss, predict_anytime, time_steps
from subnet_search.small_models import triangular_resnet

STEP_MS = (4.0, 2.0, 3.0, 1.0)


class Watch:
    """A clock that steps move on."""

    def __init__(self) -> None:
        self.now_s = 10.0

    def __call__(self) -> float:
        return self.now_s


class Slow:
    """Four steps of known times, ever surer of class 1; `slower` than they are at rest."""

    def __init__(self, watch: Watch, slower: float = 1.0) -> None:
        self.watch, self.slower, self.begun = watch, slower, 0

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        for k, step_ms in enumerate(STEP_MS):
            self.begun += 1
            self.watch.now_s += self.slower * step_ms / 1e3
            yield torch.tensor([[0.0, k + 1.0]]).expand(len(x), 2)


def run(slower: float = 1.0, known: bool = True, **limits: float) -> tuple[int, str, float]:
    watch = Watch()
    net = Slow(watch, slower)
    step_ms = STEP_MS if known else ()
    found = predict_anytime(net, torch.zeros(2, 1), clock_s=watch, step_ms=step_ms, **limits)
    assert found.steps == net.begun
    assert found.logits[0, 1].item() == found.steps
    return found.steps, found.reason, round(found.elapsed_ms, 6)


def test_the_deadline_holds_where_steps_are_known() -> None:
    assert run() == (4, "complete", 10.0)
    assert run(deadline_ms=10.1) == (4, "complete", 10.0)
    assert run(deadline_ms=9.5) == (3, "deadline", 9.0)
    assert run(deadline_ms=8.9) == (2, "deadline", 6.0)
    assert run(deadline_ms=1.0) == (1, "deadline", 4.0)  # one answer there must be
    assert run(deadline_ms=9.5, slower=2.0) == (1, "deadline", 8.0)
    assert run(deadline_ms=12.1, slower=2.0) == (2, "deadline", 12.0)


def test_without_known_steps_it_may_be_late_by_one() -> None:
    assert run(known=False, deadline_ms=8.9) == (3, "deadline", 9.0)


def test_it_stops_when_every_input_is_sure_enough() -> None:
    sure = [torch.tensor([0.0, k + 1.0]).softmax(0)[1].item() for k in range(4)]
    assert run(confidence=(sure[1] + sure[2]) / 2)[:2] == (3, "confidence")
    assert run(confidence=0.999)[:2] == (4, "complete")


def test_a_network_in_branches_stops_where_it_is_told() -> None:
    net = triangular_resnet((1, 1), 8, 4, num_classes=5, size_px=8).eval()
    x = torch.randn(2, 3, 8, 8)
    found = predict_anytime(net, x, deadline_ms=1e-6)
    assert (found.steps, found.reason) == (1, "deadline")
    torch.testing.assert_close(found.logits, net(x)[0], rtol=1e-5, atol=1e-5)
    assert len(time_steps(net, x, repeats=1)) == 4
    separate = FixedSteps([lambda x: net(x)[0], lambda x: net(x)[3]])
    torch.testing.assert_close(predict_anytime(separate, x).logits, net(x)[3])


def test_the_loss_is_a_weighted_sum() -> None:
    a, b, y = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 1, 3])
    wanted = F.cross_entropy(a, y) + 0.5 * F.cross_entropy(b, y)
    torch.testing.assert_close(branch_loss([a, b], y, [1.0, 0.5]), wanted)
    with pytest.raises(InvalidInput, match="as many weights, got 1"):
        branch_loss([a, b], y, [1.0])


def test_limits_that_make_no_sense_are_refused() -> None:
    for limits in ({"deadline_ms": 0.0}, {"confidence": 1.0}, {"deadline_ms": "5"}, {"confidence": "x"}):
        with pytest.raises(InvalidInput, match=r"above 0|below 1"):
            run(**limits)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"Linear does not answer in steps: .* FixedSteps"):
        predict_anytime(torch.nn.Linear(1, 1), torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="has no step"):
        predict_anytime(FixedSteps([]), torch.zeros(1))
    with pytest.raises(InvalidInput, match="repeats=0"):
        time_steps(FixedSteps([]), torch.zeros(1), repeats=0)


def test_times_of_steps_and_labels_that_make_no_sense_are_refused() -> None:
    net = triangular_resnet((1,), 4, 2, 3, 1, 8).eval()
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(InvalidInput, match="milliseconds of a step must be a number above 0"):
        predict_anytime(net, x, deadline_ms=5.0, step_ms=[1.0, float("nan")])
    with pytest.raises(InvalidInput, match="times of 1 steps, and the network has more"):
        predict_anytime(net, x, deadline_ms=1e6, step_ms=[1.0])
    with pytest.raises(InvalidInput, match="class numbers from 0 to 2"):
        branch_loss(net(x), torch.tensor([7]))
    with pytest.raises(InvalidInput, match="must be a tensor, got a ndarray"):
        predict_anytime(net, x.numpy())  # type: ignore[arg-type]


def test_no_input_is_sure_enough_at_once_and_times_may_be_numpys() -> None:
    net = triangular_resnet((1,), 4, 2, 3, 1, 8).eval()
    x = torch.zeros(1, 1, 8, 8)
    found = predict_anytime(net, x[:0], confidence=0.9)
    assert (found.steps, found.logits.shape) == (1, (0, 3))
    times = np.array([1e-3, 1e-3], dtype=np.float32)
    assert predict_anytime(net, x, deadline_ms=np.int64(10**9), step_ms=times).reason == "complete"
    with pytest.raises(InvalidInput, match="times of 1 steps, and the network has more"):
        predict_anytime(net, x, deadline_ms=1e-6, step_ms=[1e-9])
    for wrong in ({"deadline_ms": True}, {"confidence": True}, {"confidence": 2}):
        with pytest.raises(InvalidInput):
            predict_anytime(net, x, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="does not answer in steps"):
        time_steps(torch.nn.Linear(1, 1), x)  # type: ignore[arg-type]
