"""A service whose engine waits when a test wants it to; clients that ask it and hang up."""

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adgen.on_ray.serving.engine import EngineReplica


class HeldReplica(EngineReplica):
    """An engine of the service that begins no batch while it is held. A file holds it: calls would wait behind requests."""

    def __init__(self, settings):
        super().__init__(settings)
        self._held, self._begun = held_file(settings.http.port), 0
        self._generate = self.maker.queue._run
        self.maker.queue._run = self._run_when_free

    def _run_when_free(self, requests):
        self._begun = len(requests)
        while self._held.exists():
            time.sleep(0.01)
        self._begun = 0
        return self._generate(requests)

    async def state(self) -> dict[str, int]:
        """Of its queue, since it started. An engine that has all that it takes does not answer."""
        counts = self.maker.queue.counts
        found = {"waiting": len(self.maker.queue), "begun": self._begun, "rows": counts.rows, "left": counts.left}
        return found | {"pid": os.getpid()}

    async def preparation_pid(self) -> int:
        return await self.maker._preparation.__ray_call__.remote(lambda _: os.getpid())


def held_file(port: int) -> Path:
    """While it is there, engines of the service at this port begin nothing."""
    return Path(tempfile.gettempdir()) / f"adgen-held-{port}"


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def send_and_hold(port: int, body: dict[str, Any], token: str) -> socket.socket:
    """A request for a creative whose answer nobody reads; close the socket to hang up."""
    data = json.dumps(body).encode()
    head = f"POST /v1/creatives HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    return client


def until(holds: Callable[[], bool], seconds: float = 120, instead: Callable[[], Any] = str) -> None:
    """Wait until it holds; AssertionError: it never did, with what there is `instead`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it never came true {instead()}"
        time.sleep(0.05)
