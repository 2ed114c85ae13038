"""What a refresh would do, without doing it: the plan is made beside the store, and nothing is generated or published.

The catalog is brought up to date on the way: it is a cache, and the real run reads the same one.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc

from adgen.creatives.journal import Journal
from adgen.creatives.layout import new_run_id
from adgen.creatives.probe import probe
from adgen.creatives.publish import read_pointer
from adgen.creatives.reading import open_published
from adgen.creatives.storage import Storage, open_storage
from adgen.on_ray.cluster import cluster_device, num_engines
from adgen.on_ray.planning import prepare, write_plan
from adgen.on_ray.settings import RefreshSettings


@dataclass
class Forecast:
    """What `--dry-run` prints. Times are null while nothing is known of the model's speed."""

    pairs: int
    to_generate: int
    carried: int
    failures: int
    duplicates: int
    shards: int
    engines: int
    reasons: dict[str, int] = field(default_factory=dict)
    seconds_a_creative: float | None = None
    """On one engine: of the published run, or as forecast.seconds_a_creative says."""
    hours: float | None = None
    engine_hours: float | None = None
    cost: float | None = None
    """engine_hours times forecast.price_an_hour."""


def forecast(settings: RefreshSettings) -> Forecast:
    """Plan the refresh into a folder that is thrown away. Ray must be connected; RunError as for a real run."""
    storage = open_storage(settings.store, settings.s3)
    probe(storage)
    planned = prepare(settings)
    pointer, _ = read_pointer(storage, settings.campaign)
    with tempfile.TemporaryDirectory(prefix="adgen-dry-run-") as folder:
        journal = Journal(open_storage(Path(folder) / "store"), settings.campaign, new_run_id())
        _, _, summary = write_plan(settings, storage, planned, journal, pointer.run_id if pointer else None)
    engines = num_engines(settings.cluster, cluster_device(settings.device), settings.engine.tensor_parallel)
    made = Forecast(
        pairs=summary.pairs,
        to_generate=summary.to_generate,
        carried=summary.carried,
        failures=summary.planned_failures,
        duplicates=summary.duplicates,
        shards=summary.shards,
        engines=engines,
        reasons=summary.reasons,
    )
    made.seconds_a_creative = settings.forecast.seconds_a_creative or _last_speed(storage, settings.campaign, pointer is not None)
    if made.seconds_a_creative is not None:
        made.engine_hours = summary.to_generate * made.seconds_a_creative / 3600
        made.hours = made.engine_hours / engines
        made.cost = made.engine_hours * settings.forecast.price_an_hour
    return made


def _last_speed(storage: Storage, campaign: str, published: bool) -> float | None:
    """Mean seconds a creative in the first manifest file of the published run; None before the first."""
    if not published:
        return None
    first = next(iter(open_published(storage, campaign).tables()), None)
    return None if first is None else pc.mean(first["seconds"]).as_py()
