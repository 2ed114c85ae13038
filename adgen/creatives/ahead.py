"""Work of threads whose results are taken in order, with only some of it done ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")


def map_ahead(act: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` by threads, in order; at most twice as many items as threads are begun and not taken. An error of `act` is raised in
    its item's place, and nothing new begins then."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(act, item))
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
