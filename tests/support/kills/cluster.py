"""The Ray that killed refreshes run on: it outlives them, and what is killed in it is started again."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

STAGES = ("MapWorker(", "_plan_bucket", "_Encode", "commit_carried")  # in the titles of workers that do a refresh's work


class Cluster:
    """A Ray of this machine at `address`, whose processes descend from `pid`."""

    def __init__(self, address: str, pid: int):
        self.address, self.pid = address, pid

    def workers(self, what: str) -> list[psutil.Process]:
        """Workers (and no one else's) that are an `actor` or a `rank` now, by title and age."""
        names = ("_Rank",) if what == "rank" else STAGES
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if title.startswith("ray::") and any(name in title for name in names):
                    found.append((title, process.create_time(), process))
        return [process for _, _, process in sorted(found, key=lambda each: each[:2])]

    def kill_worker(self, what: str, which: float) -> str:
        """SIGKILL one, `which` (0 to 1) of those that are there; its title, or "" where there is none."""
        there = self.workers(what)
        if not there:
            return ""
        chosen = there[int(which * len(there))]
        with suppress(psutil.NoSuchProcess):
            title = " ".join(chosen.cmdline()).strip()
            chosen.send_signal(signal.SIGKILL)
            return title
        return ""


class TwoNodes(Cluster):
    """Two nodes of two slots, in processes of their own; the newest can be lost."""

    def __enter__(self) -> "TwoNodes":
        return self

    def __init__(self) -> None:
        script = str(Path(__file__).parents[1] / "ray_nodes.py")
        pipe = subprocess.PIPE
        even = {"RAY_worker_niceness": "0"}  # Ray's workers would starve beside commands
        words, quiet = [sys.executable, script, "2"], subprocess.DEVNULL
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=quiet, text=True, env=os.environ | even)
        super().__init__(self._process.stdout.readline().strip(), self._process.pid)

    def lose_node(self) -> str:
        """Kill the newest node; what ran there. "", and no kill, while it holds nothing of a run."""
        there = self._tell("kill busy")
        return f"node of {', '.join(there)}" if there else ""

    def add_node(self) -> None:
        """Start another one."""
        self._tell("add")

    def _tell(self, what: str) -> list[str]:
        print(what, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(60)
