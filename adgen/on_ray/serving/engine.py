"""The deployment that makes creatives: one engine a replica, its requests in one queue."""

import asyncio
import copy
import logging
import time

from ray.serve.metrics import Counter, Gauge, Histogram

from adgen.errors import AdgenError
from adgen.on_ray.refresh.speed import shard_speed
from adgen.on_ray.rows import Row
from adgen.on_ray.serving.api import CreativeRequest, ServiceError
from adgen.on_ray.serving.making import CreativeMaker
from adgen.on_ray.serving.settings import ServeSettings

log = logging.getLogger("ray.serve.adgen")


class EngineReplica:
    """One engine. Its constructor loads the model: a replica that answers is ready."""

    def __init__(self, settings: ServeSettings):
        self.maker = CreativeMaker(settings)
        self.maker.queue.on_batch = self._count_batch
        self._timings = copy.copy(self.maker.engine.timings)
        self._waiting = Gauge("adgen_queue", description="requests that wait for a batch")
        self._fill = Gauge("adgen_batch_fill", description="rows of the last batch as a share of the slots")
        self._step = Gauge("adgen_step_ms", description="milliseconds of an image token of the last batch")
        self._roofline = Gauge("adgen_share_of_roofline", description="the least time of the last batch as a share of what it took")
        self._seconds = Histogram("adgen_batch_seconds", description="of a batch", boundaries=[0.1, 0.5, 1, 2, 5, 10, 30, 60])
        self._failed = Counter("adgen_failed", description="requests that got no creative, by reason", tag_keys=("reason",))
        self._follower: asyncio.Task | None = None

    async def make(self, asked: CreativeRequest, timeout_seconds: float) -> list[Row]:
        """Rows of the creatives. ServiceError; 504 past the deadline, and the rows have left the queue."""
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow())
        self._waiting.set(len(self.maker.queue))
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self.maker.make(asked)
        except TimeoutError:
            raise self._problem(504, "deadline", f"not made within {timeout_seconds:g} seconds") from None
        except ServiceError as error:
            raise self._problem(error.status, error.code, error.message) from None
        except AdgenError as error:
            log.error("a creative failed: %s", error)
            raise self._problem(503, type(error).__name__, "the creative cannot be made now; try again") from None

    async def ready(self) -> bool:
        """That the model is loaded."""
        return True

    async def __del__(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
        await self.maker.queue.close()

    def _problem(self, status: int, code: str, message: str) -> ServiceError:
        self._failed.inc(tags={"reason": code})
        return ServiceError(status, code, message)

    def _count_batch(self, rows: int, seconds: float) -> None:
        engine = self.maker.engine
        spent = engine.timings - self._timings
        self._timings = copy.copy(engine.timings)
        self._fill.set(rows / engine.num_slots)
        self._seconds.observe(seconds)
        if spent.picture_steps:
            self._step.set(1000 * spent.picture / spent.picture_steps)
        speed = shard_speed(engine, spent, rows)
        if speed["floor_seconds"] is not None and speed["engine_seconds"]:
            self._roofline.set(speed["floor_seconds"] / speed["engine_seconds"])

    async def _follow(self) -> None:
        """Look for a newly published run now and then; what goes wrong is tried again."""
        while True:
            await asyncio.sleep(self.maker.settings.served.follow_seconds)
            started = time.monotonic()
            try:
                if await asyncio.to_thread(self.maker.follow):
                    log.info("follows run %s, read in %.1f s", self.maker.shop.pointer, time.monotonic() - started)
            except AdgenError as error:
                log.warning("the inputs cannot be read again: %s", error)
