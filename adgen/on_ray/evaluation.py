"""Evaluations on one screen: score a run's rows as they come, then tell what they say together."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from adgen.creatives.journal import Journal
from adgen.creatives.reading import ManifestReader, open_published, open_run
from adgen.creatives.storage import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.comparison import Comparison, compare
from adgen.evaluation.creative_scores import ROW_SCORES
from adgen.evaluation.earlier import RECORD, distances_beside, judged_otherwise, pictures_of, read_record
from adgen.evaluation.features import FEATURES
from adgen.evaluation.judges import SCORES_OF, Judge, JudgePaths, load_judges, told_judges
from adgen.evaluation.reference_counts import count_references
from adgen.evaluation.report.page import write_page
from adgen.evaluation.report.pictures import StoredPictures
from adgen.evaluation.stored_rows import ROWS
from adgen.evaluation.summary import Summary, summarize
from adgen.on_ray.cluster import cluster_device
from adgen.on_ray.evaluation_settings import RunEvaluationSettings, ScoringSettings
from adgen.on_ray.progress import Progress
from adgen.on_ray.row_places import read_strangers
from adgen.on_ray.scoring import ScoringContext, score, whole_run
from adgen.shop.tables import open_inputs


class ScoredRun(NamedTuple):
    """A run to be scored, and the store that it lies in."""

    store: str
    reader: ManifestReader

    @property
    def journal(self) -> Journal:
        """Of the run."""
        return Journal(self.reader.storage, self.reader.run.campaign, self.reader.run.run_id)


def evaluate_run(settings: RunEvaluationSettings, progress: Progress) -> dict[str, Any]:
    """Score every creative of a run; the record that summary.json holds. Ray must be connected. SettingsError: `out` is taken, or
    weights are missing; ConsumerError: nothing is published; StoreError: the run's private part is not readable."""
    storage = open_storage(settings.store, settings.s3)
    reader = open_run(storage, settings.campaign, settings.run) if settings.run else open_published(storage, settings.campaign)
    out = settings.out or Path(f"evaluation-{settings.campaign}-{reader.run.run_id}")
    check_new(out)
    return score_runs(settings, [ScoredRun(settings.store, reader)], out, progress)


def score_runs(
    settings: ScoringSettings, runs: Sequence[ScoredRun], out: Path, progress: Progress, has_unpasted: bool = False
) -> dict[str, Any]:
    """Rows, summary and report of runs into the folder `out`; the record. Several runs hold creatives of the same pairs, made with
    different seeds."""
    started = time.time()
    paths, judges, earlier = check_settings(settings)
    references = count_references(open_inputs(settings.inputs, [], optional=["references"]))
    contexts = [scoring_context(settings, paths, run, number, has_unpasted) for number, run in enumerate(runs)]
    write_rows(contexts, settings, runs, out, progress)
    progress.phase("summarize")
    summary = summarize(out, settings.resamples, settings.seed, judges["distance"].name if judges["distance"] else "")
    comparison = compared(settings, out, judges, summary, earlier) if earlier else None
    record = about(settings, runs, paths, judges) | summary.as_dict() | {"against": comparison and comparison.as_dict()}
    record |= {"references": references and references.as_dict(), "reference_problems": references.problems if references else {}}
    record["seconds"] = round(time.time() - started, 1)
    pictures = StoredPictures([run.reader.storage for run in runs], record["campaign"])
    write_page(out / "report.html", record, summary, pictures, comparison, pictures_of(earlier or {}, settings.s3))
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    (out / RECORD).write_text(text + "\n", encoding="utf-8")  # last: that it is there says that all is
    shutil.rmtree(out / FEATURES, ignore_errors=True)  # gigabytes of a large run, and all that they say is told
    return record


def check_settings(settings: ScoringSettings) -> tuple[JudgePaths, dict[str, Judge | None], dict[str, Any] | None]:
    """Before any work: who judges, what is told of them, and the record of the evaluation to compare with. SettingsError names
    what is missing."""
    earlier = read_record(settings.against) if settings.against else None
    paths = JudgePaths.of(settings)
    return paths, told_judges(paths, load_judges(paths, torch.device("cpu"))), earlier


def compared(
    settings: ScoringSettings, out: Path, judges: dict[str, Judge | None], summary: Summary, earlier: dict[str, Any]
) -> Comparison:
    """This evaluation beside the earlier one."""
    others = judged_otherwise(judges, earlier)
    found = compare(out, settings.against, settings.resamples, settings.seed, others)
    found.sets = distances_beside(judges, summary.sets, earlier)
    return found


def about(
    settings: ScoringSettings, runs: Sequence[ScoredRun], paths: JudgePaths, judges: dict[str, Judge | None]
) -> dict[str, Any]:
    """What was evaluated, and by whom."""
    first = runs[0].reader.run
    missing = tuple(start for kind, judge in judges.items() if judge is None for start in SCORES_OF[kind])
    return {
        "campaign": first.campaign,
        "run_id": first.run_id,
        "runs": [{"store": run.store, "run_id": run.reader.run.run_id} for run in runs],
        "model_digest": first.digests.get("model"),
        "encoder": str(paths.encoder) if paths.encoder else None,
        "judges": {kind: judge and judge._asdict() for kind, judge in judges.items()},
        "settings": settings.model_dump(mode="json", exclude={"s3", "cluster"}),
        "not_measured": [name for name in ROW_SCORES if name.startswith(missing)],
    }


def scoring_context(
    settings: ScoringSettings, paths: JudgePaths, run: ScoredRun, number: int, has_unpasted: bool
) -> ScoringContext:
    """What workers need to score the run of a seed."""
    return ScoringContext(
        store=run.store,
        access=settings.s3,
        campaign=run.reader.run.campaign,
        run_id=run.reader.run.run_id,
        inputs=open_inputs(settings.inputs, ["products"], optional=["references"]),
        judges=paths,
        device=cluster_device(settings.device) if paths.any else "cpu",
        strangers=read_strangers(run.journal) if paths.sees_backgrounds else (),
        first_variant=number,
        has_unpasted=has_unpasted,
    )


def write_rows(
    contexts: Sequence[ScoringContext], settings: ScoringSettings, runs: Sequence[ScoredRun], out: Path, progress: Progress
) -> None:
    """A Parquet part of rows a shard, and one of features, as shards are scored."""
    plans = [run.journal.read_plan() for run in runs]
    progress.phase("score", sum(plan.rows for plan in plans))
    for folder in (ROWS, FEATURES):
        (out / folder).mkdir(parents=True, exist_ok=True)
    first = 0
    for context, run, plan in zip(contexts, runs, plans, strict=True):
        for done in score(context, whole_run(run.journal), settings.cluster):
            name = f"{first + done.index:06d}.parquet"
            if done.features.num_rows:
                pq.write_table(done.features, out / FEATURES / name, compression="zstd")
            pq.write_table(done.rows, out / ROWS / name, compression="zstd")
            progress.advance(done.rows.num_rows)
        first += len(plan.parts)


def check_new(out: Path) -> None:
    """SettingsError where an evaluation, whole or not, lies there already: rows of two would be taken for one."""
    if (out / ROWS).exists() or (out / RECORD).exists():
        raise SettingsError(f"out: {out}: an evaluation lies there; name another folder with --out, or remove it")
