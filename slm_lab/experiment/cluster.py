"""Ray, on this machine or on a cluster: started quietly, found quickly or told to be missing."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves its workers wherever anything else runs
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # where much else is running

import ray  # after its settings

from slm_lab.lib.errors import LabError

KNOCK = 5.0  # seconds to wait for a cluster's answer
SETTINGS = b"\x04"  # the type of the frame that HTTP/2, and so gRPC, answers a greeting with
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0\0\0\0\0"


@contextmanager
def started_ray(address: str | None = None, cpus: int = 0) -> Iterator[None]:
    """Ray on this machine, or the cluster at `address`. Raises `LabError` where nobody answers.

    On one machine it has the cores, or `cpus` where that is more: what waits for a slow world may share a core.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": None}
    if address:
        _knock(address)
        quiet.pop("include_dashboard")
    else:
        quiet |= {"include_dashboard": False, "num_cpus": max(len(os.sched_getaffinity(0)), cpus)}
    try:
        with warnings.catch_warnings(), _own_signals():
            warnings.simplefilter("ignore")
            ray.init(address=address or "local", **quiet)
    except Exception as error:  # a node that is too slow raises no finer one
        ray.shutdown()
        raise LabError(
            f"Ray can't be started{f' at {address}' if address else ''}: {str(error).rstrip('.')}. {_cure(address)}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray's start sets a handler of its own for SIGTERM; ours stays."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def stand_in(folder: str) -> None:
    """Go to the folder that a run was started in, if it is here: worlds of one's own and datasets are sought there."""
    if Path(folder).is_dir():
        os.chdir(folder)
        sys.path[:0] = [] if folder in sys.path else [folder]


def _knock(address: str) -> None:
    """Whether anyone listens there who speaks as Ray does; Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()) or "/" in host:
        raise LabError(
            f"'{address}' is no address of a Ray cluster (expected: HOST:PORT, as ray start tells it, or auto)"
        )
    try:
        with socket.create_connection((host, int(port)), timeout=KNOCK) as door:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                door.sendall(HTTP2)
                if door.recv(9)[3:4] != SETTINGS:
                    raise OSError("something else listens there (Ray's dashboard, another service?)")
    except OSError as error:
        raise LabError(f"no Ray cluster answers at {address}: {error}. {_cure(address)}") from error


def _cure(address: str | None) -> str:
    if not address:
        return "Is there room and memory left on this machine? If it is only busy, try again"
    head = "ray start --head --port=6379"
    return (
        f"Start one there with: {head}; this machine joins it with: ray start --address={address}. "
        "Where it wants a token, every machine needs that and RAY_AUTH_MODE=token"
    )
