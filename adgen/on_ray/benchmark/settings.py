"""What `jobs/benchmark.py data` measures."""

from pydantic import Field

from adgen.config import Settings


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
