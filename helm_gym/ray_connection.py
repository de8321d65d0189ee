"""The one place that connects to Ray (extra ``ray``): to the cluster of RAY_ADDRESS, or one on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from helm_gym.errors import HelmError, IncompatibleError

_CONNECT_S = 10.0


@contextlib.contextmanager
def connected(otherwise: str) -> Iterator[Any]:
    """Ray, connected; a cluster that was started here ends here.

    Args:
        otherwise: what a user without Ray can do in its place.

    Raises:
        IncompatibleError: Ray is not installed.
        HelmError: no cluster answers.
    """
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    try:
        import ray
    except ImportError as error:
        raise IncompatibleError(f"Ray is not installed; install helm-gym[ray], or {otherwise}.") from error
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (ray.exceptions.RayError, ConnectionError, ValueError) as error:  # ValueError: no address
            raise HelmError(
                f"Ray could not be reached ({str(error).partition(chr(10))[0]}); see RAY_ADDRESS."
            ) from error
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Ray tries for minutes where nothing listens."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except OSError as error:
        raise HelmError(
            f"No Ray cluster answers at RAY_ADDRESS {address} ({error}); start one, or unset it."
        ) from error


def check_gpus(ray: Any, wanted: float, profile: str) -> None:
    """Refuses to wait for ever for GPUs that a cluster lacks.

    Raises:
        IncompatibleError: it has fewer than ``wanted``.
    """
    there = ray.cluster_resources().get("GPU", 0.0)
    if there < wanted:
        raise IncompatibleError(
            f"Profile '{profile}' asks for {wanted:.0f} GPU{'s' * (wanted > 1)}, and the Ray cluster has {there:.0f}."
        )
