"""A search through Ray's server for clients, ray://, on a cluster that was started by its command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from search_spaces import InvalidInput
from subnet_search.record import open_run
from subnet_search.workers.reach import check_reachable
from tests.workers.places import worth
from tests.workers.test_link import free_port
from tests.workers.test_pool import DRIVER, calls, go, made_by, until, values

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a cluster that wants a token, without one for this process."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install subnet-search[ray]")
    pytest.importorskip("grpc", reason="grpcio is not installed: pip install subnet-search[ray]")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    port = free_port()
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={free_port()}", f"--ray-client-server-port={port}", "--include-dashboard=false"]
    command += [f"--object-store-memory={80 * 2**20}"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    slow = {"RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "60"}  # a busy machine takes long to import Ray
    with tempfile.TemporaryDirectory(
        dir="/tmp", ignore_cleanup_errors=True
    ) as folder:  # sockets need short paths
        with open(Path(folder, "log"), "w") as log:
            cluster = subprocess.Popen(
                [*command, f"--temp-dir={folder}/ray"], env=os.environ | token | slow, stdout=log, stderr=log
            )
        try:
            until(lambda: "block" in Path(folder, "log").read_text() or cluster.poll() is not None)
            assert cluster.poll() is None, Path(folder, "log").read_text()
            until(lambda: "set RAY_AUTH_MODE=token" in refusal(f"ray://127.0.0.1:{port}"))
            token["RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S"] = "120"
            for name, value in token.items():
                monkeypatch.setenv(name, value)
            yield f"ray://127.0.0.1:{port}"
        finally:
            cluster.terminate()
            cluster.wait(60)


def refusal(address: str) -> str:
    try:
        check_reachable(address)
    except InvalidInput as error:
        return str(error)
    return ""


@pytest.mark.timeout(900)
def test_from_outside_a_worker_may_die_and_ctrl_c_be_pressed(address: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path), address]
    told = tmp_path / "calls"

    def done(number: int) -> bool:
        return told.exists() and len(calls(tmp_path)) >= number

    for _ in range(3):  # Ray's server for a client does not always start; that is said, and one tries again
        with open(tmp_path / "stderr", "w") as said:
            process = subprocess.Popen(command, cwd=ROOT, stderr=said)
        until(lambda process=process: done(4) or process.poll() is not None, most_s=150.0)
        if "Starting Ray client server failed" not in (tmp_path / "stderr").read_text():
            break
    assert process.poll() is None, (tmp_path / "stderr").read_text()
    os.kill(calls(tmp_path)[-1][1], signal.SIGKILL)
    until(lambda: done(8))
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    workers = {pid for _, pid in calls(tmp_path)}
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    kept = len(calls(tmp_path))
    assert kept < 24
    subprocess.run(command, cwd=ROOT, check=True)
    with open_run(tmp_path / "run", write=False) as run:
        found = {
            line["key"]: tuple(line["values"].values())
            for line in run.journal.lines()
            if line["kind"] == "result"
        }
    expected = go(made_by("plain"), evaluations=24, workers=1)
    assert found == values(expected) == {e.config.key: worth(e.config).values for e in expected.evaluations}
    paid = Counter(key for key, _ in calls(tmp_path))
    assert sum(paid.values()) - len(paid) <= 3  # under way at the death, or at Ctrl-C
