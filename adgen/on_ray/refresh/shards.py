"""Shards on Ray Data: look-up, engines, finish and commit, a bounded number of shards at a time."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from adgen.creatives.documents import PlanPart
from adgen.on_ray.cluster import num_engines, slot_resources
from adgen.on_ray.refresh.commit import commit_carried
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.ranks import STAGE_CPUS, GenerateTogether, remove_groups
from adgen.on_ray.refresh.stages import Stages
from adgen.on_ray.rows import raise_row_error
from adgen.shop.catalog.catalog import Catalog

SHARDS_AT_AN_ENGINE = 3
"""One that is generated, one that is ready for the engine or on its way out, one in the node's memory."""


def run_wave(context: Context, wave: Sequence[PlanPart], catalog: Catalog, stages: Stages) -> Iterator[dict[str, Any]]:
    """One dataset execution: yields each shard's counts as it is committed."""
    carried = [commit_carried_remotely.remote(context, part) for part in wave if part.kind == "carry"]
    fresh = [part.model_dump() for part in wave if part.kind == "generate"]
    if fresh:
        try:
            yield from map(raise_row_error, shards_dataset(context, fresh, catalog, stages).iter_rows())
        finally:
            remove_groups(context.run_id)
    for reference in carried:
        yield ray.get(reference)


def shards_dataset(context: Context, rows: list[dict[str, Any]], catalog: Catalog, stages: Stages) -> ray.data.Dataset:
    """Shards -> look-up -> engines -> finish, upload and commit. A row is a shard, a block is a row."""
    data = DataContext.get_current()
    data.enable_progress_bars = False
    # What a worker raises is a RunError (rows never raise): retrying it would only repeat it.
    data.actor_task_retry_on_errors = False
    device, ranks = context.settings.device, context.settings.engine.tensor_parallel
    engines = min(len(rows), num_engines(context.settings.cluster, device, ranks))
    small = ActorPoolStrategy(min_size=1, max_size=engines)
    slot = slot_resources(device, ranks)
    # What groups reserve for themselves, Ray Data must not take for more look-ups.
    reserved = min(engines * ranks * slot["CPU"], ray.cluster_resources().get("CPU", 0) / 2) if ranks > 1 else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what Ray offers instead reserves by label, not by number
        data.execution_options.exclude_resources = ExecutionResources(cpu=reserved)
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(stages.look_up, fn_constructor_args=(context, catalog), compute=small, num_cpus=0.25)
        .map(
            stages.generate if ranks == 1 else GenerateTogether,
            fn_constructor_args=(context,),
            compute=engine_pool(engines, ranks),
            num_cpus=slot["CPU"] if ranks == 1 else STAGE_CPUS,
            num_gpus=slot.get("GPU", 0) if ranks == 1 else 0,
        )
        .map(stages.finish, fn_constructor_args=(context,), compute=small, num_cpus=0.25)
    )


def engine_pool(engines: int, ranks: int) -> ActorPoolStrategy:
    """One call of an engine's actor works, another prepares and puts away; a group of ranks is asked one thing at a time."""
    calls = 2 if ranks == 1 else 1
    return ActorPoolStrategy(
        size=engines,
        max_tasks_in_flight_per_actor=SHARDS_AT_AN_ENGINE,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=calls > 1,
    )


@ray.remote(num_cpus=0.5)
def commit_carried_remotely(context: Context, part: PlanPart) -> dict[str, Any]:
    """`commit_carried` on some node."""
    return commit_carried(context, part)


def waves(parts: Sequence[PlanPart], size: int) -> Iterator[Sequence[PlanPart]]:
    return (parts[start : start + size] for start in range(0, len(parts), size))
