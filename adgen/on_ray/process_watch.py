"""Memory and CPU time of a job's processes, by what they do: the driver, each kind of Ray worker, Ray itself.

A thread samples this process and all that it started. Ray names its workers after their work, which tells the kinds
apart; a worker between two tasks counts as what it did last.
"""

import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Self

import psutil

DRIVER, RAY, IDLE = "driver", "Ray itself", "idle worker"
_ACTOR_OF_DATA = re.compile(r"ray::MapWorker\(Map\((\w+)\)\)")
_WORKER = re.compile(r"ray::(\w+)")
_TASKS = {"_plan_bucket": "plan task", "_Encode": "catalog encoder", "commit_carried_remotely": "carry task"}


@dataclass
class Memory:
    """Of the largest process of a kind, in bytes at its peak."""

    rss: int = 0
    """Everything resident, the pages of Ray's object store and of mapped catalog files that it touched included."""
    own: int = 0
    """Without shared pages: what grows when something is kept."""


class ProcessWatch:
    """Samples while its block runs."""

    def __init__(self, interval_seconds: float = 0.25):
        self.memory: dict[str, Memory] = defaultdict(Memory)
        self._interval = interval_seconds
        self._driver = psutil.Process()
        self._cpu: dict[tuple[int, float], float] = {}
        self._kinds: dict[int, str] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def cpu_seconds(self) -> float:
        """User and system time so far of all processes that were ever seen."""
        self._sample()
        return sum(self._cpu.values())

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            for process in (self._driver, *self._driver.children(recursive=True)):
                try:
                    with process.oneshot():
                        self._take(process)
                except psutil.Error:  # it ended meanwhile
                    continue

    def _take(self, process: psutil.Process) -> None:
        times, memory = process.cpu_times(), process.memory_info()
        self._cpu[process.pid, process.create_time()] = times.user + times.system
        peak = self.memory[self._kind(process)]
        peak.rss = max(peak.rss, memory.rss)
        peak.own = max(peak.own, memory.rss - memory.shared)

    def _kind(self, process: psutil.Process) -> str:
        if process.pid == self._driver.pid:
            return DRIVER
        title = " ".join(process.cmdline()[:1])
        if found := _ACTOR_OF_DATA.match(title):
            kind = found[1]
        elif title.startswith("ray::IDLE"):
            return self._kinds.get(process.pid, IDLE)
        else:
            found = _WORKER.match(title)
            kind = _TASKS.get(found[1] if found else "", RAY)
        self._kinds[process.pid] = kind
        return kind


@dataclass(frozen=True)
class PhaseCost:
    """What one phase of a job took."""

    name: str
    seconds: float
    """By the clock on the wall."""
    cpu_seconds: float
    """Of all processes together."""


class PhaseClock:
    """A job's progress display that measures the phases instead of showing them; `close` ends the last one."""

    def __init__(self, watch: ProcessWatch):
        self._watch = watch
        self._open: tuple[str, float, float] | None = None
        self.phases: list[PhaseCost] = []

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins."""
        now, cpu = time.perf_counter(), self._watch.cpu_seconds()
        if self._open is not None:
            before, started, cpu_before = self._open
            self.phases.append(PhaseCost(before, now - started, cpu - cpu_before))
        self._open = (name, now, cpu)

    def advance(self, pairs: int) -> None:
        """Nothing to show."""

    def close(self) -> dict[str, PhaseCost]:
        """The phases by name."""
        self.phase("end")
        return {phase.name: phase for phase in self.phases}
