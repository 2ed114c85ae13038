"""The deployment that makes creatives: one engine a replica, its requests in one queue."""

import asyncio
import copy
import logging
import time

from ray.exceptions import RayActorError
from ray.serve.metrics import Gauge, Histogram

from adgen.errors import AdgenError
from adgen.on_ray.refresh.speed import machine_rates, shard_speed
from adgen.on_ray.rows import Row
from adgen.on_ray.serving.api import CreativeRequest, ServiceError
from adgen.on_ray.serving.making import CreativeMaker
from adgen.on_ray.serving.settings import ServeSettings

log = logging.getLogger("ray.serve.adgen")


class EngineReplica:
    """One engine. Its constructor loads the model: a replica that runs is ready."""

    def __init__(self, settings: ServeSettings):
        self.maker = CreativeMaker(settings)
        self._follow_seconds = settings.served.follow_seconds
        self.maker.queue.on_batch = self._count_batch
        engine = self.maker.engine
        machine_rates(engine.device.type, engine.dtype)  # now: later it would hold up a request
        self._timings = copy.copy(engine.timings)
        self._waiting = Gauge("adgen_queue", description="requests that wait for a batch")
        self._fill = Gauge("adgen_batch_fill", description="rows of the last batch as a share of the slots")
        self._step = Gauge("adgen_step_ms", description="milliseconds of an image token of the last batch")
        self._roofline = Gauge("adgen_share_of_roofline", description="the least time of the last batch as a share of what it took")
        self._seconds = Histogram("adgen_batch_seconds", description="of a batch", boundaries=[0.1, 0.5, 1, 2, 5, 10, 30, 60])
        self._follower: asyncio.Task | None = None

    async def make(self, asked: CreativeRequest, timeout_seconds: float) -> list[Row] | ServiceError:
        """Rows of the creatives, or why there are none: as a value, since Serve logs a page for each error that is raised. 504 past
        the deadline, and the rows have left the queue."""
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow())
        self._waiting.set(len(self.maker.queue))
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self.maker.make(asked)
        except TimeoutError:
            return ServiceError(504, "deadline", f"not made within {timeout_seconds:g} seconds")
        except ServiceError as error:
            return error
        except (AdgenError, RayActorError) as error:
            log.error("a creative failed: %s", error)
            return ServiceError(503, type(error).__name__, "the creative cannot be made now; try again")

    async def __del__(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
        await self.maker.close()

    def _count_batch(self, rows: int, seconds: float) -> None:
        engine = self.maker.engine
        spent = engine.timings - self._timings
        self._timings = copy.copy(engine.timings)
        self._fill.set(rows / engine.num_slots)
        self._seconds.observe(seconds)
        if spent.picture_steps:
            self._step.set(1000 * spent.picture / spent.picture_steps)
        speed = shard_speed(engine, spent, rows)
        if speed["roofline_seconds"] is not None and speed["engine_seconds"]:
            self._roofline.set(speed["roofline_seconds"] / speed["engine_seconds"])

    async def _follow(self) -> None:
        """Look for a newly published run now and then; what goes wrong is tried again."""
        while True:
            await asyncio.sleep(self._follow_seconds)
            started = time.monotonic()
            try:
                if (run_id := await self.maker.follow()) is not None:
                    log.info("follows run %s, read in %.1f s", run_id, time.monotonic() - started)
            except (AdgenError, RayActorError) as error:
                log.warning("the inputs cannot be read again: %s", error)
