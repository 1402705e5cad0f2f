"""Whether a Ray cluster answers at an address, found out within seconds; Ray itself tries for minutes."""

from __future__ import annotations

import os
import re
import socket

from search_spaces import InvalidInput

REACH_S = 3.0  # to open a connection, and for an answer to the first question
HOW = (
    "start one (ray start --head) or look at `ray status` there; without --ray-address a search starts Ray on this "
    "machine by itself"
)
# what a cluster itself answers, and what its server for clients (ray://) answers
CLUSTER, CLIENTS = "/ray.rpc.NodeInfoGcsService/GetClusterId", "/ray.rpc.RayletDriver/ClusterInfo"
SCHEME = "ray://"
TOKEN = (
    "the cluster wants a token, which Ray does not send to an address by itself: set RAY_AUTH_MODE=token, with the "
    "cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN (`ray get-auth-token` shows it there)"
)


def check_reachable(address: str) -> None:
    """Raises `InvalidInput` unless Ray answers at "HOST:PORT" or "ray://HOST:PORT"; "auto" is left to Ray."""
    if address == "auto":
        return
    match = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+?)\]?:(\d{1,5})", address)
    if match is None:
        raise InvalidInput(
            f'the address of a Ray cluster must be "auto", "HOST:PORT" or "ray://HOST:PORT", got {address!r}'
        )
    host, port = match[1], int(match[2])
    try:
        socket.create_connection((host, port), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"no Ray cluster answers at {address!r}: {error}; {HOW}") from error
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # Ray has the certificates
    if problem := _problem_at(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}", address.startswith(SCHEME)
    ):
        raise InvalidInput(f"no Ray cluster can be used at {address!r}: {problem}")


def _problem_at(place: str, by_client: bool) -> str:
    """What is wrong with what listens there, as far as one question tells."""
    try:
        import grpc
    except ImportError as error:
        return f'{SCHEME} needs grpcio ({error}): pip install "subnet-search[ray]"' if by_client else ""
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CLIENTS if by_client else CLUSTER)(b"", timeout=REACH_S)
        except grpc.RpcError as error:
            code = error.code()
        else:
            return ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return f"something else than Ray listens there, or it is too busy to answer; {HOW}"
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return (
            f"it is no {'server for Ray clients' if by_client else 'Ray cluster'}; give HOST:PORT with the port of "
            "`ray start --head --port` (6379), or ray://HOST:PORT with --ray-client-server-port (10001)"
        )
    wants_token = code == grpc.StatusCode.UNAUTHENTICATED
    return TOKEN if wants_token and os.environ.get("RAY_AUTH_MODE", "").lower() != "token" else ""
