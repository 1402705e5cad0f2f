"""The way to a Ray cluster; the only file that imports Ray."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from search_spaces import InvalidInput
from subnet_search.exits import Terminated
from subnet_search.searchers.pool import Workers

from .reach import HOW, check_reachable

TOKENS = "RAY_AUTH_MODE"
OBJECT_STORE_BYTES = 100 * 2**20  # little travels


def import_ray() -> Any:
    """The module `ray`; `InvalidInput` says how to install it."""
    try:
        import ray
    except ImportError as error:
        raise InvalidInput(
            f'workers need Ray, which cannot be imported ({error}): pip install "subnet-search[ray]"'
        ) from error
    return ray


def import_tune() -> Any:
    """The module `ray.tune`, with `ray.tune.search` and `ray.tune.schedulers`; as `import_ray`."""
    import_ray()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables cannot be silenced
    try:
        for part in ("schedulers", "search"):
            importlib.import_module(f"ray.tune.{part}")
        return importlib.import_module("ray.tune")
    except ImportError as error:
        raise InvalidInput(
            f'trials need Ray Tune, which cannot be imported ({error}): pip install "subnet-search[ray]"'
        ) from error


@contextmanager
def connected(workers: Workers) -> Iterator[Any]:
    """The module `ray`, connected as the workers say; what was started here is ended.

    A connection that the caller has made before is used as it is, and stays.

    Raises:
        InvalidInput: within seconds, where no cluster answers, it is of another version, or no worker fits into it.
    """
    ray = import_ray()
    if ray.is_initialized():
        _check_room(ray, workers)
        yield ray
        return
    with _tokens_as_before(ray):
        _connect(ray, workers)
        try:
            _check_room(ray, workers)
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _tokens_as_before(ray: Any) -> Iterator[None]:
    """A Ray that is started here turns tokens on for the whole process, which clusters without them cannot bear."""
    before = os.environ.get(TOKENS)
    try:
        yield
    finally:
        if before is None and os.environ.pop(TOKENS, None) is not None:
            with suppress(AttributeError):
                ray._raylet.Config.initialize("")  # reads the environment anew
                ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _connect(ray: Any, workers: Workers) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    before = signal.getsignal(signal.SIGTERM)
    address = workers.address
    if address is not None:
        check_reachable(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=workers.count,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            ray.init(address=address, **quiet)
    except SystemExit as stop:  # Ray's own answer to SIGTERM
        raise Terminated from stop
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if address is None:
            raise InvalidInput(f"Ray cannot be started on this machine: {error}") from error
        raise InvalidInput(f"no Ray cluster can be used at {address!r}: {_in_short(error)}; {HOW}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in place


def _in_short(error: Exception) -> str:
    """Its first and its last line: between them may stand the traceback of a server."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(dict.fromkeys((lines[0], lines[-1])))


def _check_room(ray: Any, workers: Workers) -> None:
    has = ray.cluster_resources()
    if has.get("CPU", 0) < 1 or has.get("GPU", 0) < workers.gpus_each:
        raise InvalidInput(
            f"the Ray cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, and each worker needs one "
            f"CPU and {workers.gpus_each:g} GPUs; ask for fewer GPUs, or add nodes that have them"
        )
