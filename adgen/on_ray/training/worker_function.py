"""Ray Train's worker function, and what it is told. Its controller imports this file; the worker alone imports torch."""

import ray

from adgen.errors import AdgenError
from adgen.on_ray.training.source import Job


def train(config: dict[str, Job]) -> None:
    """Ray Train's worker function. What no restart can cure goes to the board, here or where batches are made; the restarted
    workers then do nothing."""
    from adgen.on_ray.training.worker import Worker

    job = config["job"]
    if ray.get(job.board.read.remote())[1] is not None:
        return
    try:
        Worker(job).run()
    except Exception as error:
        if isinstance(error, AdgenError):
            ray.get(job.board.fail.remote(type(error).__name__, str(error)))
        elif ray.get(job.board.read.remote())[1] is None:
            raise  # a crash: the controller starts all again
        if job.source.settings.workers.num > 1:
            raise  # the others wait for this one: the controller ends them
