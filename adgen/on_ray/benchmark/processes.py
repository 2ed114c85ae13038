"""Memory and CPU time of a job's processes, by what they do: the driver, each kind of Ray worker, Ray itself.

A thread samples this process and all that it started. Ray names its workers after their work, which tells the kinds
apart; a worker between two tasks counts as what it did last.
"""

import re
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Self

import psutil

RAY, IDLE = "Ray itself", "idle worker"
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

    def __init__(self, interval_seconds: float = 1.0):
        self.phase = "start"
        self.memory: dict[str, Memory] = defaultdict(Memory)
        self.cpu_by_kind: Counter[str] = Counter()
        self._interval = interval_seconds
        self._driver = psutil.Process()
        self._cpu: dict[tuple[int, float], tuple[float, float]] = {}
        self._kinds: dict[int, str] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self.cpu_by_kind.clear()  # what was used before is nobody's
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def cpu_seconds(self) -> tuple[float, float]:
        """(user, system) time so far of all processes that were ever seen."""
        self._sample()
        user, system = zip(*self._cpu.values(), strict=True)
        return sum(user), sum(system)

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
        who, kind = (process.pid, process.create_time()), self._kind(process)
        self.cpu_by_kind[kind] += times.user + times.system - sum(self._cpu.get(who, (0, 0)))
        self._cpu[who] = (times.user, times.system)
        peak = self.memory[kind]
        peak.rss = max(peak.rss, memory.rss)
        peak.own = max(peak.own, memory.rss - memory.shared)

    def _kind(self, process: psutil.Process) -> str:
        if process.pid == self._driver.pid:
            return f"driver, {self.phase}"  # whose work is another in each
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
    user_seconds: float
    """CPU time of all processes together, in their own code."""
    system_seconds: float
    """CPU time of all processes together, in the kernel: most of it the store's file system."""

    @property
    def cpu_seconds(self) -> float:
        """Both."""
        return self.user_seconds + self.system_seconds


class PhaseClock:
    """A job's progress display that measures the phases instead of showing them; `close` ends the last one."""

    def __init__(self, watch: ProcessWatch):
        self._watch = watch
        self._open: tuple[str, float, tuple[float, float]] | None = None
        self.phases: list[PhaseCost] = []

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins."""
        now, cpu = time.perf_counter(), self._watch.cpu_seconds()
        if self._open is not None:
            before, started, (user, system) = self._open
            self.phases.append(PhaseCost(before, now - started, cpu[0] - user, cpu[1] - system))
        self._open, self._watch.phase = (name, now, cpu), name

    def advance(self, amount: int, numbers: str = "") -> None:
        """Nothing to show."""

    def close(self) -> dict[str, PhaseCost]:
        """The phases by name."""
        self.phase("end")
        return {phase.name: phase for phase in self.phases}
