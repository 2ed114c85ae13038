"""The refresh of a campaign, on one screen: plan, generate shard by shard, publish.

Resume is this same function: a run with the same key and a committed plan is taken over, and only shards without a
journal part are done (docs/design.md 3.5).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from adgen.creatives.cleanup import clean_up
from adgen.creatives.erasure import finish_erasures, pending_elsewhere
from adgen.creatives.publish import finish
from adgen.creatives.rekeying import rewrite_old_manifests
from adgen.creatives.runs import Run, start_or_resume
from adgen.on_ray.cluster import cluster_device
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.failures import FailureWatch, ended_on_failure
from adgen.on_ray.refresh.gate import check_gate_settings, why_held
from adgen.on_ray.refresh.planning import Prepared, catalog_of, make_plan, prepare, run_details
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.refresh.shards import run_wave, waves
from adgen.on_ray.refresh.slot_plan import plan_slots
from adgen.on_ray.refresh.speed import RunSpeed
from adgen.on_ray.refresh.stages import STAGES, Stages
from adgen.progress import Progress
from adgen.shop.catalog.cleanup import remove_unnamed_catalogs
from adgen.shop.inputs.tables import Inputs

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a refresh did, as `--json` prints it."""

    run_id: str
    published: bool = False
    state: str = "RUNNING"
    pairs: int = 0
    creatives: int = 0
    """Rows of the manifest: all variants of all pairs. The counts below are of them."""
    generated: int = 0
    carried: int = 0
    rejected: int = 0
    failed: int = 0
    stale: int = 0
    drawn_again: int = 0
    """Rows of the run, carried ones too, whose title or picture took more than one attempt."""
    templates: int = 0
    """Ok rows whose title no attempt of the model passed: it is by template."""
    plain_backgrounds: int = 0
    """Ok rows with a plain background in the place of a painted one."""
    duplicates: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows of the inputs, by table and column, whose id is not UTF-8: nothing could be made of them."""
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    engine_calls: int = 0
    engine_busy: float | None = None
    """Share of the time from each engine's first shard to its last in which it worked; the rest it waited for shards."""
    share_of_roofline: float | None = None
    """The least time that its pictures can take on the engines' machines (bytes, operations), as a share of what they took; null
    where no engine worked long enough to be compared."""
    share_of_floor: float | None = None
    """The old name of share_of_roofline; goes away with 0.3.0."""
    device_seconds_per_1000: float | None = None
    """Of engines' devices, for 1,000 creatives that are ok; the time of rejected ones is in it."""
    cost_per_1000: float | None = None
    """The same engines' hours times forecast.price_an_hour."""
    kernels_off: list[str] = field(default_factory=list)
    """Kernels that engines switched off, since they differed from the plain path on their GPU."""
    note: str = ""

    @classmethod
    def of(cls, run: Run, speed: RunSpeed, published: bool, seconds: float, note: str) -> "Summary":
        """Of a run that has ended; `speed` is of what this driver's engines made."""
        counts = run.document.counts
        return cls(
            run_id=run.run_id,
            published=published,
            state=run.document.state,
            pairs=counts.rows if counts.pairs is None else counts.pairs,
            creatives=counts.rows,
            generated=counts.generated - counts.failed,  # run.json counts failed rows as generated
            carried=counts.carried,
            rejected=counts.rejected,
            failed=counts.failed,
            stale=counts.stale,
            drawn_again=counts.drawn_again,
            templates=counts.templates,
            plain_backgrounds=counts.plain_backgrounds,
            duplicates=run.document.duplicates,
            left_out=run.document.left_out,
            reasons=counts.reasons,
            seconds=round(seconds, 1),
            engine_calls=speed.pictures,
            **speed.report(),
            kernels_off=sorted(speed.kernels_off),
            note=note,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def refresh(settings: RefreshSettings, progress: Progress, stages: Stages = STAGES, inputs: Inputs | None = None) -> Summary:
    """Refresh the campaign that `settings` name, from `inputs` where they are opened already. Ray must be connected. RunError
    (of any kind) says why it stopped."""
    started = time.time()
    prepared = prepare(settings, inputs)
    settings, storage = prepared.settings, prepared.storage
    cluster_device(settings.device)  # before anything is written
    check_gate_settings(settings.gate)
    key = prepared.keys.campaign_key
    notes = [_finish_earlier("erasure", lambda: finish_erasures(storage, key))]
    notes += [_waiting_for(other, count) for other, count in sorted(pending_elsewhere(storage, key).items())]
    names = {"resume_key": prepared.resume_key, "formerly": prepared.former_resume_key}
    run = start_or_resume(storage, settings.campaign, **names, **run_details(prepared))
    speed, held = RunSpeed(settings), ""
    with run.beating(), ended_on_failure(run):
        if not run.resumed:
            if keep := settings.clean_up.keep_runs:
                progress.phase("clean up")
                notes.append(_finish_earlier("clean-up", lambda: clean_up(storage, settings.campaign, keep)))
            progress.phase("plan")
            make_plan(prepared, run)
        if run.document.state == "RUNNING":
            run_shards(prepared, run, speed, progress, stages)
            held = why_held(settings, run, prepared.inputs, progress)
        progress.phase("publish")
        partial = settings.plan.limit is not None
        forced = settings.publish_partial
        least = 0.0 if settings.publish_anyway else settings.failures.min_ok_share
        pointer = finish(
            run, partial=partial, publish_partial=forced, held=held, tombstones=prepared.tombstones, min_ok_share=least
        )
        held = run.document.note if run.document.state == "HELD" else held
    rewrite = "writing the fingerprints of earlier runs again"
    notes.append(_finish_earlier(rewrite, lambda: rewrite_old_manifests(storage, settings.campaign, key)))
    if settings.clean_up.keep_runs:
        notes.append(_finish_earlier("clean-up of catalogs", lambda: remove_unnamed_catalogs(storage)))
    return Summary.of(run, speed, pointer is not None, time.time() - started, "; ".join(filter(None, [held, *notes])))


def _waiting_for(key_id: str, count: int) -> str:
    unfinished = f"{count} erasures under campaign key {key_id} are" if count > 1 else f"1 erasure under campaign key {key_id} is"
    return f"{unfinished} not finished: refresh a campaign of that key, or run `adgen forget` with it"


def _finish_earlier(what: str, act: Callable[[], object]) -> str:
    """Do what an earlier refresh left; what went wrong, if anything did. It never stops this one: the next tries again."""
    try:
        act()
        return ""
    except Exception as error:
        log.warning("%s failed", what, exc_info=error)
        return f"{what} failed, and is tried again by the next refresh: {error}"


def run_shards(prepared: Prepared, run: Run, speed: RunSpeed, progress: Progress, stages: Stages) -> None:
    """Do every shard that has no journal part; `speed` counts what engines generate."""
    settings, journal = prepared.settings, prepared.journal(run.run_id)
    plan = journal.read_plan()
    unfinished = journal.unfinished(plan)
    progress.phase("generate", sum(part.rows for part in unfinished))
    device = cluster_device(settings.device)
    if run.document.num_slots is None and any(part.kind == "generate" for part in unfinished):
        run.update(num_slots=plan_slots(settings, prepared.model, device))
    engine = settings.engine.model_copy(update={"num_slots": run.document.num_slots})
    placed = settings.model_copy(update={"device": device, "engine": engine})
    identity = run.run_id, prepared.model_digest, prepared.settings_digest, prepared.keys.campaign_key
    untrained = bool(prepared.model.facts.having("untrained"))
    context = Context(placed, *identity, prepared.model.config.history_items, untrained)
    carried = sum(part.rows for part in plan.parts if part.kind == "carry")
    watch, catalog = FailureWatch(settings.failures, carried), catalog_of(prepared, run)
    for wave in waves(unfinished, settings.cluster.shards_per_wave):
        for done in run_wave(context, wave, catalog, stages):
            run.check()
            progress.advance(done["rows"])
            watch.count(done)
            speed.count(done)
