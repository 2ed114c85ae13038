"""Work that several ask for is done once."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any


class SharedWork:
    """Work by name that is done once for all who ask for it meanwhile, and is cancelled when the last of them goes away."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task] = {}
        self._waiters: dict[asyncio.Task, int] = {}

    async def do(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of `work`, which is begun where nobody does it now."""
        task = self._tasks.get(name)
        if task is None:
            # In a context of its own: Serve cancels what was asked in the context of a request whose client hangs up.
            task = self._tasks[name] = asyncio.get_running_loop().create_task(work(), context=contextvars.Context())
            self._waiters[task] = 0
        self._waiters[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiters[task] -= 1
            if not self._waiters[task]:
                del self._waiters[task]
                if self._tasks.get(name) is task:
                    del self._tasks[name]
                task.cancel()
