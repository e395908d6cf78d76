"""Connecting to a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from typing import Any

import psutil
import ray

from memr1.errors import MemR1Error

_log = logging.getLogger(__name__)

START_ATTEMPTS = 3


def connect() -> bool:
    """Connect to the cluster that `RAY_ADDRESS` names (also set inside a job), else start one on this machine.

    Returns True when this call connected, and the caller has to disconnect. A cluster of our own listens on this
    machine only and has no dashboard; Ray protects it with a token of its own making (`RAY_AUTH_MODE` and
    `RAY_AUTH_TOKEN`, else ~/.ray/auth_token). A cluster with a token is reached by setting the same two variables
    before Ray is imported. Raises MemR1Error when there is no cluster at the address or none can be started.
    """
    if ray.is_initialized():
        return False
    # Ray installs a SIGTERM handler that exits at once; ours finishes the step and writes a checkpoint
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        _connect(os.environ.get("RAY_ADDRESS"))
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
    return True


def interface_of(address: str) -> str | None:
    """Name of the network device of this machine that has an IP address, or None."""
    devices = psutil.net_if_addrs().items()
    return next((name for name, given in devices if any(a.address == address for a in given)), None)


def use_own_interface() -> None:
    """Have gloo listen at this node's address, unless the environment says where: by itself it listens where the
    host's name leads to, which on many machines is the loopback device."""
    if device := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", device)


def _connect(address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address and address != "local":
        _check_reachable(address)
        try:
            ray.init(address=address, **options)
        except Exception as error:  # refused, wrong token, other version: Ray raises many types
            raise MemR1Error(
                f"RAY_ADDRESS={address}: no connection: {error}. Unset it to start Ray on this machine; a cluster with "
                "token authentication needs its RAY_AUTH_MODE and RAY_AUTH_TOKEN"
            ) from error
        return
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # a busy machine misses the deadline of Ray's start-up check now and then
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise MemR1Error(
                    f"Ray did not start on this machine in {START_ATTEMPTS} attempts: {error}. Its logs are in "
                    "/tmp/ray/session_latest/logs; backend=local trains without Ray"
                ) from error
            _log.warning("Ray did not start (attempt %d of %d): %s", attempt, START_ATTEMPTS, error)
            time.sleep(5 * attempt)


def _check_reachable(address: str) -> None:
    """Ray itself tries for several minutes and prints warnings; a port that nobody listens on is told at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # `auto` and the like: Ray knows what they mean
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()
    except OSError as error:
        raise MemR1Error(
            f"RAY_ADDRESS={address}: nothing answers there ({error}). Name a running cluster, or unset it "
            "to start Ray on this machine"
        ) from error
