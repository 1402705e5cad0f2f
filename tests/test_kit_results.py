"""What comes back from boards: read, or refused with the line and the way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from search_spaces import InvalidInput
from subnet_search.kit_results import outliers, read_results

KIT: dict[str, Any] = {
    "checksum": "abc123",
    "formats": ["onnx"],
    "nets": [
        {"net": f"n0{i}", "key": f"key{i}", "macs": 1e6 * (i + 1), "files": {"onnx": f"nets/n0{i}.onnx"}}
        for i in range(4)
    ],
}


def test_the_runners_own_table_is_read() -> None:
    text = (
        "kit,net,latency_ms,low_ms,high_ms,rounds,runtime,threads,device,reason\n"
        "abc123,n00,4.0,3.8,4.4,40,onnxruntime,2,pi,\n"
        "abc123,n01,,,,,onnxruntime,2,pi,operator X is unknown\n"
        "abc123,n02,2.5,2.5,2.5,40,onnxruntime,2,pi,\n"
    )
    found = read_results(text, KIT)
    assert [(one.net, one.ms, one.line) for one in found.measurements] == [("n00", 4.0, 2), ("n02", 2.5, 4)]
    assert found.measurements[0].noise_ms == pytest.approx(0.3)
    assert found.failed == {"n01": "operator X is unknown"}
    assert found.notes == (
        "n01 did not run: operator X is unknown",
        "1 of the kit's 4 nets are not in the file",
    )
    assert found.about == {"device": "pi", "runtime": "onnxruntime", "threads": "2"}


@pytest.mark.parametrize(
    "text",
    [
        "net,latency_us\nn00,4000\n",
        "net,time_s\nn00,0.004\n",
        "net , ms\nn00 , 4.0\n",
        "\ufeffnet,median,unit\nkey0,4000,usec\n",
        "net,median,unit\nnets/n00.onnx,0.004,s\n",
    ],
)
def test_units_stand_in_the_columns_name_or_in_one_of_their_own(text: str) -> None:
    [one] = read_results(text, KIT).measurements
    assert (one.net, one.ms, one.noise_ms) == ("n00", pytest.approx(4.0), None)


def test_of_several_measurements_of_a_net_the_median_counts_and_it_is_told() -> None:
    found = read_results("net,ms\nn00,4\nn00,5\nn00,9\nn01,3\n", KIT)
    assert [one.ms for one in found.measurements] == [5.0, 3.0]
    assert (
        found.notes[0]
        == "n00 was measured 3 times, the median counts; they differ by 125 %: was the board busy?"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a column net and at least one line, its columns are none"),
        ("name,ms\nn00,4\n", "a column net and at least one line, its columns are name, ms"),
        ("net,value\nn00,4\n", "needs a column with the time, such as latency_ms"),
        ("net,latency\nn00,4\n", "does not say its unit; call it latency_ms"),
        ("net,latency,unit\nn00,4,min\n", "line 2: the unit must be s, ms or us, got 'min'"),
        ("net,ms\nn00,4\nn77,5\n", "line 3: this kit has no net 'n77'"),
        (
            "net,ms,kit\nn00,4,abc123\nn01,4,fff\n",
            r"line 3: measured with another kit \(checksum fff, this one has abc123",
        ),
        ("net,ms\nn00,nan\n", "line 2: a time must be positive and finite, got nan"),
        ("net,ms\nn00,-3\n", "line 2: a time must be positive and finite, got -3"),
        ("net,ms\nn00,0\n", "got 0"),
        ("net,ms\nn00,inf\n", "got inf"),
        ("net,ms\nn00,4 ms\n", "must be a plain number, got '4 ms'; the unit goes into the column's name"),
        ("net,s\nn00,4000\n", "multiply-adds are 2.5e\\+02 a second, which no board does; is the unit right"),
        ("net,ms\nn00,\n", r"holds no time at all; reasons: \['not measured'\]"),
    ],
)
def test_what_cannot_be_right_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_results(text, KIT)


def test_outliers_are_far_in_both_senses() -> None:
    measured = np.array([1.0, 2.0, 3.0, 4.0, 50.0])
    np.testing.assert_array_equal(
        outliers(measured * [1.01, 0.99, 1.02, 1.0, 0.1], measured), [0, 0, 0, 0, 1]
    )
    assert not outliers(
        measured * [1.01, 0.99, 1.02, 1.0, 1.2], measured
    ).any()  # a few percent more are no outlier
    assert not outliers(measured * [3, 0.3, 4, 0.2, 3], measured).any()  # where all are off, none stands out
