from __future__ import annotations

import os

import pytest

from subnet_search.measure.runtimes.openvino_cpu import _unreported


@pytest.mark.parametrize("before", [None, "1"])
def test_the_converter_believes_it_is_in_a_ci_job_only_while_it_converts(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    if before is not None:
        monkeypatch.setenv("CI", before)

    def reject() -> None:
        assert os.environ["CI"] == "true"
        raise ValueError("a net that is rejected")

    with pytest.raises(ValueError, match="a net"), _unreported():
        reject()
    assert os.environ.get("CI") == before


def test_its_reporting_is_off_then() -> None:
    checker = pytest.importorskip("openvino_telemetry.utils.opt_in_checker")
    with _unreported():
        found = checker.OptInChecker().check(enable_opt_in_dialog=False, disable_in_ci=True)
    assert found == checker.ConsentCheckResult.DECLINED
