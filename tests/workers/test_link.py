"""Where there is no cluster, that is said within seconds; versions that differ are named."""

from __future__ import annotations

import socket

import pytest

from search_spaces import InvalidInput
from subnet_search.searchers import Workers
from subnet_search.workers.link import check_reachable, connected
from subnet_search.workers.versions import difference, own_versions


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_no_cluster_at_the_address_is_said_with_what_to_try(scheme: str) -> None:
    address = f"{scheme}127.0.0.1:{free_port()}"
    with pytest.raises(InvalidInput, match=rf"no Ray cluster answers at '{address}': .*refused.*; start one"):
        check_reachable(address)


@pytest.mark.parametrize("address", ["nowhere", "host:", "ray://host", "a:b", "http://x:1/y", "", "x:123456"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match='must be "auto", "HOST:PORT" or "ray://HOST:PORT", got'):
        check_reachable(address)


def test_a_name_that_nobody_knows_is_no_cluster() -> None:
    with pytest.raises(InvalidInput, match=r"no Ray cluster answers at 'no-such-host\.invalid:6379'"):
        check_reachable("no-such-host.invalid:6379")


@pytest.mark.slow
def test_auto_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install subnet-search[ray]")
    assert not ray.is_initialized()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(InvalidInput, match=r"no Ray cluster can be used at 'auto': .*; start one"),
        connected(Workers(2, "auto")),
    ):
        pytest.skip("somebody's Ray cluster runs on this machine")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(InvalidInput, match="no Ray cluster answers at"), connected(Workers(2, "auto")):
        raise AssertionError("there is a cluster on this machine")


def test_versions_that_differ_are_named() -> None:
    mine = own_versions()
    assert difference(mine, mine) == ""
    theirs = {**mine, "torch": "1.0"}
    assert difference(mine, theirs) == f"torch 1.0 instead of {mine['torch']}"
    assert difference(mine, {}).startswith("python none instead of 3.")
