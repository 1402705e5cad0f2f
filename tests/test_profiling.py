from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from search_spaces import InvalidInput
from subnet_search.measure import Latency, Measured
from subnet_search.profiling import LatencyLog, on_target, spread_over_cost, table
from subnet_search.record import create_run
from subnet_search.settings import DeviceSettings
from tests.small import small_supernet

SUPERNET = small_supernet()
SPACE, COSTS = SUPERNET.space, SUPERNET.costs


def test_subnets_are_all_over_the_range_of_cost() -> None:
    found = spread_over_cost(SPACE, COSTS, 7, np.random.default_rng(0))
    macs = np.log(COSTS.macs(SPACE.encode(found)))
    assert (found[0], found[-1], len(set(found))) == (SPACE.smallest(), SPACE.largest(), 7)
    gaps = np.diff(macs)
    assert gaps.min() > 0
    assert gaps.max() < 2 * gaps.mean()


def test_what_was_measured_is_kept_line_by_line_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    profile = {"runtime": "x", "threads": 1}
    reference = {"median_ms": 2.0, "low_ms": 1.9, "high_ms": 2.1, "rounds": 30}
    line = {"file_bytes": 7, "seconds": 0.5, "reason": "", "config": dict(SPACE.smallest())}
    with create_run(tmp_path / "run", "") as run:
        log = LatencyLog(run)
        assert log.timing(profile) is None
        log.add("whole", profile=profile, latency=reference)
        timing = log.timing(profile)
        log.add("subnet", timing=timing, key="a", latency=reference, **line)
        log.add("subnet", timing={"profile": "another"}, key="b", latency=reference, **line)
        path = run.folder / "latencies.jsonl"
        path.write_bytes(path.read_bytes() + b'{"kind":"subnet","key":"c"')
        again = LatencyLog(run)
        assert again.timing(profile) == timing
        assert again.known(timing or {}) == {
            "a": Measured(SPACE.smallest(), Latency(2.0, 1.9, 2.1, 30), 7, 0.5, "")
        }
        again.add("subnet", timing=timing, key="d", latency=None, **{**line, "reason": "no sort"})
        assert set(LatencyLog(run).known(timing or {})) == {"a"}  # who failed is tried again


def test_the_table_puts_shares_beside_each_other_and_tells_what_failed() -> None:
    small, large = SPACE.smallest(), SPACE.largest()
    found = [
        Measured(small, Latency(1.0, 0.9, 1.1, 12), 1_000_000, 0.1),
        Measured(SPACE.uniform(0.5), None, None, 0.1, "no operator sort"),
        Measured(large, Latency(2.0, 1.9, 2.1, 12), None, 0.1),
    ]
    lines = table(
        found, {"profile": {"runtime": "x"}, "reference": {**vars_of(found[2].latency)}}, COSTS, SPACE
    ).splitlines()
    share = 100 * COSTS.macs(SPACE.encode([small]))[0] / COSTS.macs(SPACE.encode([large]))[0]
    assert f"{share:.1f}%" in lines[1]
    assert "50.0%" in lines[1]
    assert lines[2].endswith("no operator sort")
    assert "100.0%   100.0%" in lines[3]


def vars_of(latency: Latency | None) -> dict[str, float]:
    assert latency is not None
    return {name: getattr(latency, name) for name in ("median_ms", "low_ms", "high_ms", "rounds")}


def test_the_command_line_changes_the_recipes_target() -> None:
    own = DeviceSettings(name="cpu", runtime="command", command="bench {file}", threads=2)
    assert on_target(own, runtime=None, command=None) == own
    other = on_target(own, runtime="openvino", threads=1)
    assert (other.runtime, other.command, other.threads) == ("openvino", None, 1)
    board = on_target(DeviceSettings(precision="bf16"), command="bench {file}")
    assert (board.runtime, board.precision) == ("command", "fp32")
    assert on_target(DeviceSettings(name="cuda"), runtime="openvino").name == "cpu"
    with pytest.raises(InvalidInput, match='must be what the runtime "executorch" has'):
        on_target(DeviceSettings(), runtime="executorch", precision="int8")
