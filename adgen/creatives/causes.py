"""Why creatives differ between two runs: `adgen diff`. The cause is read from the lineage in private/, which has a digest of each
thing that makes a creative; nothing of it but the cause's name is told. Where it cannot be read the manifest says what it can."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives.ahead import map_ahead
from adgen.creatives.buckets import PairBuckets
from adgen.creatives.changes import Change, Comparison
from adgen.creatives.documents import RunDocument
from adgen.creatives.journal import Journal
from adgen.creatives.storage import Storage
from adgen.errors import StoreError
from adgen.records import OK

CAUSES = {
    "product": "title, selling points, scale or picture of the product",
    "history": "the drawn clicks, or title or picture of a clicked product",
    "model": "the model directory, or the version of the engine",
    "settings": "sampling, finishing, engine options that change creatives, or campaign_seed",
    "rules": "the rule packs: the same creative was judged anew",
    "rank": "the same creative has another rank among the variants of its pair",
    "made_again": "the same inputs were made again: a failed or rejected row, or a lost picture",
    "new_pair": "the older run did not have the pair",
    "pair_gone": "the newer run does not have the pair",
    "rejected": "a gate rejects it now",
    "failed": "its input is bad now",
    "unknown": "the lineage does not say: it could not be read, or an earlier version wrote it",
}
_PARTS_AT_ONCE = 16
_COLUMNS = ("product_hash", "history", "model_digest", "settings_digest", "seed")
_MEANS = ("product", "history", "model", "settings", "settings")
_SCHEMA = pa.schema(
    [("pair_id", pa.string()), ("variant", pa.int32()), *((name, pa.string()) for name in _COLUMNS[:-1]), ("seed", pa.int64())]
)

Made = tuple[Any, ...]
"""Of what a creative was made: values of _COLUMNS."""


@dataclass(frozen=True)
class Explained:
    """A change and the names of its causes, of CAUSES."""

    change: Change
    why: tuple[str, ...]


class Diff:
    """What differs between two runs and why. Iterate it once; `note` then says what could not be read."""

    def __init__(self, storage: Storage, before: RunDocument, after: RunDocument):
        self.storage, self.before, self.after = storage, before, after
        self.note = ""

    def __iter__(self) -> Iterator[Explained]:
        with tempfile.TemporaryDirectory(prefix="adgen-diff-") as folder:
            compared = Comparison(self.storage, self.before, self.after, Path(folder))
            lineages: list[PairBuckets] = []
            for bucket in compared.buckets:
                made: list[dict[tuple[str, int], Made]] = []
                for change in compared.changes(bucket):
                    lineages = lineages or self._lineages(Path(folder), compared.digits)
                    made = made or [_made(lineage.read(bucket)) for lineage in lineages]
                    yield Explained(change, self._why(change, *made))

    def _lineages(self, folder: Path, digits: int) -> list[PairBuckets]:
        return [
            PairBuckets(folder / name, _SCHEMA, digits).add(self._lineage(run))
            for name, run in (("made old", self.before), ("made new", self.after))
        ]

    def _lineage(self, run: RunDocument) -> Iterator[pa.Table]:
        journal = Journal(self.storage, run.campaign, run.run_id)
        try:
            shards = sorted(journal.done())
            if not shards:
                self.note = f"causes are unknown where only the lineage has them: run {run.run_id} has none in private/"
            for lineage in map_ahead(journal.read_lineage, shards, _PARTS_AT_ONCE):
                if lineage is not None:
                    yield _components(lineage)
        except StoreError as error:
            self.note = f"causes are unknown where only the lineage has them: {error}"

    def _why(self, change: Change, old: dict[tuple[str, int], Made], new: dict[tuple[str, int], Made]) -> tuple[str, ...]:
        before, after = change.before, change.after
        if before is None or after is None:
            return ("new_pair",) if before is None else ("pair_gone",)
        status = () if after["status"] == OK else (after["status"],)
        key = after["pair_id"], after["variant"]
        if before["fingerprint"] is not None and before["fingerprint"] == after["fingerprint"]:
            return (*status, self._of_the_same(before, after))
        made = [rows.get(key) or _public(row, run) for rows, row, run in ((old, before, self.before), (new, after, self.after))]
        pairs = list(zip(_MEANS, *made, strict=True))
        causes = {cause for cause, was, now in pairs if None not in (was, now) and was != now}
        if causes or status:
            return (*status, *(cause for cause in CAUSES if cause in causes))
        return ("unknown",)

    def _of_the_same(self, before: dict[str, Any], after: dict[str, Any]) -> str:
        if all(before[name] == after[name] for name in ("status", "title", "sha256", "renditions")):
            return "rank"
        rules = [run.digests.get("rules") for run in (self.before, self.after)]
        return "rules" if rules[0] != rules[1] else "made_again"


def _components(lineage: pa.Table) -> pa.Table:
    """Lineage rows by _SCHEMA."""
    history = pc.binary_join(lineage["history_hashes"].combine_chunks(), ",")
    return lineage.append_column("history", history).select(_SCHEMA.names).cast(_SCHEMA)


def _made(rows: pa.Table) -> dict[tuple[str, int], Made]:
    columns = [rows[name].to_pylist() for name in _COLUMNS]
    keys = zip(rows["pair_id"].to_pylist(), rows["variant"].to_pylist(), strict=True)
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


def _public(row: dict[str, Any], run: RunDocument) -> Made:
    """What the public part of the store says of how a row was made; None for the rest."""
    settings = run.digests.get("settings") if row["carried_from"] is None else None
    return (None, None, row["model_digest"], settings, None)
