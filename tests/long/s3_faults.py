"""The store behind an S3 that fails: 20% of all requests get 503, a reset, a time-out, or success whose answer is lost.

    PYTHONPATH=tests python tests/long/s3_faults.py --seed 1 [--share 0.2] [--nights 3] [--job]

Nights of refreshes with clean-up, a forgotten user and a pull, once without faults and once with them. What is published, what
was pulled, and which objects are left must be equal. A command that ends with an error is started again, as an operator would;
how often is printed. Without --job no engine runs: its rows are made by hand, everything from the plan to the pull is the real
thing. With --job two nights go through jobs/refresh.py with a Ray of their own and the engine of a small random model; the run that
they are compared with does its shards in this process.
"""

import argparse
import http.client
import logging
import random
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from support.kills.checks import texts
from support.kills.commands import Command
from support.kills.kill import as_toml
from support.kills.scene import CAMPAIGN as KILLED
from support.kills.scene import Scene, environment_of, start_s3
from support.runs import CAMPAIGN, begin, commit_plan, do_shards, pair_ids

from adgen.creatives import layout
from adgen.creatives.cleanup import clean_up
from adgen.creatives.erasure import forget
from adgen.creatives.journal import Journal
from adgen.creatives.names import is_ours
from adgen.creatives.probe import probe
from adgen.creatives.publish import finish
from adgen.creatives.pull import pull
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs
from adgen.creatives.s3 import s3_client
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.errors import RunError

KINDS = ("503", "reset", "time-out", "lost answer")
PAIRS, DAY = 48, 86_400.0
READ_TIMEOUT_SECONDS = 1.0
UNEQUAL = {"generated_at", "seconds", "carried_from"}


class Faults:
    """Which request gets which fault; the same sequence for the same seed, dealt to requests as they come."""

    def __init__(self, seed: int, share: float):
        self._random, self._share, self._lock = random.Random(seed), share, Lock()
        self.dealt: Counter[str] = Counter()

    def next(self) -> str | None:
        with self._lock:
            kind = self._random.choice(KINDS) if self._random.random() < self._share else None
            self.dealt[kind or "none"] += 1
            return kind


def serve(upstream: tuple[str, int], faults: Faults) -> ThreadingHTTPServer:
    """A proxy on loopback that passes requests on to `upstream`, or not."""

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = faults.next()
            if kind in ("reset", "time-out"):
                time.sleep(1.5 * READ_TIMEOUT_SECONDS if kind == "time-out" else 0)
                return self.reset()
            if kind == "503":
                return self.answer(503, [("Content-Type", "application/xml")], b"<Error><Code>SlowDown</Code></Error>")
            upwards = http.client.HTTPConnection(*upstream, timeout=30)
            upwards.request(self.command, self.path, body, dict(self.headers))
            got = upwards.getresponse()
            data = got.read()
            upwards.close()
            if kind == "lost answer":
                return self.reset()
            return self.answer(got.status, got.getheaders(), data)

        def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            told = {name.lower(): value for name, value in headers}.get("content-length")
            self.send_header("Content-Length", told if told and self.command == "HEAD" else str(len(data)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else data)

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # of connections that we cut ourselves

    server = Server(("127.0.0.1", 0), Proxy)
    Thread(target=server.serve_forever, daemon=True).start()
    return server


def until_done(what: str, act: Callable[[], object], again: Counter[str]) -> None:
    """Start the command again while it ends with an error of ours; any other exception is a fault of adgen."""
    for _ in range(20):
        try:
            act()
            return
        except RunError as error:
            again[f"{what}: {type(error).__name__}"] += 1
    raise SystemExit(f"{what} did not complete in 20 tries")


def night(storage: Storage, number: int) -> None:
    """A refresh: probe, claim, clean-up, plan, shards, publish, with its heartbeat."""
    key = f"night {number}"
    done = [run for run in list_runs(storage, CAMPAIGN) if run.resume_key == key and run.pointer == "moved"]
    if done:
        return
    probe(storage)
    run = begin(storage, key)
    with run.beating(every_seconds=0.2, patience_seconds=60):
        if not run.resumed:
            clean_up(storage, CAMPAIGN, 2, now=time.time() + number * 3 * DAY)
        journal = Journal(storage, CAMPAIGN, run.run_id) if run.resumed else commit_plan(run, pair_ids(PAIRS), 6)
        if run.document.state == "RUNNING":
            do_shards(journal, f"look {number % 2}")
        finish(run)


def nights(storage: Storage, count: int, mirror: Path) -> Counter[str]:
    """All that happens to a store; how often a command was started again."""
    again: Counter[str] = Counter()
    for number in range(count):
        until_done("refresh", lambda number=number: night(storage, number), again)
    user = f"user-{pair_ids(1)[0][0]}"
    until_done("forget", lambda: forget(storage, b"key", [user], 0.0), again)
    until_done("clean-up", lambda: clean_up(storage, CAMPAIGN, 2, now=time.time() + 30 * DAY), again)
    until_done("clean-up", lambda: clean_up(storage, CAMPAIGN, 2, now=time.time() + 31 * DAY), again)
    until_done("pull", lambda: pull(storage, CAMPAIGN, mirror), again)
    return again


def state(storage: Storage, mirror: Path) -> dict[str, object]:
    """What must be the same with and without faults."""
    rows = [{name: value for name, value in row.items() if name not in UNEQUAL} for row in open_published(storage, CAMPAIGN).rows()]
    found = verify(storage, CAMPAIGN)
    return {
        "rows": rows,
        "problems": found.problems,
        "objects": sorted(entry.key for entry in storage.entries(layout.OBJECTS)),
        "pulled": sorted(path.name for path in (mirror / "objects").rglob("*.webp")),
        "probes": [entry.key for entry in storage.entries(layout.PROBES)],
        "foreign": [entry.key for entry in storage.entries("") if not is_ours(entry.key)],
    }


def run(access: S3Access, bucket: str, count: int, through: str | None) -> tuple[dict, Counter[str]]:
    s3_client(access).create_bucket(Bucket=bucket)
    mirror = Path(tempfile.mkdtemp(prefix="adgen-faults-"))
    try:
        faulty = access.model_copy(update={"endpoint_url": through}) if through else access
        again = nights(open_storage(f"s3://{bucket}/store", faulty), count, mirror)
        return state(open_storage(f"s3://{bucket}/store", access), mirror), again
    finally:
        shutil.rmtree(mirror, ignore_errors=True)


# -- through jobs/refresh.py ----------------------------------------------------------------------------------------------


def job_nights(scene: Scene, name: str, through: S3Access | None, folder: Path) -> tuple[dict, Counter[str]]:
    """Two versions of a shop refreshed into a store of that name, then what a night is followed by; through a proxy or directly."""
    store, again, user = scene.store("s3", name), Counter(), "shop0-u0000001"
    for version in "AC":
        if through is None:
            scene.refresh_here(store, version, "engine")
            continue
        settings = folder / f"{name}-{version}.toml"
        settings.touch(0o600)
        s3 = {"s3": scene.settings(store, version)["s3"] | {"endpoint_url": through.endpoint_url, "read_timeout_seconds": 5}}
        settings.write_text(as_toml(scene.settings(store, version, **s3)))
        give("refresh", [str(settings), "--campaign", KILLED, "--json"], through, folder, again)
    access = through or scene.access
    give("forget", ["forget", store, "--user", user], access, folder, again)
    for _ in range(2):
        give("clean-up", ["clean-up", store], access, folder, again)
    give("pull", ["pull", store, KILLED, str(folder / name)], access, folder, again)
    storage = scene.open(store)
    found = {
        "rows": scene.published_rows(store),
        "problems": verify(storage, KILLED).problems,
        "objects": sorted(entry.key for entry in storage.entries(layout.OBJECTS)),
        "pulled": sorted(path.name for path in (folder / name / "objects").rglob("*.webp")),
        "probes": [entry.key for entry in storage.entries(layout.PROBES)],
        "forgotten": [key for key, text in texts(storage) if user in text],
    }
    return found, again


def give(name: str, words: list[str], access: S3Access, folder: Path, again: Counter[str]) -> None:
    """A command until it succeeds; one that ends in a traceback is a fault of adgen."""
    for number in range(10):
        command = Command(name, words, "engine", environment_of(access), folder / f"{name}-{time.monotonic_ns()}.log")
        command.start()
        if command.wait(600) == 0:
            return
        if "Traceback" in command.said:
            raise SystemExit(f"{name}, try {number + 1}: {command.said}")
        again[f"{name}: {command.said.strip().splitlines()[-1][:200]}"] += 1
    raise SystemExit(f"{name} did not complete in 10 tries: {command.said}")


def through_the_job(seed: int, share: float) -> int:
    """Compare both; exit code 1 where they differ."""
    with tempfile.TemporaryDirectory(prefix="adgen-faults-") as name:
        scene = Scene(Path(name), start_s3()).draw()
        calm, _ = job_nights(scene, "calm", None, Path(name))
        host, _, port = scene.access.endpoint_url.removeprefix("http://").partition(":")
        faults, started = Faults(seed, share), time.monotonic()
        proxy = serve((host, int(port)), faults)
        through = scene.access.model_copy(update={"endpoint_url": f"http://127.0.0.1:{proxy.server_address[1]}"})
        found, again = job_nights(scene, "faulty", through, Path(name))
    return report(seed, faults, time.monotonic() - started, again, calm, found)


def report(seed: int, faults: Faults, seconds: float, again: Counter[str], calm: dict, found: dict) -> int:
    """Print what was dealt and what differs; exit code 1 where anything does."""
    different = [name for name in calm if calm[name] != found[name]]
    print(
        f"seed {seed}: {sum(faults.dealt.values())} requests, {dict(faults.dealt)}, {seconds:.0f} s; "
        f"started again: {dict(again) or 'nothing'}; {len(found['rows'])} rows; "
        + (f"DIFFERENT: {', '.join(different)}" if different else "equal to the run without faults")
    )
    return 1 if different or found["problems"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.2, help="of requests that get a fault")
    parser.add_argument("--nights", type=int, default=3)
    parser.add_argument("--job", action="store_true", help="through jobs/refresh.py")
    arguments = parser.parse_args()
    if arguments.job:
        return through_the_job(arguments.seed, arguments.share)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    address = server.get_host_and_port()
    access = S3Access(
        endpoint_url=f"http://{address[0]}:{address[1]}",
        region="us-east-1",
        access_key_id=SecretStr("test"),
        secret_access_key=SecretStr("test"),
        read_timeout_seconds=READ_TIMEOUT_SECONDS if arguments.share else 60,
    )
    calm, _ = run(access.model_copy(update={"read_timeout_seconds": 60.0}), "calm", arguments.nights, None)
    faults, started = Faults(arguments.seed, arguments.share), time.monotonic()
    proxy = serve(address, faults)
    found, again = run(access, "faulty", arguments.nights, f"http://127.0.0.1:{proxy.server_address[1]}")
    return report(arguments.seed, faults, time.monotonic() - started, again, calm, found)


if __name__ == "__main__":
    sys.exit(main())
