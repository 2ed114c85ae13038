"""Evaluations on one screen: score a run's rows as they come, then summarize them."""

import json
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch

import adgen
from adgen.creatives.journal import Journal
from adgen.creatives.reading import ManifestReader, open_published, open_run
from adgen.creatives.stores import open_storage
from adgen.evaluation.report.page import write_page
from adgen.evaluation.results.comparison import Comparison, compare
from adgen.evaluation.results.earlier import distances_of_both, pictures_of, read_record, scored_by_others
from adgen.evaluation.results.folder import REPORT, Identity, Results, check_unfinished, open_results
from adgen.evaluation.results.pictures import StoredPictures
from adgen.evaluation.results.reference_counts import count_references
from adgen.evaluation.results.summary import Summary, summarize
from adgen.evaluation.scores import scores_that_need
from adgen.evaluation.scoring.creatives import ROW_SCORES, SCORED
from adgen.evaluation.scoring.networks import NamedNetwork, NetworkPaths, load_networks, name_networks
from adgen.evaluation.scoring.other_users import panel_digest
from adgen.on_ray.cluster import cluster_device
from adgen.on_ray.evaluation.settings import RunEvaluationSettings, ScoringSettings
from adgen.on_ray.scoring.sampling import read_panel
from adgen.on_ray.scoring.workers import ROWS_AN_ITEM, ScoringContext, score, whole_parts
from adgen.progress import Progress
from adgen.records import digest
from adgen.shop.inputs.tables import Inputs, open_inputs

# Of the settings: what run ids and digests say anyway, how scores are reported, and where the work is done.
_NOT_OF_SCORES = {"store", "campaign", "run", "out", "inputs", "encoder", "dinov2", "adapter", "fid", "clip"}
_NOT_OF_SCORES |= {"against", "resamples", "seed", "device", "cluster", "s3", "keys"}


class ScoredRun(NamedTuple):
    """A run to be scored, and the store that it lies in."""

    store: str
    reader: ManifestReader

    @property
    def journal(self) -> Journal:
        """Of the run."""
        return Journal(self.reader.storage, self.reader.run.campaign, self.reader.run.run_id)


def evaluate_run(settings: RunEvaluationSettings, progress: Progress) -> dict[str, Any]:
    """Score every creative of a run; the record that summary.json holds. Ray must be connected. Where it was stopped before, the
    same command goes on. SettingsError: another evaluation lies in `out`, or weights are missing; ConsumerError: nothing is
    published; StoreError: the run's private part is not readable."""
    settings = settings.with_whole_paths()
    storage = open_storage(settings.store, settings.s3)
    reader = open_run(storage, settings.campaign, settings.run) if settings.run else open_published(storage, settings.campaign)
    out = settings.out or f"evaluation-{settings.campaign}-{reader.run.run_id}"
    check_unfinished(open_storage(out, settings.s3))
    return score_runs(settings, [ScoredRun(settings.store, reader)], out, progress)


def score_runs(
    settings: ScoringSettings, runs: Sequence[ScoredRun], out: str | Path, progress: Progress, has_unpasted: bool = False
) -> dict[str, Any]:
    """Rows, summary and report of runs into `out`, a folder or on S3; the record. Several runs hold creatives of the same pairs,
    made with different seeds."""
    started = time.time()
    paths, networks, earlier = check_settings(settings)
    contexts = [scoring_context(settings, paths, run, number, has_unpasted) for number, run in enumerate(runs)]
    inputs = contexts[0].inputs
    with open_results(out, settings.s3) as results:
        done = results.begin(identity_of(settings, inputs, runs, networks))
        parts = write_rows(contexts, settings, runs, results, done, progress)
        progress.phase("summarize")
        network = networks["distance"].name if networks["distance"] else ""
        summary = summarize(results.folder, settings.resamples, settings.seed, network)
        panel = panel_digest(contexts[0].other_users)
        comparison = compared(settings, results.folder, networks, panel, summary, earlier) if earlier else None
        record = (
            about(settings, runs, paths, networks)
            | {"panel": panel, "parts": parts}
            | summary.as_dict()
            | count_of_references(inputs)
        )
        record |= {"against": comparison and comparison.as_dict(), "seconds": round(time.time() - started, 1)}
        pictures = StoredPictures([run.reader.storage for run in runs], record["campaign"])
        write_page(results.folder / REPORT, record, summary, pictures, comparison, pictures_of(earlier or {}, settings.s3))
        results.finish(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return record


def identity_of(
    settings: ScoringSettings, inputs: Inputs, runs: Sequence[ScoredRun], networks: dict[str, NamedNetwork | None]
) -> Identity:
    """What parts of this evaluation have in common."""
    decisive = settings.model_dump(mode="json", exclude=_NOT_OF_SCORES)
    others = {kind: network and network.digest for kind, network in networks.items() if kind != "pbs"}
    return Identity(
        runs=tuple(run.reader.run.run_id for run in runs),
        settings=digest(json.dumps([decisive, inputs.stamps], sort_keys=True)),
        encoder=networks["pbs"] and networks["pbs"].digest,
        networks=digest(json.dumps(others, sort_keys=True)),
        version=digest(str(SCORED), str(ROWS_AN_ITEM), adgen.__version__),
    )


def count_of_references(inputs: Inputs) -> dict[str, Any]:
    """For the record: what the table of references holds and lacks; None where there is none."""
    counts = count_references(inputs)
    return {"references": counts and counts.as_dict(), "reference_problems": counts.problems if counts else {}}


def check_settings(settings: ScoringSettings) -> tuple[NetworkPaths, dict[str, NamedNetwork | None], dict[str, Any] | None]:
    """Before any work: where the scoring networks lie, their names and digests, and the record of the evaluation to compare with.
    SettingsError names what is missing."""
    earlier = read_record(settings.against) if settings.against else None
    paths = NetworkPaths.of(settings)
    return paths, name_networks(paths, load_networks(paths, torch.device("cpu"))), earlier


def compared(
    settings: ScoringSettings,
    out: Path,
    networks: dict[str, NamedNetwork | None],
    panel: str,
    summary: Summary,
    earlier: dict[str, Any],
) -> Comparison:
    """This evaluation compared with the earlier one, without the scores that other networks gave or that compare with another panel
    of other users: a panel's 256 users decide all rows' scores together, which no interval over the rows' users knows of."""
    others = set(scored_by_others(networks, earlier))
    if earlier.get("panel") != panel:
        others |= set(scores_that_need(ROW_SCORES, "other_users"))
    found = compare(out, settings.against, settings.resamples, settings.seed, others)
    found.sets = distances_of_both(networks, summary.sets, earlier)
    return found


def about(
    settings: ScoringSettings, runs: Sequence[ScoredRun], paths: NetworkPaths, networks: dict[str, NamedNetwork | None]
) -> dict[str, Any]:
    """What was evaluated, and by whom."""
    first = runs[0].reader.run
    missing = [kind for kind, network in networks.items() if network is None]
    named = {kind: network and network._asdict() for kind, network in networks.items()}
    return {
        "campaign": first.campaign,
        "run_id": first.run_id,
        "runs": [{"store": run.store, "run_id": run.reader.run.run_id} for run in runs],
        "model_digest": first.digests.get("model"),
        "encoder": str(paths.encoder) if paths.encoder else None,
        "networks": named,
        "judges": named,  # the key before 0.2.0, until 0.3.0
        "settings": settings.model_dump(mode="json", exclude={"s3", "cluster"}),
        "not_measured": scores_that_need(ROW_SCORES, *missing),
    }


def scoring_context(
    settings: ScoringSettings, paths: NetworkPaths, run: ScoredRun, number: int, has_unpasted: bool
) -> ScoringContext:
    """What workers need to score the run of a seed."""
    return ScoringContext(
        store=run.store,
        access=settings.s3,
        campaign=run.reader.run.campaign,
        run_id=run.reader.run.run_id,
        inputs=open_inputs(settings.inputs, ["products"], optional=["references"]),
        networks=paths,
        device=cluster_device(settings.device) if paths.any else "cpu",
        other_users=read_panel(run.journal) if paths.sees_backgrounds else (),
        first_variant=number,
        only_best=not (isinstance(settings, RunEvaluationSettings) and settings.variants == "all"),
        has_unpasted=has_unpasted,
    )


def write_rows(
    contexts: Sequence[ScoringContext],
    settings: ScoringSettings,
    runs: Sequence[ScoredRun],
    results: Results,
    done: set[int],
    progress: Progress,
) -> dict[str, int]:
    """A part of rows and one of features for each work item, as they are scored, without those whose numbers are `done`; how many
    there were and how many were scored now. They are numbered on from seed to seed."""
    items = [whole_parts(run.journal.read_plan().parts) for run in runs]
    numbers = list(accumulate((len(each) for each in items), initial=0))
    missing = [[item for item in each if first + item["index"] not in done] for first, each in zip(numbers, items, strict=False)]
    to_score = sum(map(len, missing))
    progress_note = f" ({numbers[-1] - to_score} of {numbers[-1]} parts are there)" if to_score < numbers[-1] else ""
    progress.phase(f"score{progress_note}", sum(item["rows"] for each in missing for item in each))
    for context, each, first in zip(contexts, missing, numbers, strict=False):
        sizes = {item["index"]: item["rows"] for item in each}
        for scored in score(context, each, settings.cluster):
            results.write_part(first + scored.index, scored.rows, scored.features)
            progress.advance(sizes[scored.index])
    return {"found": numbers[-1] - to_score, "scored": to_score}
