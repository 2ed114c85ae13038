"""The refresh of a campaign, on one screen: plan, generate shard by shard, publish.

Resume is this same function: a run with the same key and a committed plan is taken over, and only shards without a
journal part are done (DESIGN section 5).
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

from adgen.creatives.cleanup import clean_up
from adgen.creatives.documents import PlanPart
from adgen.creatives.erasure import finish_erasures
from adgen.creatives.journal import Journal
from adgen.creatives.probe import probe
from adgen.creatives.publish import finish
from adgen.creatives.runs import Run, start_or_resume
from adgen.creatives.storage import Storage, open_storage
from adgen.errors import AdgenError, EngineLost, OwnedElsewhere, RunError, StoreError
from adgen.on_ray.cluster import cluster_device, num_engines, slot_resources
from adgen.on_ray.gate import check_gate_settings, why_held
from adgen.on_ray.planning import Planned, catalog_of, make_plan, prepare, run_details
from adgen.on_ray.progress import Progress
from adgen.on_ray.ranks import STAGE_CPUS, GenerateTogether, remove_groups
from adgen.on_ray.row_errors import raise_told
from adgen.on_ray.settings import FailureSettings, RefreshSettings
from adgen.on_ray.slot_plan import plan_slots
from adgen.on_ray.speed import RunSpeed
from adgen.on_ray.stages import STAGES, Context, Stages, commit_carried
from adgen.shop.catalog import Catalog
from adgen.shop.tables import Inputs

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a refresh did, as `--json` prints it."""

    run_id: str
    published: bool = False
    state: str = "RUNNING"
    pairs: int = 0
    generated: int = 0
    carried: int = 0
    rejected: int = 0
    failed: int = 0
    stale: int = 0
    duplicates: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    engine_calls: int = 0
    share_of_floor: float | None = None
    """What its pictures must take on the engines' machines (bytes, operations), as a share of what they took."""
    device_seconds_per_1000: float | None = None
    """Of engines' devices, for 1,000 creatives."""
    cost_per_1000: float | None = None
    """The same times forecast.price_an_hour."""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def refresh(settings: RefreshSettings, progress: Progress, stages: Stages = STAGES, inputs: Inputs | None = None) -> Summary:
    """Refresh the campaign that `settings` name, from `inputs` where they are opened already. Ray must be connected. RunError
    (of any kind) says why it stopped."""
    started = time.time()
    storage = open_storage(settings.store, settings.s3)
    probe(storage)
    planned = prepare(settings, inputs)
    check_gate_settings(settings.gate)
    notes = [_finish_earlier("erasure", lambda: finish_erasures(storage, planned.keys.campaign_key))]
    run = start_or_resume(storage, settings.campaign, planned.resume_key, **run_details(settings, planned))
    summary = Summary(run.run_id)
    held = ""
    with run.beating(), _ended_on_failure(run):
        if not run.resumed:
            if keep := settings.clean_up.keep_runs:
                progress.phase("clean up")
                notes.append(_finish_earlier("clean-up", lambda: clean_up(storage, settings.campaign, keep)))
            progress.phase("plan")
            make_plan(settings, storage, run, planned)
        if run.document.state == "RUNNING":
            speed = _work_off(settings, storage, run, planned, progress, stages)
            summary.engine_calls = speed.pictures
            for name, value in speed.report(settings).items():
                setattr(summary, name, value)
            held = why_held(settings, run, planned.inputs, progress)
        progress.phase("publish")
        partial = settings.plan.limit is not None
        pointer = finish(run, partial=partial, publish_partial=settings.publish_partial, held=held)
    counts = run.document.counts
    summary.published, summary.state = pointer is not None, run.document.state
    for name in ("generated", "carried", "rejected", "failed", "stale", "reasons"):
        setattr(summary, name, getattr(counts, name))
    summary.pairs, summary.duplicates = counts.rows, run.document.duplicates
    summary.generated -= summary.failed  # the manifest's count is of rows made tonight, failed ones too
    summary.seconds = round(time.time() - started, 1)
    summary.note = "; ".join(filter(None, [held, *notes]))
    return summary


def _finish_earlier(what: str, act: Callable[[], object]) -> str:
    """Do what an earlier refresh left; what went wrong, if anything did. It never stops this one: the next tries again."""
    try:
        act()
        return ""
    except Exception as error:
        log.warning("%s failed", what, exc_info=error)
        return f"{what} failed, and is tried again by the next refresh: {error}"


def _work_off(
    settings: RefreshSettings, storage: Storage, run: Run, planned: Planned, progress: Progress, stages: Stages
) -> RunSpeed:
    """Do every shard that has no journal part; what engines generated, and how fast."""
    journal = Journal(storage, settings.campaign, run.run_id)
    unfinished = journal.unfinished()
    progress.phase("generate", sum(part.rows for part in unfinished))
    device = cluster_device(settings.device)
    if run.document.num_slots is None and any(part.kind == "generate" for part in unfinished):
        run.update(num_slots=plan_slots(settings, device))
    engine = settings.engine.model_copy(update={"num_slots": run.document.num_slots})
    settings = settings.model_copy(update={"device": device, "engine": engine})
    context = Context(settings, settings.s3, run.run_id, planned.model_digest, planned.settings_digest)
    watch, speed = FailureWatch(settings.failures), RunSpeed()
    catalog = catalog_of(settings, storage, run, planned)
    for wave in _waves(unfinished, settings.cluster.shards_per_wave):
        for done in _run_wave(context, wave, catalog, stages):
            run.check()
            progress.advance(done["rows"])
            watch.count(done)
            speed.count(done)
    return speed


def _run_wave(context: Context, wave: Sequence[PlanPart], catalog: Catalog, stages: Stages) -> Iterator[dict[str, Any]]:
    """One dataset execution: yields each shard's counts as it is committed."""
    carried = [commit_carried_remotely.remote(context, part) for part in wave if part.kind == "carry"]
    fresh = [part.model_dump() for part in wave if part.kind == "generate"]
    if fresh:
        try:
            yield from map(raise_told, shards_dataset(context, fresh, catalog, stages).iter_rows())
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
    data.execution_options.exclude_resources = ExecutionResources(cpu=reserved)
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(stages.look_up, fn_constructor_args=(context, catalog), compute=small, num_cpus=0.25)
        .map(
            stages.generate if ranks == 1 else GenerateTogether,
            fn_constructor_args=(context,),
            compute=ActorPoolStrategy(size=engines),
            num_cpus=slot["CPU"] if ranks == 1 else STAGE_CPUS,
            num_gpus=slot.get("GPU", 0) if ranks == 1 else 0,
        )
        .map(stages.finish, fn_constructor_args=(context,), compute=small, num_cpus=0.25)
    )


@ray.remote(num_cpus=0.5)
def commit_carried_remotely(context: Context, part: PlanPart) -> dict[str, Any]:
    """`commit_carried` on some node."""
    return commit_carried(context, part)


class FailureWatch:
    """Stops a run that cannot become good: all of its first shard failing, or too large a share of all."""

    def __init__(self, settings: FailureSettings):
        self.settings = settings
        self.rows = self.failed = 0

    def count(self, done: dict[str, Any]) -> None:
        """Take a shard's counts; RunError when the run should stop."""
        first = self.rows == 0
        self.rows += done["rows"]
        self.failed += done["failed"]
        # One new pair that fails tonight is a row's matter; a whole shard that fails is the run's.
        if first and done["rows"] == done["failed"] > 1:
            raise RunError(f"all {done['rows']} pairs of the first shard failed; nothing is published (see `adgen report`)")
        share = self.failed / self.rows
        if self.rows >= self.settings.after_rows and share > self.settings.max_failed_share:
            raise RunError(
                f"{self.failed} of {self.rows} pairs failed, more than failures.max_failed_share "
                f"{self.settings.max_failed_share:.0%}; nothing is published"
            )


class _ended_on_failure:
    """A RunError ends the run as FAILED, unless it is the surroundings' failure (store, lost engines): that and anything
    else leaves the run to be resumed by the same command."""

    def __init__(self, run: Run):
        self.run = run

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        cause = getattr(error, "cause", None)  # what a worker raised, of which Ray made its own error
        if isinstance(cause, AdgenError):
            error = cause
        if isinstance(error, OwnedElsewhere) or error is None:
            return
        if isinstance(error, RunError) and not isinstance(error, (StoreError, EngineLost)):
            self.run.end("FAILED", str(error)[:500])
        elif self.run.document.unfinished:
            with suppress(StoreError):  # the heartbeat that stops tells the next driver as well, only later
                self.run.release(f"stopped by {type(error).__name__}")
        if error is cause:
            raise error


def _waves(parts: Sequence[PlanPart], size: int) -> Iterator[Sequence[PlanPart]]:
    return (parts[start : start + size] for start in range(0, len(parts), size))
