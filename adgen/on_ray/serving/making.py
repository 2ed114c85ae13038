"""An engine, the queue in front of it, and beside it the process that plans and finishes (preparing.py)."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from adgen.errors import RunError
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.request_queue import RequestQueue
from adgen.on_ray.refresh.generate import build_engine
from adgen.on_ray.refresh.planning import maker_digest
from adgen.on_ray.refresh.provenance import provenance
from adgen.on_ray.rows import Row
from adgen.on_ray.serving.api import CreativeRequest
from adgen.on_ray.serving.preparing import Preparation
from adgen.on_ray.serving.settings import ServeSettings
from adgen.on_ray.serving.shared_work import SharedWork

_THREADS = 4  # requests that are planned or finished at once: most of it waits for the store
_TRIES = 3


class CreativeMaker:
    """An engine with all that a request needs around it."""

    def __init__(self, settings: ServeSettings):
        """RunError (of any kind): store, inputs, keys or model cannot be used. Its second process starts beside this one, which
        it does not outlive; where it dies, another one does its work again."""
        self.settings = settings.refresh().with_whole_paths()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_concurrency": _THREADS, "max_restarts": -1, "max_task_retries": _TRIES - 1}
        self._preparation = ray.remote(Preparation).options(scheduling_strategy=here, **options).remote(settings)
        directory = ModelDirectory(self.settings.model)
        self.engine = build_engine(self.settings, directory)
        if ray.get(self._preparation.model_digest.remote()) != maker_digest(directory):
            raise RunError(f"{self.settings.model}: the model changed while the service started; start it again")
        self.queue = RequestQueue(self.engine.generate, lambda: self.engine.num_slots)
        self._shared = SharedWork()

    async def make(self, asked: CreativeRequest) -> list[Row]:
        """Served rows of the request's creatives, by variant. ServiceError. Cancelled, its rows leave the queue."""
        rows = await self.planned(asked)
        return await asyncio.gather(*(self._shared.do(row["fingerprint"], lambda row=row: self._one(row)) for row in rows))

    async def planned(self, asked: CreativeRequest) -> list[Row]:
        """As `Preparation.planned`."""
        return await _result(self._preparation.planned.remote(asked))

    async def follow(self) -> str | None:
        """As `Preparation.follow`."""
        return await _result(self._preparation.follow.remote())

    async def close(self) -> None:
        """Finish what waits, and end the second process."""
        await self.queue.close()
        await _result(self._preparation.close.remote())

    async def _one(self, row: Row) -> Row:
        if "request" not in row:
            return row
        result = await self.queue.ask(row.pop("request"))
        return await _result(self._preparation.finished.remote(row | provenance(result, self.settings), result))


async def _result(answer: Awaitable[Any]) -> Any:
    """What an actor answers, or the error that it raised itself."""
    try:
        return await answer
    except RayTaskError as error:
        raise error.cause from None
