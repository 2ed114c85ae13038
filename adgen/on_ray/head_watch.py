"""A watch on the processes of Ray without which a driver cannot go on: the head, and the raylet of the driver's own node.

Ray 2.60 ends a driver whose raylet dies after 13 s, and one whose head dies after 60 s: with exit code 1, no exception and no
word. Until then calls hang. So a thread asks them whether they are there, and speaks before Ray ends the process.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from adgen.errors import RunError

ASK_SECONDS = 2.0
RAYLET_SECONDS = 4.0
"""The raylet's process is no more, and a driver cannot change to another one."""
MISSES = 3
"""Connections that fail one after another before a process counts as lost: a machine may stand still for longer than a patience."""
HEAD_SHARE = 0.75
"""Of the time that Ray itself waits for a head: one that an operator's Redis lets start anew may be back before."""

_RAYS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"


@dataclass(frozen=True)
class Watched:
    """A process that the driver needs."""

    name: str
    host: str
    port: int
    patience_seconds: float
    """How long it may be silent."""

    def answers(self) -> bool:
        """Whether somebody listens there."""
        try:
            socket.create_connection((self.host, self.port), timeout=ASK_SECONDS).close()
        except OSError:
            return False
        return True


@contextmanager
def watching(watched: list[Watched], on_loss: Callable[[RunError], object]) -> Iterator[None]:
    """Call `on_loss`, once and from a thread, where one of `watched` is silent for too long while the block runs."""
    done = threading.Event()
    threading.Thread(target=_watch, args=(watched, on_loss, done), name="head-watch", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(watched: list[Watched], on_loss: Callable[[RunError], object], done: threading.Event) -> None:
    heard, misses = dict.fromkeys(watched, time.monotonic()), dict.fromkeys(watched, 0)
    while not done.wait(ASK_SECONDS):
        for each in watched:
            asked = time.monotonic()
            if each.answers():
                heard[each], misses[each] = asked, 0
                continue
            misses[each] += 1
            silent = time.monotonic() - heard[each]
            if misses[each] >= MISSES and silent > each.patience_seconds and not done.is_set():
                where = f"{each.name} at {each.host}:{each.port}"
                on_loss(RunError(f"{where} has not answered for {silent:.0f} s; the same command goes on from what is done"))
                return


def needed_by_driver(address: str) -> list[Watched]:
    """What the driver that has joined Ray at `address` needs: the head and its own raylet; of a ray:// address its server."""
    patience = HEAD_SHARE * float(os.environ.get(_RAYS_PATIENCE) or 60)
    if address.startswith("ray://"):
        return [_at("the Ray server", address.removeprefix("ray://"), patience)]
    context = ray.get_runtime_context()
    [node] = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
    raylet = Watched("the raylet of this node", node["NodeManagerAddress"], node["NodeManagerPort"], RAYLET_SECONDS)
    return [_at("the head of the Ray cluster", context.gcs_address, patience), raylet]


def _at(name: str, place: str, patience_seconds: float) -> Watched:
    host, _, port = place.rpartition(":")
    return Watched(name, host.strip("[]"), int(port), patience_seconds)
