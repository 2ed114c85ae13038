"""The queue in front of one engine: who shares a batch, who leaves it, and what another's trouble costs."""

import asyncio
import threading

import pytest

from adgen.errors import ModelError
from adgen.generation.request_queue import QueueClosed, RequestQueue


class Engine:
    """Answers each request with itself; a batch waits until `open` is set."""

    def __init__(self, num_slots: int = 4):
        self.batches: list[list] = []
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Event()
        self.queue = RequestQueue(self.run, lambda: num_slots)

    def run(self, requests: list) -> list:
        self.batches.append(list(requests))
        self.begun.set()
        assert self.open.wait(30)
        if "refused" in requests:
            raise ModelError("too long")
        if "broken" in requests:
            raise ZeroDivisionError
        return requests

    async def busy(self) -> asyncio.Future:
        """A batch of one that runs until `open` is set."""
        self.open.clear()
        first = asyncio.ensure_future(self.queue.ask("first"))
        while not self.begun.is_set():
            await asyncio.sleep(0.001)
        return first


def test_requests_that_arrive_during_a_batch_share_the_next_one_oldest_first():
    async def ask() -> list:
        engine = Engine()
        first = await engine.busy()
        rest = [engine.queue.ask(number) for number in range(6)]
        engine.open.set()
        assert await asyncio.gather(first, *rest) == ["first", *range(6)]
        await engine.queue.close()
        assert engine.queue.counts.rows, engine.queue.counts.slots == (7, 12)
        return engine.batches

    assert asyncio.run(ask()) == [["first"], [0, 1, 2, 3], [4, 5]]


def test_half_of_the_clients_hanging_up_takes_no_slot_from_the_others():
    async def ask() -> tuple:
        engine = Engine()
        first = await engine.busy()
        waiting = [asyncio.ensure_future(engine.queue.ask(number)) for number in range(16)]
        for gone in waiting[::2]:
            gone.cancel()
        assert len(engine.queue) == 8
        engine.open.set()
        kept = await asyncio.gather(first, *waiting[1::2])
        return kept, engine.batches, engine.queue.counts.left

    kept, batches, left = asyncio.run(ask())
    assert kept == ["first", *range(1, 16, 2)]
    assert batches == [["first"], [1, 3, 5, 7], [9, 11, 13, 15]]  # 8 of 16 rows, in two full batches
    assert left == 8


def test_a_deadline_takes_the_request_out_of_the_queue():
    async def ask() -> list:
        engine = Engine()
        first = await engine.busy()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await engine.queue.ask("late")
        engine.open.set()
        await first
        assert await engine.queue.ask("next") == "next"
        return engine.batches

    assert asyncio.run(ask()) == [["first"], ["next"]]


def test_a_waiter_who_leaves_during_its_batch_harms_nobody():
    async def ask() -> None:
        engine = Engine()
        first = await engine.busy()
        first.cancel()
        engine.open.set()
        assert await engine.queue.ask("next") == "next"

    asyncio.run(ask())


@pytest.mark.parametrize(("bad", "error", "others"), [("refused", ModelError, True), ("broken", ZeroDivisionError, False)])
def test_an_error_reaches_those_it_is_about(bad, error, others):
    async def ask() -> list:
        engine = Engine()
        first = await engine.busy()
        asked = [engine.queue.ask(each) for each in ("good", bad, "fine")]
        engine.open.set()
        await first
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert await engine.queue.ask("after") == "after"
        return found

    good, failed, fine = asyncio.run(ask())
    assert isinstance(failed, error)
    assert ([good, fine] == ["good", "fine"]) == others


def test_a_closed_queue_finishes_what_waits_and_takes_no_more():
    async def ask() -> None:
        engine = Engine()
        waiting = [engine.queue.ask(number) for number in range(6)]
        await asyncio.sleep(0)
        await engine.queue.close()
        assert await asyncio.gather(*waiting) == list(range(6))
        with pytest.raises(QueueClosed):
            engine.queue.ask("more")

    asyncio.run(ask())
