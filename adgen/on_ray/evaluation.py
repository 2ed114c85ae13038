"""Evaluations on one screen: score a run's rows as they come, then tell what they say together."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from adgen.creatives.journal import Journal
from adgen.creatives.reading import ManifestReader, open_published, open_run
from adgen.creatives.storage import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.comparison import compare
from adgen.evaluation.creative_scores import PICTURE_SCORES
from adgen.evaluation.report.page import write_page
from adgen.evaluation.stored_rows import ROWS, check_rows
from adgen.evaluation.summary import summarize
from adgen.on_ray.cluster import cluster_device
from adgen.on_ray.evaluation_settings import RunEvaluationSettings, ScoringSettings
from adgen.on_ray.progress import Progress
from adgen.on_ray.scoring import ScoringContext, score, whole_run
from adgen.shipped import shipped_encoder
from adgen.shop.tables import open_inputs


def evaluate_run(settings: RunEvaluationSettings, progress: Progress) -> dict[str, Any]:
    """Score every creative of a run; the record that summary.json holds. Ray must be connected. SettingsError: `out` is taken;
    ConsumerError: nothing is published; StoreError: the run's private part is not readable."""
    storage = open_storage(settings.store, settings.s3)
    reader = open_run(storage, settings.campaign, settings.run) if settings.run else open_published(storage, settings.campaign)
    out = settings.out or Path(f"evaluation-{settings.campaign}-{reader.run.run_id}")
    check_new(out)
    return score_run(settings, settings.store, reader, out, progress)


def score_run(settings: ScoringSettings, store: str, reader: ManifestReader, out: Path, progress: Progress) -> dict[str, Any]:
    """Rows, summary and report of a run into the folder `out`; the record."""
    started = time.time()
    if settings.against is not None:
        check_rows(settings.against)  # before any work
    context = scoring_context(settings, store, reader)
    write_rows(context, settings, Journal(reader.storage, context.campaign, context.run_id), out, progress)
    progress.phase("summarize")
    summary = summarize(out, settings.resamples, settings.seed)
    comparison = compare(out, settings.against, settings.resamples, settings.seed) if settings.against else None
    about = {
        "campaign": context.campaign,
        "run_id": context.run_id,
        "model_digest": reader.run.digests.get("model"),
        "encoder": str(context.encoder) if context.encoder else None,
        "settings": settings.model_dump(mode="json", exclude={"s3", "cluster"}),
        "not_measured": [] if context.encoder else [name for name in PICTURE_SCORES if name.startswith("pbs")],
    }
    record = about | summary.as_dict() | {"against": comparison and comparison.as_dict()}
    record["seconds"] = round(time.time() - started, 1)
    write_page(out / "report.html", record, summary, comparison, reader.storage)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")  # last: that it is there says that all is
    return record


def scoring_context(settings: ScoringSettings, store: str, reader: ManifestReader) -> ScoringContext:
    """What workers need to score a run."""
    encoder = settings.encoder or shipped_encoder()
    if encoder is not None and not encoder.exists():
        raise SettingsError(f"encoder: {encoder}: there is no such file or folder")
    return ScoringContext(
        store=store,
        access=settings.s3,
        campaign=reader.run.campaign,
        run_id=reader.run.run_id,
        inputs=open_inputs(settings.inputs, ["products"], optional=["references"]),
        encoder=encoder and encoder.resolve(),
        device=cluster_device(settings.device) if encoder else "cpu",
    )


def write_rows(context: ScoringContext, settings: ScoringSettings, journal: Journal, out: Path, progress: Progress) -> None:
    """A Parquet part a shard, as shards are scored."""
    items = whole_run(journal)
    progress.phase("score", journal.read_plan().rows)
    (out / ROWS).mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(score(context, items, settings.cluster)):
        pq.write_table(table, out / ROWS / f"{number:06d}.parquet", compression="zstd")
        progress.advance(table.num_rows)


def check_new(out: Path) -> None:
    """SettingsError where an evaluation, whole or not, lies there already: rows of two would be taken for one."""
    if (out / ROWS).exists() or (out / "summary.json").exists():
        raise SettingsError(f"out: {out}: an evaluation lies there; name another folder with --out, or remove it")
