"""Processes of the tests: Python in one of its own, which finds what the tests find; those below this one, by title."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def start_ranks(worker: Callable, count: int, *arguments: Any) -> None:
    """`worker(rank, *arguments)` in so many of them, to their end."""
    import torch.multiprocessing

    forks_with_deepspeed()
    given = worker, dict(os.environ), arguments
    torch.multiprocessing.start_processes(_in_environment, given, nprocs=count, start_method="forkserver")


def _in_environment(rank: int, worker: Callable, environment: dict[str, str], arguments: tuple) -> None:
    os.environ.update(environment)  # what is forked has that of the first start
    worker(rank, *arguments)


def own_processes(title: str) -> list[psutil.Process]:
    """Our own Ray's workers (and no one else's), by what they say that they are doing."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended while we looked
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found
