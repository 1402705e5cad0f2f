"""A Ray cluster of several nodes on this machine, for the tests that need one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

NODE = {"num_cpus": 2, "num_gpus": 0, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """Two nodes of two CPUs each, to which this process is connected; more may be added."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install subnet-search[ray]")
    from ray.cluster_utils import Cluster

    before = os.environ.get("RAY_ADDRESS")
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    if before is not None:
        os.environ["RAY_ADDRESS"] = before
