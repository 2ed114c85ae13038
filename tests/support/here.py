"""Refreshes, evaluations and proofs in this process: the same stages, one row after another, and no Ray.

For tests of what comes out, not of how a cluster makes it: a worker of Ray takes seconds to start.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import ray
import ray.data

from adgen.creatives.documents import PlanPart
from adgen.on_ray import cluster
from adgen.on_ray.proof import style_classifier
from adgen.on_ray.refresh import job, planning
from adgen.on_ray.refresh.commit import commit_carried
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.stages import Stages
from adgen.on_ray.rows import Row, raise_row_error
from adgen.shop.catalog.catalog import Catalog
from adgen.shop.synthetic.style_pictures import draw_style_pictures


@contextmanager
def without_ray() -> Iterator[None]:
    """While it lasts, jobs work here and connect to no cluster."""
    with ExitStack() as stack:
        for place, name, value in (
            (planning, "map_buckets", map),
            (planning, "catalog_encoders", _Encoders),
            (job, "run_wave", _run_wave),
            (cluster, "connected", _connected),
            (ray, "cluster_resources", lambda: {"CPU": 2.0}),
            (ray, "nodes", list),
            (ray, "get", lambda made: made),
            (style_classifier, "_draw", SimpleNamespace(remote=draw_style_pictures)),
            (ray.data, "from_items", lambda rows, **_: _Dataset(rows)),
        ):
            stack.enter_context(patch.object(place, name, value))
        yield


@contextmanager
def _connected(*_: Any, **__: Any) -> Iterator[None]:
    yield


class _Encoders:
    """In the place of `catalog_encoders`."""

    def __init__(self, device: str) -> None:
        pass

    def __enter__(self) -> Callable[[Callable, Iterable], Iterator]:
        return map

    def __exit__(self, *_: Any) -> None:
        pass


class _Dataset:
    """In the place of Ray Data's: rows, and what they pass through."""

    def __init__(self, rows: Iterable[Row]):
        self._rows = rows

    def map(self, stage: type, fn_constructor_args: tuple = (), **_: Any) -> "_Dataset":
        return _Dataset(map(stage(*fn_constructor_args), self._rows))

    def iter_rows(self) -> Iterator[Row]:
        return iter(self._rows)


def _run_wave(context: Context, wave: Sequence[PlanPart], catalog: Catalog, stages: Stages) -> Iterator[Row]:
    assert context.settings.engine.tensor_parallel == 1, "ranks need Ray"
    look_up, generate, finish = stages.look_up(context, catalog), stages.generate(context), stages.finish(context)
    for part in wave:
        if part.kind == "carry":
            yield commit_carried(context, part)
        else:
            yield raise_row_error(finish(generate(look_up(part.model_dump()))))
