"""Joining or starting Ray, quietly."""

import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import IO

import ray

from adgen.creatives.storage import S3Access
from adgen.errors import RunError, SettingsError, printable
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.head_watch import needed_by_driver, watching

_own_ray = threading.Event()
"""Set while Ray is one that this process started: it has what this machine has, and grows no more."""


@contextmanager
def connected(
    settings: ClusterSettings, s3: S3Access | None = None, on_loss: Callable[[RunError], object] | None = None
) -> Iterator[None]:
    """Ray for the duration of the block: the cluster of `address` or RAY_ADDRESS, else a local one of our own. Where it dies in
    the middle, `on_loss` is called from a thread.

    Endpoint and region of `s3` hold in all of its processes, for inputs too. A cluster that is already connected (tests, an
    interactive session) is used and left as it is.
    """
    if ray.is_initialized():
        yield
        return
    with (
        (s3 or S3Access()).exported() as variables,
        _started(settings, variables) as address,
        watching(needed_by_driver(address), on_loss) if on_loss else nullcontext(),
    ):
        yield


@contextmanager
def _started(settings: ClusterSettings, variables: dict[str, str]) -> Iterator[str]:
    """Yields the address."""
    quiet_ray()
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    # A dashboard that is off makes a Ray Train cleaner warn each second (docs/design.md 7.2), but costs a refresh nothing.
    local = {"include_dashboard": False} if address == "local" else {}
    if variables:
        local["runtime_env"] = {"env_vars": variables}
    with _joining(address):
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **local)
    quiet_ray()  # ray.init sets its loggers up anew
    if address == "local":
        _own_ray.set()
    try:
        yield address
    finally:
        _own_ray.clear()
        ray.shutdown()


JOIN_SECONDS = 25.0  # until an address that answers has to have let us in


@contextmanager
def _joining(address: str) -> Iterator[None]:
    """RunError, within `JOIN_SECONDS`, where the address is none of a Ray cluster, nobody answers there, or it does not let us in;
    or where Ray of our own cannot start.

    Ray ends the whole process, without a word, where the cluster is another user's, of another version or on another machine's
    network: a child that waits for our end says so then.
    """
    if address == "local":
        try:
            yield
        except Exception as error:  # Ray raises that itself
            with suppress(Exception):
                ray.shutdown()
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"Ray cannot start on this machine: {reason} Is it very busy, or out of memory or disk?") from None
        return
    named = f"the Ray cluster {address} (cluster.address or RAY_ADDRESS)"
    _check_answers(address, named)
    refused = f"{named} does not let this process in: it is another user's, of another version of Ray, or on another network"
    witness = subprocess.Popen(
        ["sh", "-c", 'read -r joined || printf "%s\\n" "$0" >&2', printable(refused)], stdin=subprocess.PIPE, start_new_session=True
    )
    timer = threading.Timer(JOIN_SECONDS, os._exit, (1,))  # the child speaks
    timer.daemon = True
    timer.start()
    try:
        with _held_back() as said:
            yield
    except (Exception, SystemExit) as error:
        reasons = [" ".join(reason.split())[:300] for reason in (str(error), _last_words(said)) if reason]
        raise RunError(f"{named} cannot be joined: {'; '.join(reasons)}") from None
    finally:
        timer.cancel()
        with suppress(OSError):
            witness.communicate(b"joined\n")


@contextmanager
def _held_back() -> Iterator[IO[bytes]]:
    """A file with what Ray's own threads write to stderr: a line each second, or a page of stack when Ray ends us."""
    sys.stderr.flush()
    said, kept = tempfile.TemporaryFile(), os.dup(2)  # noqa: SIM115 read after the block
    os.dup2(said.fileno(), 2)
    try:
        yield said
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _last_words(said: IO[bytes]) -> str:
    """The last line in it, without Ray's time and place."""
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    said.close()
    return re.sub(r"^\[[^\]]*\]\s*(\S+:\d+: )?", "", lines[-1]) if lines else ""


def _check_answers(address: str, named: str) -> None:
    """RunError: the address is a web page's, or nobody listens there."""
    if address == "auto":
        return
    scheme, _, place = address.rpartition("://")
    if scheme not in ("", "ray"):
        raise RunError(f"{named}: {scheme}:// is where `ray job submit` sends jobs; a driver joins host:6379, or ray://host:10001")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise RunError(f"{named}: not an address; expected host:port, ray://host:port, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"{named} does not answer: {error}") from None


def cluster_device(wanted: str) -> str:
    """`auto` is the GPU where the cluster has one; the driver's own node may be without. SettingsError: cuda is wanted on a Ray of
    our own, and this machine has none. Another cluster may grow one, which is waited for."""
    if wanted == "cpu" or (wanted == "cuda" and not _own_ray.is_set()):
        return wanted  # without a question to Ray, which need not be joined yet: Serve's builder runs before it is
    if ray.cluster_resources().get("GPU"):
        return "cuda"
    if wanted == "cuda":
        raise SettingsError("device is cuda, but Ray finds no GPU on this machine: take cpu or auto, or join a cluster (--address)")
    return "cpu"


def num_engines(settings: ClusterSettings, device: str, tensor_parallel: int = 1) -> int:
    """How many engines the cluster carries: as set, else one for every `tensor_parallel` GPUs, or CPUs (two at least).

    RunError where it has not even the slots of one engine of several ranks.
    """
    if settings.actors:
        return settings.actors
    kind = "GPU" if device == "cuda" else "CPU"
    slots = int(ray.cluster_resources().get(kind, 0))
    if slots < tensor_parallel > 1:
        raise RunError(
            f"engine.tensor_parallel is {tensor_parallel}, but the cluster has {slots} {kind}s: lower it, or where the cluster "
            "grows on demand, set cluster.actors"
        )
    return max(1, slots // (tensor_parallel if device == "cuda" else max(2, tensor_parallel)))


def slot_resources(device: str, tensor_parallel: int = 1) -> dict[str, float]:
    """What a rank of an engine takes. Half of the CPUs of a cluster without GPUs stay for look-ups, finishing and uploads."""
    if device == "cuda":
        return {"CPU": 1, "GPU": 1}
    return {"CPU": 1 if tensor_parallel == 1 else 0.5}


def quiet_ray() -> None:
    """Errors only, from Ray and from what it starts after this."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    for name in ("ray", "ray.data", "ray.serve", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
