"""Processes of the tests: Python in one of its own, which finds what the tests find; those below this one, by title."""

import multiprocessing
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

HERE, ROOT = Path(__file__).parents[1], Path(__file__).parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` with its environment changed; it has ended well."""
    paths = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done


def forks_with_deepspeed() -> multiprocessing.context.BaseContext:
    """Starts processes that have torch and DeepSpeed: forks of one that imported them once, which takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "deepspeed"])
    return context


def own_processes(title: str) -> list[psutil.Process]:
    """Our own Ray's workers (and no one else's), by what they say that they are doing."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended while we looked
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found
