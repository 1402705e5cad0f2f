"""Where there is no cluster, that is said within seconds; versions that differ are named."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from search_spaces import InvalidInput
from subnet_search.searchers import Workers
from subnet_search.workers.link import connected
from subnet_search.workers.reach import check_reachable
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


class Rude(socketserver.BaseRequestHandler):
    """Reads what comes and hangs up; it is no gRPC."""

    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"-ERR unknown command\r\n")


@pytest.fixture
def answering() -> Iterator[Callable[[Any], str]]:
    """Starts a server of gRPC whose every answer is that code; its address."""
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed: pip install subnet-search[ray]")
    servers = []

    def start(code: str) -> str:
        def refuse(request: bytes, context: Any) -> bytes:
            if code != "OK":
                context.abort(grpc.StatusCode[code], "")
            return b""

        class All(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, call: Any) -> Any:
                return grpc.unary_unary_rpc_method_handler(refuse)

        server = grpc.server(ThreadPoolExecutor(1), handlers=[All()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_what_listens_and_is_no_ray_is_said_at_once(scheme: str) -> None:
    pytest.importorskip("grpc", reason="grpcio is not installed: pip install subnet-search[ray]")
    with socketserver.TCPServer(("127.0.0.1", 0), Rude) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InvalidInput, match=r"something else than Ray listens there, .*; start one"):
            check_reachable(f"{scheme}127.0.0.1:{server.server_address[1]}")
        server.shutdown()


def test_the_wrong_port_of_ray_and_a_missing_token_are_named(
    answering: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    check_reachable(answering("OK"))
    other, closed = answering("UNIMPLEMENTED"), answering("UNAUTHENTICATED")
    with pytest.raises(InvalidInput, match=r"it is no Ray cluster; give HOST:PORT with the port"):
        check_reachable(other)
    with pytest.raises(InvalidInput, match=r"it is no server for Ray clients; .* ray://HOST:PORT with"):
        check_reachable(f"ray://{other}")
    with pytest.raises(InvalidInput, match=r"wants a token, .*: set RAY_AUTH_MODE=token"):
        check_reachable(closed)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_reachable(closed)


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


@pytest.mark.slow
def test_ray_on_this_machine_leaves_nothing_that_clusters_without_tokens_cannot_bear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install subnet-search[ray]")
    from ray.cluster_utils import Cluster

    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with connected(Workers(1)):
        assert ray.get(ray.put(1)) == 1
    assert "RAY_AUTH_MODE" not in os.environ
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        with connected(Workers(1, cluster.address)):
            assert ray.get(ray.remote(lambda: os.getpid()).remote(), timeout=120) != os.getpid()
    finally:
        cluster.shutdown()


def test_versions_that_differ_are_named() -> None:
    mine = own_versions()
    assert difference(mine, mine) == ""
    theirs = {**mine, "torch": "1.0"}
    assert difference(mine, theirs) == f"torch 1.0 instead of {mine['torch']}"
    assert difference(mine, {}).startswith("python none instead of 3.")
