"""The commands that are killed, each in a process of its own: forked from a server that has imported what they need, so that a
command costs what it does and not ten seconds of imports."""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from adgen.creatives.storage import Storage

ROOT = Path(__file__).parents[3]
ACTS = ("get", "head", "create", "put", "delete", "swap", "entries", "children", "drop")
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["support.kills.commands", "adgen.on_ray.refresh.job", "adgen.cli", "torch", "transformers", "deepspeed"]
)


@dataclass
class Command:
    """One command of a crew: `refresh`, or one of `adgen`."""

    name: str
    words: list[str]
    engine: str = "painter"
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    log: Path = Path()
    dies_at: float = 0.0
    """The act on the store at which it kills itself, after it if the number has a fraction; 0: it lives."""
    process: multiprocessing.Process | None = None
    started: float = 0.0

    def start(self) -> None:
        """Run it."""
        self.started = time.monotonic()
        self.process = _forks.Process(target=_run, args=(self,), daemon=True)
        self.process.start()

    def __getstate__(self) -> dict:
        return vars(self) | {"process": None}

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def kill(self) -> bool:
        """SIGKILL; whether it still ran."""
        if not self.is_running:
            return False
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None while it runs after that time."""
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def said(self) -> str:
        """All that it wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def acts(self) -> int:
        """How often it asked the store, where it ended by itself."""
        counted = self.log.with_suffix(".acts")
        return int(counted.read_text()) if counted.exists() else 0


def _run(command: Command) -> None:
    log = os.open(command.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(command.environment)
    counter = _Counter(command.dies_at)
    counter.watch(command.name)
    code = 1
    try:
        code = _main(command)
    finally:
        command.log.with_suffix(".acts").write_text(str(counter.acts))
    sys.stdout.flush()
    os._exit(code)  # without Ray's and torch's good-byes, which take a second


def _main(command: Command) -> int:
    if command.name != "refresh":
        from adgen.cli import main

        return main(command.words)
    from adgen.on_ray.refresh import job
    from support.kills.stages import STAGES

    sys.path.insert(0, str(ROOT / "jobs"))
    script = importlib.import_module("refresh")
    script.refresh = partial(job.refresh, stages=STAGES[command.engine])
    return script.main(command.words)


class _Counter:
    """Counts what this process asks of the store, and ends it at the given act."""

    def __init__(self, dies_at: float):
        self.acts, self._dies_at, self._lock = 0, dies_at, threading.Lock()

    def watch(self, name: str) -> None:
        """Every act of every storage of this process passes here from now on."""
        from adgen.creatives.folder import FolderStorage
        from adgen.creatives.s3 import S3Storage

        for kind in (FolderStorage, S3Storage):
            for act in ACTS:
                setattr(kind, act, self._counted(getattr(kind, act)))

    def _counted(self, act):
        def counted(storage: Storage, *arguments, **options):
            with self._lock:
                self.acts += 1
                number = self.acts
            if number == self._dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            result = act(storage, *arguments, **options)
            if number == int(self._dies_at) and self._dies_at != number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted
