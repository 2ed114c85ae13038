"""What `jobs/benchmark.py data`, `waiting` and `serve` measure."""

from pathlib import Path

from pydantic import Field

from adgen.config import Settings
from adgen.generation.engine_settings import EngineSettings
from adgen.on_ray.cluster_settings import ClusterSettings


class DataBenchmarkSettings(Settings):
    """Refreshes of a synthetic shop with a null generator."""

    pairs: tuple[int, ...] = (10_000, 200_000)
    """Sizes, each a refresh of its own without pictures."""
    finished_pairs: int = Field(default=2000, ge=0)
    """Pairs of one more refresh, with pictures pasted, judged and encoded; 0: none."""
    side: int = Field(default=512, ge=64)
    """Pixels of those pictures."""
    products: int = Field(default=2000, ge=1)
    """Products of the synthetic shop."""
    pairs_per_shard: int = Field(default=256, ge=1)
    """Pairs of a shard."""


class WaitingBenchmarkSettings(Settings):
    """Refreshes with an engine that takes a known time for each batch."""

    seconds: tuple[float, ...] = (0.5, 0.25, 0.1)
    """Of a batch; each a refresh of its own."""
    batch: int = Field(default=2, ge=1)
    """Creatives of a batch, and pairs of a shard."""
    shards: int = Field(default=20, ge=2)
    """Batches of a refresh."""
    side: int = Field(default=512, ge=64)
    """Pixels of the finished pictures."""
    products: int = Field(default=40, ge=1)
    """Products of the synthetic shop."""


class ServeBenchmarkSettings(Settings):
    """The service on demand, on loopback, over a synthetic shop."""

    clients: tuple[int, ...] = (1, 8, 32)
    """Numbers of clients that ask for creatives at once."""
    rounds: int = Field(default=3, ge=1)
    """How often all is measured in turns; rates are medians."""
    requests: int = Field(default=32, ge=1)
    """Creatives of a round, of the engine alone and of each number of clients (fewer of clients that fill no batch)."""
    read_clients: int = Field(default=8, ge=2)
    """Clients that read at once, beside one that reads alone."""
    reads: int = Field(default=400, ge=1)
    """Published creatives that are read in a round, and requests of the empty deployment."""
    new_reads: int = Field(default=50, ge=1)
    """Those of a round that are of users nobody asked for before."""
    pairs: int = Field(default=2000, ge=400)
    """Published pairs of the shop."""
    side: int = Field(default=512, ge=64)
    """Pixels of the creatives."""
    port: int = Field(default=8123, ge=1, le=65535)
    """Of loopback."""
    model: Path | None = None
    """Model directory; default the small trained one of this package."""
    engine: EngineSettings = EngineSettings()
    cluster: ClusterSettings = ClusterSettings()
