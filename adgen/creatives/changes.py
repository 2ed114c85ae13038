"""What changed between two runs of a campaign, for consumers: creatives that are new, other than before, or no more to be shown.

The key is (pair_id, variant), which stays when user keys rotate. Manifests are compared bucket by bucket on local disk, so that
memory does not grow with them; files that both runs have with the same sha256 are not read at all.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives.buckets import PairBuckets, bucket_names, digits_for
from adgen.creatives.documents import RunDocument
from adgen.creatives.parts import ManifestParts, Row, Selection
from adgen.creatives.storage import Storage
from adgen.records import MANIFEST, OK

Kind = Literal["added", "changed", "withdrawn"]

COLUMNS = (
    *("pair_id", "variant", "rank", "user_key", "product_id", "locale", "channel", "status", "reason", "title"),
    *("uri", "sha256", "bytes", "width", "height", "format", "renditions", "fingerprint", "model_digest", "carried_from"),
    "generated_at",
)
"""What a change says of a creative."""
_SHOWN = ("rank", "title", "sha256", "format")
"""What makes a creative another one to who shows it, with its renditions."""
_SCHEMA = pa.schema([MANIFEST.field(name) for name in COLUMNS])


@dataclass(frozen=True)
class Change:
    """One creative that is not what it was. A creative is a row that is ok: one that a gate rejects now is withdrawn."""

    kind: Kind
    before: Row | None
    """Its row in the older run, of whatever status; None: it had none."""
    after: Row | None
    """Its row in the newer run."""

    @property
    def row(self) -> Row:
        """The newer row, or that of the older run where there is none any more."""
        return self.after or self.before


def changes(storage: Storage, before: RunDocument, after: RunDocument) -> Iterator[Change]:
    """From one sealed run of a store to another, in no order."""
    with tempfile.TemporaryDirectory(prefix="adgen-changes-") as folder:
        compared = Comparison(storage, before, after, Path(folder))
        for bucket in compared.buckets:
            yield from compared.changes(bucket)


class Comparison:
    """Two runs' manifests in buckets, without the files that both have. `folder` is local room, empty."""

    def __init__(self, storage: Storage, before: RunDocument, after: RunDocument, folder: Path):
        same = {file.sha256 for file in before.manifest} & {file.sha256 for file in after.manifest}
        left = [[file for file in run.manifest if file.sha256 not in same] for run in (before, after)]
        self.digits = digits_for(max(sum(file.rows for file in files) for files in left))
        wanted = Selection.of(COLUMNS, None)
        self._old, self._new = (
            PairBuckets(folder / name, _SCHEMA, self.digits).add(ManifestParts(storage, files).tables(wanted))
            for name, files in zip(("old", "new"), left, strict=True)
        )

    @property
    def buckets(self) -> list[str]:
        """Their names."""
        return bucket_names(self._old, self._new)

    def changes(self, bucket: str) -> Iterator[Change]:
        """Those of one bucket."""
        return _compare(self._old.read(bucket), self._new.read(bucket))


def _compare(old: pa.Table, new: pa.Table) -> Iterator[Change]:
    places = pc.index_in(_keys(new), value_set=_keys(old))  # of each new row, where its old one is
    was_ok, is_ok = (pc.equal(table["status"], OK) for table in (old.take(places), new))
    was_ok = pc.fill_null(was_ok, False)
    other = pc.not_equal(_shown(old).take(places), _shown(new))
    kinds = {
        "added": pc.and_not(is_ok, was_ok),
        "changed": pc.and_(pc.and_(is_ok, was_ok), pc.fill_null(other, True)),
        "withdrawn": pc.and_not(was_ok, is_ok),
    }
    for kind, mask in kinds.items():
        befores = old.take(places.filter(mask)).to_pylist()
        for row, was in zip(new.filter(mask).to_pylist(), befores, strict=True):
            yield Change(kind, was if was["pair_id"] is not None else None, row)
    gone = pc.and_(pc.invert(pc.is_in(_keys(old), value_set=_keys(new))), pc.equal(old["status"], OK))
    for row in old.filter(gone).to_pylist():
        yield Change("withdrawn", row, None)


def _keys(table: pa.Table) -> pa.Array:
    return _joined(table, ("pair_id", "variant"))


def _shown(table: pa.Table) -> pa.Array:
    renditions = table["renditions"].combine_chunks()
    hashes = pa.ListArray.from_arrays(renditions.offsets, pc.struct_field(renditions.values, "sha256"))
    return _joined(table.append_column("pictures", pc.binary_join(hashes, ",")), (*_SHOWN, "pictures"))


def _joined(table: pa.Table, names: tuple[str, ...]) -> pa.Array:
    parts = [table[name].combine_chunks().cast(pa.string()) for name in names]
    return pc.binary_join_element_wise(*parts, "\x1f", null_handling="replace", null_replacement="\x00")
