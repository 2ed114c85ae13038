"""Unnamed objects that a clean-up found and left for the next: private/clean-up/<hh>.parquet, by the hash's first byte."""

from typing import NamedTuple

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.journal import from_parquet, to_parquet
from adgen.creatives.storage import Storage

# A clean-up each night finds what the last one left to be due; a writer that had just looked at the object has long named it.
GRACE_SECONDS = 12 * 3600.0
_SCHEMA = pa.schema([("key", pa.string()), ("modified", pa.float64()), ("found_at", pa.float64())])


class Candidate(NamedTuple):
    """An object, its age, and when a clean-up first found that nothing names it; seconds since 1970."""

    key: str
    modified: float
    found_at: float


def read_candidates(storage: Storage, shard: str) -> list[Candidate]:
    """What earlier clean-ups found among the objects whose hash begins with `shard`."""
    stored = storage.get(layout.candidates(shard))
    return [Candidate(**row) for row in from_parquet(stored.data).to_pylist()] if stored else []


def write_candidates(storage: Storage, shard: str, waiting: list[Candidate]) -> None:
    """Leave `waiting` for the next clean-up, in the place of what was left for this one."""
    if waiting:
        table = pa.Table.from_pylist([each._asdict() for each in waiting], _SCHEMA)
        storage.put(layout.candidates(shard), to_parquet(table))
    else:
        storage.delete(layout.candidates(shard))


def split_due(earlier: list[Candidate], unnamed: list[Candidate], now: float) -> tuple[list[Candidate], list[Candidate]]:
    """Of the objects that are unnamed now: those found long enough ago and not written since, and those that wait."""
    known = {(each.key, each.modified): each.found_at for each in earlier}
    found = [each._replace(found_at=known.get((each.key, each.modified), now)) for each in unnamed]
    due = [each for each in found if each.found_at <= now - GRACE_SECONDS]
    return due, [each for each in found if each.found_at > now - GRACE_SECONDS]
