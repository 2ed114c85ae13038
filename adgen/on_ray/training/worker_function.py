"""Ray Train's worker function. Ray Train's controller imports this file, too; only the worker imports torch."""

import ray

from adgen.errors import AdgenError
from adgen.on_ray.training.source import Job


def train(config: dict[str, Job]) -> None:
    """Ray Train's worker function. An error that a restart cannot cure goes to the status actor, from here or from where batches
    are made; restarted workers then do nothing."""
    from adgen.on_ray.training.worker import Worker

    job = config["job"]
    if ray.get(job.status.read.remote())[1] is not None:
        return
    try:
        Worker(job).run()
    except Exception as error:
        if isinstance(error, AdgenError):
            ray.get(job.status.fail.remote(type(error).__name__, str(error)))
        elif ray.get(job.status.read.remote())[1] is None:
            raise  # a crash: the controller starts all again
        if job.source.settings.workers.num > 1:
            raise  # the others wait for this one: the controller ends them
