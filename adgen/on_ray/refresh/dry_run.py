"""What a refresh would do, without doing it: the plan goes to a temporary folder, and nothing is generated or published.

The catalog is brought up to date on the way: it is a cache, and the real run reads the same one.
"""

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationError

from adgen.creatives.journal import Journal
from adgen.creatives.layout import new_run_id
from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.errors import SettingsError
from adgen.on_ray.cluster import cluster_device, num_engines
from adgen.on_ray.refresh.planning import Prepared, over_published, prepare, write_plan
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.refresh.speed import engine_cost


@dataclass
class Forecast:
    """What `--dry-run` prints. Times are null while nothing is known of the model's speed."""

    pairs: int
    creatives: int
    """Rows of the manifest: all variants of all pairs. The counts below are of them."""
    to_generate: int
    carried: int
    failures: int
    duplicates: int
    shards: int
    engines: int
    reasons: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows of the inputs, by table and column, whose id is not UTF-8."""
    seconds_a_creative: float | None = None
    """On one engine."""
    speed_from: str = "unknown: no run is published, and neither forecast.seconds_a_creative nor forecast.benchmark is set"
    """Where seconds_a_creative comes from."""
    hours: float | None = None
    engine_hours: float | None = None
    cost: float | None = None
    """engine_hours times forecast.price_an_hour."""
    cost_per_1000: float | None = None
    """Of 1,000 creatives that are ok, if as many are as in the published run."""


def forecast(settings: RefreshSettings) -> Forecast:
    """Plan the refresh into a folder that is thrown away. Ray must be connected; RunError as for a real run."""
    prepared = prepare(settings)
    with tempfile.TemporaryDirectory(prefix="adgen-dry-run-") as folder:
        journal = Journal(open_storage(Path(folder) / "store"), settings.campaign, new_run_id())
        pointer, _, (_, _, summary) = over_published(prepared, partial(write_plan, prepared, journal))
    engines = num_engines(settings.cluster, cluster_device(settings.device), settings.engine.tensor_parallel)
    made = Forecast(
        pairs=summary.pairs,
        creatives=summary.creatives,
        to_generate=summary.to_generate,
        carried=summary.carried,
        failures=summary.planned_failures,
        duplicates=summary.duplicates,
        shards=summary.shards,
        engines=engines,
        reasons=summary.reasons,
        left_out=prepared.inputs.left_out,
    )
    if speed := _known_speed(prepared, pointer.run_id if pointer else None):
        made.seconds_a_creative, made.speed_from = speed
        seconds = summary.to_generate * made.seconds_a_creative
        spent = engine_cost(seconds, summary.to_generate * _share_ok(prepared, pointer is not None), settings)
        made.engine_hours, made.hours = seconds / 3600, seconds / 3600 / engines
        made.cost, made.cost_per_1000 = spent.cost, spent.cost_per_1000
    return made


def _share_ok(prepared: Prepared, is_published: bool) -> float:
    """Of the creatives that engines made for the published run."""
    if not is_published:
        return 1.0
    counts = open_published(prepared.storage, prepared.settings.campaign).run.counts
    return counts.ok / (counts.ok + counts.rejected) if counts.ok + counts.rejected else 1.0


class EngineSpeed(BaseModel):
    """What `python jobs/benchmark.py engine --save FILE` wrote; further fields are its own."""

    pictures_per_second: float = Field(gt=0)
    """Of one engine, titles included."""
    model: str
    """Name of the model's sizes."""
    device: str
    dtype: str
    batch: int


def read_benchmark(path: Path, model: str) -> EngineSpeed:
    """The record in `path`, if it is one of this `model` (a name of sizes); SettingsError otherwise."""
    try:
        speed = EngineSpeed.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"forecast.benchmark: {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise SettingsError(
            f"forecast.benchmark: {path}: {field}: {first['msg']}; write it with `python jobs/benchmark.py engine --save {path}`"
        ) from None
    if speed.model != model:
        raise SettingsError(f"forecast.benchmark: {path}: measured {speed.model}, and this refresh runs {model}; measure that")
    return speed


def _known_speed(prepared: Prepared, published: str | None) -> tuple[float, str] | None:
    """(seconds a creative, where they come from): as set, else of the benchmark, else of the published run."""
    given = prepared.settings.forecast
    if given.seconds_a_creative is not None:
        return given.seconds_a_creative, "forecast.seconds_a_creative"
    if given.benchmark is not None:
        speed = read_benchmark(given.benchmark, prepared.model.config.name)
        how = f"{speed.model}, {speed.device}, {speed.dtype}, batches of {speed.batch}"
        return 1 / speed.pictures_per_second, f"benchmark {given.benchmark} ({how})"
    if published is None:
        return None
    first = next(iter(open_published(prepared.storage, prepared.settings.campaign).tables()), None)
    seconds = None if first is None else pc.mean(first["seconds"]).as_py()
    return None if seconds is None else (seconds, f"run {published}, which is published")
