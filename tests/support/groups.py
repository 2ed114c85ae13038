"""Which tests run one after another in one worker, with their fixtures made once: a file, or all files that share a Ray."""

import functools
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Files with Ray share one, these have another one each: training starts and ends groups of workers all the time.
OWN_RAY = {"test_pretraining.py": "training", "test_ranks.py": "ranks"}


@functools.cache
def group_of(name: str) -> str:
    """The group of a file of tests/; those of folders below are groups of their own."""
    file = TESTS / name
    has_ray = file.exists() and "ray_cluster" in file.read_text(encoding="utf-8")
    return OWN_RAY.get(name, "ray") if has_ray else name
