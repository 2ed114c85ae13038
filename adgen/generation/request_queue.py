"""One engine, many waiters: an asyncio queue whose requests share the engine's batches.

The engine runs in one thread. While a batch runs, requests gather; the next batch takes the oldest, as many as there are slots. Who
goes away before its batch begins leaves the queue and takes no slot. Who goes away later is computed with its batch, which takes no
longer for it, and nobody waits for the result.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from adgen.errors import ModelError, RunError

Request = TypeVar("Request")
Result = TypeVar("Result")


class QueueClosed(RunError):
    """The queue takes no more requests: its process ends."""


@dataclass
class BatchCounts:
    """What the engine has done for its waiters so far."""

    batches: int = 0
    rows: int = 0
    """Of all batches."""
    slots: int = 0
    """Of all batches: rows / slots is the fill."""
    left: int = 0
    """Requests whose waiters went away before their batch began."""
    failed: int = 0
    seconds: float = 0.0
    """Of the engine."""


@dataclass
class _Waiting(Generic[Request, Result]):
    request: Request
    done: "asyncio.Future[Result]" = field(repr=False)


class RequestQueue(Generic[Request, Result]):
    """Requests in front of `run`, which makes a result of each of a batch, in a thread of its own."""

    def __init__(self, run: Callable[[list[Request]], Sequence[Result]], num_slots: Callable[[], int]):
        """num_slots: how many requests the next batch may have; an engine that ran out of memory has fewer."""
        self._run, self._num_slots = run, num_slots
        self._waiting: deque[_Waiting[Request, Result]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._loop: asyncio.Task[None] | None = None
        self._closed = False
        self.counts = BatchCounts()
        self.on_batch: Callable[[int, float], None] = lambda rows, seconds: None
        """Called after each batch with its rows and its seconds."""

    def __len__(self) -> int:
        """Requests that wait for a batch."""
        return sum(not each.done.done() for each in self._waiting)

    def ask(self, request: Request) -> Awaitable[Result]:
        """A place in the queue, taken at once; await it for the result. Cancel the awaiting task, or let its deadline pass, and the
        request leaves. QueueClosed; or what `run` raised for this request."""
        if self._closed:
            raise QueueClosed("this process takes no more requests")
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._work())
        return waiting.done

    async def close(self) -> None:
        """Take no more, finish what waits, and end the thread."""
        self._closed = True
        if self._loop is not None:
            await self._loop
        self._thread.shutdown()

    async def _work(self) -> None:
        """Batch after batch, until nobody waits."""
        while batch := self._next_batch():
            started = time.perf_counter()
            outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._outcomes, [b.request for b in batch])
            self._count(len(batch), time.perf_counter() - started)
            for waiting, outcome in zip(batch, outcomes, strict=True):
                self._answer(waiting, outcome)
            await asyncio.sleep(0)  # who got an answer and asks again joins the next batch

    def _next_batch(self) -> list[_Waiting[Request, Result]]:
        batch: list[_Waiting[Request, Result]] = []
        slots = self._num_slots()
        while self._waiting and len(batch) < slots:
            waiting = self._waiting.popleft()
            if waiting.done.done():
                self.counts.left += 1
            else:
                batch.append(waiting)
        return batch

    def _outcomes(self, requests: list[Request]) -> Sequence[Result | Exception]:
        """In the engine's thread: a result or an error of each. A request that the model refuses costs its neighbours nothing."""
        try:
            return self._run(requests)
        except ModelError as error:
            return [error] if len(requests) == 1 else [self._outcomes([each])[0] for each in requests]
        except Exception as error:
            return [error] * len(requests)

    def _count(self, rows: int, seconds: float) -> None:
        self.counts.batches += 1
        self.counts.rows += rows
        self.counts.slots += self._num_slots()
        self.counts.seconds += seconds
        self.on_batch(rows, seconds)

    def _answer(self, waiting: _Waiting[Request, Result], outcome: Result | Exception) -> None:
        failed = isinstance(outcome, Exception)
        self.counts.failed += failed
        if waiting.done.done():
            return
        if failed:
            waiting.done.set_exception(outcome)
        else:
            waiting.done.set_result(outcome)
