"""Joining or starting Ray, quietly."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from adgen.on_ray.settings import ClusterSettings


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[None]:
    """Ray for the duration of the block: the cluster of `address` or RAY_ADDRESS, else a local one of our own.

    A cluster that is already connected (tests, an interactive session) is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    quiet_ray()
    address = settings.address or os.environ.get("RAY_ADDRESS")
    # A dashboard that is off makes a Ray Train cleaner warn each second (STACK.md section 2), but costs a refresh nothing.
    local = {} if address else {"include_dashboard": False}
    ray.init(address=address or "local", logging_level="ERROR", log_to_driver=False, **local)
    quiet_ray()  # ray.init sets its loggers up anew
    try:
        yield
    finally:
        ray.shutdown()


def num_engines(settings: ClusterSettings, device: str) -> int:
    """How many engines the cluster carries: as set, else one a GPU, or one for every two CPUs."""
    if settings.actors:
        return settings.actors
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0)) if device == "cuda" else int(resources.get("CPU", 1)) // 2)


def quiet_ray() -> None:
    """Errors only, from Ray and from what it starts after this."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    for name in ("ray", "ray.data", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
