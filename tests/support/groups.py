"""Which tests run one after another in one worker, with their fixtures made once: a file, or all files that share a Ray."""

import functools
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Files with Ray share one, these two another one: they start and end groups of workers all the time.
OTHER_RAY = ("test_pretraining.py", "test_ranks.py")


@functools.cache
def group_of(name: str) -> str:
    """The group of a file of tests/; those of folders below are groups of their own."""
    file = TESTS / name
    has_ray = file.exists() and "ray_cluster" in file.read_text(encoding="utf-8")
    if not has_ray:
        return name
    return "ray of groups" if name in OTHER_RAY else "ray"
