"""A model evaluated: a refresh of the references' pairs into a store of its own, then scored as any run."""

import dataclasses
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from adgen.config import FinishSettings, GateLevels
from adgen.creatives.reading import open_run
from adgen.creatives.stores import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.results.folder import Identity, check_unfinished, read_identity
from adgen.generation.model_directory import ModelDirectory
from adgen.on_ray.evaluation.job import ScoredRun, check_settings, score_runs
from adgen.on_ray.evaluation.keys import keys_of
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings
from adgen.on_ray.evaluation.unpasted import KEEPING_UNPASTED
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.planning import maker_digest
from adgen.on_ray.refresh.settings import CleanUpSettings, FailureSettings, PlanSettings, RefreshSettings
from adgen.progress import Progress
from adgen.records import PAIRS, digest
from adgen.shipped import shipped_model
from adgen.shop.inputs.tables import InputFile, Inputs, InputTable, open_inputs

CAMPAIGN = "evaluation"


def evaluate_model(settings: ModelEvaluationSettings, progress: Progress) -> dict[str, Any]:
    """Make creatives of every pair that has a reference and score them; the record that summary.json holds. Ray must be
    connected. The creatives stay in out/store: where it stopped before, the same command goes on."""
    settings = settings.with_whole_paths()
    model = settings.model or shipped_model()
    if model is None:
        raise SettingsError("model: this package holds no trained model: name one with --model")
    storage = open_storage(settings.out)
    check_unfinished(storage)
    check_settings(settings)  # before hours of making them
    identity = read_identity(storage)
    runs = made_before(settings, model, identity) if identity else make_runs(settings, model, progress)
    return score_runs(settings, runs, settings.out, progress, has_unpasted=True)


def made_before(settings: ModelEvaluationSettings, model: Path, identity: Identity) -> list[ScoredRun]:
    """The runs whose scoring was stopped: made again they would be others. SettingsError: another model, or engine, made them;
    ModelError: the model is untrained, which `allow_untrained` of the call that made them allows no later one."""
    stores = [store_of(settings, number) for number in range(len(identity.runs))]
    runs = [
        ScoredRun(store, open_run(open_storage(store), CAMPAIGN, run_id))
        for store, run_id in zip(stores, identity.runs, strict=True)
    ]
    directory = ModelDirectory(model)
    directory.require_trained(settings.allow_untrained)
    maker = maker_digest(directory)
    if any(run.reader.run.digests.get("model") != maker for run in runs):
        raise SettingsError(f"out: {settings.out}: the creatives there are not of {model}; name another folder with --out")
    return runs


def make_runs(settings: ModelEvaluationSettings, model: Path, progress: Progress) -> list[ScoredRun]:
    """A run for each seed. One that is not finished is resumed."""
    inputs = open_inputs(settings.inputs, ("products", "histories", "references"))
    pairs = with_pairs(inputs, settings.out / "store" / "private")
    return [made_run(settings, model, pairs, number, progress) for number in range(settings.seeds)]


def made_run(settings: ModelEvaluationSettings, model: Path, inputs: Inputs, number: int, progress: Progress) -> ScoredRun:
    """One creative of each pair, with the seed of that number. Each seed has a store of its own: in one store it would carry what
    another seed failed to make, and a stopped evaluation could not go on."""
    store = store_of(settings, number)
    made = refresh(refresh_settings(settings, model, store, number), progress, KEEPING_UNPASTED, inputs)
    return ScoredRun(store, open_run(open_storage(store), CAMPAIGN, made.run_id))


def store_of(settings: ModelEvaluationSettings, number: int) -> str:
    """Where the creatives of a seed lie."""
    return str(settings.out / ("store" if number == 0 else f"store-seed-{number}"))


def refresh_settings(settings: ModelEvaluationSettings, model: Path, store: str, number: int) -> RefreshSettings:
    """The refresh that makes them, with the seed of that number. No gate keeps a creative back, since those that would be rejected
    are the model's as well."""
    levels = dict.fromkeys(GateLevels.model_fields, "warn")
    return RefreshSettings(
        inputs=settings.inputs,
        store=store,
        campaign=CAMPAIGN,
        model=model,
        allow_untrained=settings.allow_untrained,
        device=settings.device,
        publish_partial=True,
        plan=PlanSettings(limit=settings.limit, pairs_per_shard=64, campaign_seed=number),
        sampling=settings.sampling,
        engine=settings.engine,
        finish=FinishSettings(gates=GateLevels(**levels)),
        failures=FailureSettings(max_failed_share=1.0),
        keys=keys_of(settings),
        clean_up=CleanUpSettings(keep_runs=None),
        cluster=settings.cluster,
    ).drawn_once()


def with_pairs(inputs: Inputs, private: Path) -> Inputs:
    """The same tables with the references' pairs for pairs. They name users, so they are written into the private part of the
    store; always to the same place, since a run is resumed only for the same inputs."""
    private.mkdir(parents=True, exist_ok=True)
    path = private / "pairs.parquet"
    with duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(private / "spill")}) as base:
        base.register("stream", inputs["references"].reader(["user_id", "product_id"]))
        query = "SELECT DISTINCT user_id, product_id FROM stream WHERE user_id IS NOT NULL AND product_id IS NOT NULL ORDER BY ALL"
        schema = pa.schema([field.with_nullable(True) for field in PAIRS])
        with pq.ParquetWriter(path, schema) as writer:
            for batch in base.sql(query).to_arrow_reader(65_536):
                rows = pa.Table.from_batches([batch])
                for name in ("locale", "channel"):
                    rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.string()))
                writer.write_table(rows.cast(schema))
    count = pq.ParquetFile(path).metadata.num_rows
    stamp = digest(*(part for file in inputs["references"].files for part in (file.uri, file.stamp)))
    table = InputTable("pairs", schema, (InputFile(str(path.resolve()), stamp, count),))
    return dataclasses.replace(inputs, tables={**inputs.tables, "pairs": table})
