"""The planner's `map` over a cluster: each bucket is a Ray task, plans come back in the buckets' order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from adgen.errors import AdgenError

# Of buckets and their plans, held by the cluster's object store at once: the planner reads no further ahead, so its own
# memory and that of the store do not grow with the campaign.
MOST_IN_FLIGHT = 64


def map_buckets(function: Callable[[Any], Any], buckets: Iterable[Any]) -> Iterator[Any]:
    """`map(function, buckets)`, a task of one CPU for each bucket, as many at once as there are CPUs (at most 64).

    `function` is pickled once; a catalog in it travels as its index, and each node maps the files into memory. A task whose
    worker or node dies is done again. An error of our own comes out as itself, not as Ray's.
    """
    shared = ray.put(function)
    at_once = max(1, min(MOST_IN_FLIGHT, int(ray.cluster_resources().get("CPU", 1))))
    waiting: deque[ray.ObjectRef] = deque()
    try:
        for bucket in buckets:
            if len(waiting) == at_once:
                yield _result(waiting.popleft())
            waiting.append(_plan_bucket.remote(shared, bucket))
        while waiting:
            yield _result(waiting.popleft())
    finally:  # a planner that has its `limit` of pairs asks for no more
        for task in waiting:
            ray.cancel(task)


@ray.remote(num_cpus=1)
def _plan_bucket(function: Callable[[Any], Any], bucket: Any) -> Any:
    return function(bucket)


def _result(task: ray.ObjectRef) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, AdgenError):
            raise error.cause from None
        raise
