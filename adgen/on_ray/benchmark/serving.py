"""The service under load, on loopback: creatives a second beside what its engine does by itself, reads beside an empty deployment.

All is measured in turns, round after round, in one run: on a busy machine only ratios of neighbours mean something. The engine's
own rate is taken in the replica, of requests that are ready, while nobody asks the service.
"""

import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from ray import serve

from adgen.config import FinishSettings
from adgen.creatives.bearer_tokens import new_token
from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.errors import RunError
from adgen.on_ray.benchmark.refresh import PAIRS_PER_USER, NullFinish, NullGenerate
from adgen.on_ray.benchmark.settings import ServeBenchmarkSettings
from adgen.on_ray.cluster import connected
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.look_up import LookUp
from adgen.on_ray.refresh.stages import Stages
from adgen.on_ray.rows import Row
from adgen.on_ray.serving.api import CreativeRequest
from adgen.on_ray.serving.application import NAME, start, stop
from adgen.on_ray.serving.engine import EngineReplica
from adgen.on_ray.serving.settings import ServeSettings
from adgen.progress import Progress
from adgen.shipped import shipped_model
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.synthetic.synth import synthesize

CAMPAIGN = "benchmark"
PRODUCTS = 60


class MeasuredReplica(EngineReplica):
    """An engine of the service that also works by itself."""

    async def alone(self, asked: list[CreativeRequest], at_once: int) -> float:
        """Seconds of the engine for these, so many in a call; they are planned and looked up before the clock starts."""
        rows = [row for each in asked for row in await self.maker.planned(each)]
        requests = [row["request"] for row in rows]
        return await asyncio.to_thread(self._seconds_alone, requests, at_once)

    def _seconds_alone(self, requests: list, at_once: int) -> float:
        started = time.perf_counter()
        for first in range(0, len(requests), at_once):
            self.maker.engine.generate(requests[first : first + at_once])
        return time.perf_counter() - started

    async def counts(self) -> tuple[int, int, int]:
        """Slots of the engine; rows and slots of its batches so far."""
        return self.maker.engine.num_slots, self.maker.queue.counts.rows, self.maker.queue.counts.slots


@serve.deployment(name="empty", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Empty:
    """What Serve costs by itself."""

    async def __call__(self, request: Any) -> str:
        return "{}"


@dataclass
class Turns:
    """What one thing measured in each round."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each request of all rounds."""
    fills: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Median rate, latencies in milliseconds, batch fill."""
        found: dict[str, Any] = {"per_second": round(statistics.median(self.rates), 3)}
        if self.seconds:
            cuts = statistics.quantiles(self.seconds, n=100, method="inclusive") if len(self.seconds) > 1 else self.seconds * 99
            found |= {f"p{share}_ms": round(1000 * cuts[share - 1], 2) for share in (50, 95, 99)}
        if self.fills:
            found["batch_fill"] = round(statistics.median(self.fills), 3)
        return found

    def share_of(self, other: "Turns") -> float:
        """Median over rounds of the rate as a share of another's in the same round."""
        return round(statistics.median(own / its for own, its in zip(self.rates, other.rates, strict=True)), 3)


def run_benchmark(settings: ServeBenchmarkSettings, progress: Progress) -> dict[str, Any]:
    """Measure; the record. RunError: an answer was none, or the service could not start."""
    with tempfile.TemporaryDirectory(prefix="adgen-benchmark-") as name, connected(settings.cluster):
        progress.phase("publish")
        serving, token = _published_shop(Path(name), settings)
        with _serving(serving):
            return asyncio.run(_measured(settings, serving, token, progress))


def _published_shop(root: Path, settings: ServeBenchmarkSettings) -> tuple[ServeSettings, str]:
    """A shop whose pairs a refresh with a null generator published, and a token for it."""
    users = -(-settings.pairs // PAIRS_PER_USER)
    synthesize(root / "shop", users, PRODUCTS, num_pairs=settings.pairs, num_references=0, picture_side=128)
    token = new_token(root / "tokens.json", "benchmark", ["admin"])
    serving = ServeSettings(
        inputs=str(root / "shop"),
        store=str(root / "store"),
        campaign=CAMPAIGN,
        model=settings.model or shipped_model(),
        allow_untrained=True,
        http={"port": settings.port},
        auth={"tokens": root / "tokens.json", "per_minute": 10**9},
        load={"max_queued": 1000, "timeout_seconds": 600},
        finish=FinishSettings(width=settings.side, height=settings.side),
        engine=settings.engine,
        keys={"allow_development_keys": True},
    )
    summary = refresh(serving.refresh(), _Quiet(), Stages(LookUp, NullGenerate, NullFinish))
    if not summary.published:
        raise RunError(f"the benchmark's refresh is not published: {summary.as_dict()}")
    return serving, token


class _Quiet:
    def phase(self, name: str, total: int | None = None) -> None: ...
    def advance(self, amount: int, numbers: str = "") -> None: ...
    def print(self, *lines: str) -> None: ...


@contextmanager
def _serving(serving: ServeSettings) -> Iterator[None]:
    start(serving, replica=MeasuredReplica)
    try:
        serve.run(Empty.bind(), name="empty", route_prefix="/empty")
        yield
    finally:
        serve.delete("empty")
        stop()


async def _measured(settings: ServeBenchmarkSettings, serving: ServeSettings, token: str, progress: Progress) -> dict[str, Any]:
    url = f"http://127.0.0.1:{serving.http.port}"
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(url, headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        reads = await _Reads(session, serving, settings).measured(progress)
        making = await _Making(session, serving, settings).measured(progress)
    return {"making": making, "reads": reads}


class _Making:
    """Creatives on request beside the engine alone."""

    def __init__(self, session: aiohttp.ClientSession, serving: ServeSettings, settings: ServeBenchmarkSettings):
        self.session, self.settings = session, settings
        pairs = next(iter(open_inputs(serving.inputs)["pairs"].batches())).to_pylist()
        asked = dict.fromkeys(("response_format",), "url")
        self._asked = (pair | asked | {"seed": seed} for seed, pair in enumerate(itertools.cycle(pairs)))
        self._engine = serve.get_deployment_handle("engine", NAME)
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)

    async def measured(self, progress: Progress) -> dict[str, Any]:
        """The record."""
        slots, *_ = await self._engine.counts.remote()
        await self._serve(max(self.settings.clients), slots)  # the first requests load what later ones find
        self._turns.clear()
        progress.phase("make", self.settings.rounds)
        for _ in range(self.settings.rounds):
            await self._alone("engine, whole batches", self.settings.requests, slots)
            await self._alone("engine, one by one", -(-self.settings.requests // slots), 1)
            for clients in self.settings.clients:
                await self._serve(clients, -(-self.settings.requests * min(clients, slots) // slots))
            progress.advance(1)
        whole = self._turns["engine, whole batches"]
        found = {name: turns.as_dict() | {"share_of_engine": turns.share_of(whole)} for name, turns in self._turns.items()}
        return {"slots": slots} | found

    async def _alone(self, name: str, count: int, at_once: int) -> None:
        asked = [CreativeRequest(**each) for each in itertools.islice(self._asked, count)]
        self._turns[name].rates.append(count / await self._engine.alone.remote(asked, at_once))

    async def _serve(self, clients: int, count: int) -> None:
        turns = self._turns[f"{clients} clients"]
        _, rows, slots = await self._engine.counts.remote()
        seconds, each = await timed(self._make, itertools.islice(self._asked, count), clients)
        _, rows_after, slots_after = await self._engine.counts.remote()
        turns.rates.append(count / seconds)
        turns.seconds += each
        turns.fills.append((rows_after - rows) / (slots_after - slots))

    async def _make(self, asked: Row) -> None:
        async with self.session.post("/v1/creatives", json=asked) as answer:
            if answer.status != 200:
                raise RunError(f"a creative was answered with {answer.status}: {await answer.text()}")
            await answer.json()


class _Reads:
    """Published creatives beside an empty deployment: of users that were just asked for, and of new ones."""

    def __init__(self, session: aiohttp.ClientSession, serving: ServeSettings, settings: ServeBenchmarkSettings):
        self.session, self.settings = session, settings
        rows = list(open_published(open_storage(serving.store), CAMPAIGN).rows(["user_key", "product_id"]))
        random.Random(0).shuffle(rows)
        self._known, self._new = rows[:50], iter({row["user_key"]: row for row in rows[50:]}.values())
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)

    async def measured(self, progress: Progress) -> dict[str, Any]:
        """The record."""
        settings, known = self.settings, itertools.cycle(self._known)
        ways = {"empty": (self._empty, known), "read": (self._read, known), "read of a new user": (self._read, self._new)}
        numbers = 1, settings.read_clients
        await timed(self._read, itertools.islice(known, 100), settings.read_clients)
        await timed(self._empty, itertools.islice(known, 100), settings.read_clients)
        progress.phase("read", settings.rounds)
        for _ in range(settings.rounds):
            for clients, (name, (ask, rows)) in itertools.product(numbers, ways.items()):
                count = settings.reads if rows is known else settings.new_reads
                turns = self._turns[f"{name}, {clients} clients"]
                seconds, each = await timed(ask, itertools.islice(rows, count), clients)
                turns.rates.append(len(each) / seconds)
                turns.seconds += each
            progress.advance(1)
        return {name: turns.as_dict() | self._beside_empty(name) for name, turns in self._turns.items()}

    def _beside_empty(self, name: str) -> dict[str, float]:
        own, empty = self._turns[name], self._turns[f"empty, {name.rpartition(', ')[2]}"]
        later = statistics.median(own.seconds) - statistics.median(empty.seconds)
        return {"share_of_empty": own.share_of(empty), "p50_above_empty_ms": round(1000 * later, 2)}

    async def _read(self, row: Row) -> None:
        async with self.session.get(f"/v1/campaigns/{CAMPAIGN}/creatives", params=row) as answer:
            if answer.status != 200:
                raise RunError(f"a read was answered with {answer.status}: {await answer.text()}")
            await answer.read()

    async def _empty(self, row: Row) -> None:
        async with self.session.get("/empty", params=row) as answer:
            await answer.read()


async def timed(send: Callable[[Any], Awaitable[None]], asked: Iterator[Any], clients: int) -> tuple[float, list[float]]:
    """Seconds of all, and of each: so many clients, each of which sends its next when the last is answered."""
    each: list[float] = []

    async def client() -> None:
        for one in asked:
            started = time.perf_counter()
            await send(one)
            each.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started, each
