"""How work spreads over Ray: settings that every job on a cluster shares."""

from typing import Annotated

from pydantic import Field
from tyro.conf import arg

from adgen.config import Settings


class ClusterSettings(Settings):
    """How the work spreads over Ray."""

    address: Annotated[str | None, arg(aliases=["--address"])] = None
    """A running cluster; default RAY_ADDRESS, else a local one is started."""
    actors: int | None = Field(default=None, gt=0)
    """Engines at most; default one for every engine.tensor_parallel GPUs, or CPUs (two at least). Set it where a cluster
    grows on demand."""
    shards_per_wave: int = Field(default=2000, gt=0)
    """Shards of one dataset execution: bounds the driver's memory."""
    upload_threads: int = Field(default=16, gt=0)
    """Concurrent uploads of a shard."""
