"""What a consumer reads: pointer, run.json, manifest files, objects. Each step names the next; nothing is listed."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import EllipsisType

import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.ahead import map_ahead
from adgen.creatives.changes import Change, changes
from adgen.creatives.documents import ManifestFile, Pointer, RunDocument, parse_document
from adgen.creatives.parts import ManifestParts, Row, Selection, Where, newer_schema
from adgen.creatives.references import Reference, inspect
from adgen.creatives.secrets import pair_of, user_key_of
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError, StoreError
from adgen.records import MANIFEST, MANIFEST_SCHEMA_VERSION, OK

_MOST_DOCUMENT_BYTES = 2**26
_TRIES = 3


def is_wanted(row: Row, variants: int | None) -> bool:
    """Whether a row is among the first `variants` of its pair by rank; None: all are."""
    return variants is None or (row["rank"] or 0) < variants


@dataclass(frozen=True)
class ManifestReader:
    """One run: a complete snapshot of the campaign's creatives, which no later run changes. Threads may share it."""

    storage: Storage
    run: RunDocument

    @cached_property
    def _parts(self) -> ManifestParts:
        return ManifestParts(self.storage, self.run.manifest)

    def tables(self, columns: Collection[str] | None = None, where: Where | None = None) -> Iterator[pa.Table]:
        """The rows that `where` keeps, ordered by user_key, some thousand at once, with `columns` (default all).

        `where` is [("status", "==", "ok"), ("product_id", "in", ["a", "b"])]. It decides what is fetched: a filter by user_key
        reads one row group, any filter only the columns that it looks at and, where it finds something, those that are wanted.
        ConsumerError names a file that is gone, damaged or of a newer schema.
        """
        return self._parts.tables(Selection.of(columns, where))

    def table(self, file: ManifestFile) -> pa.Table:
        """All rows of one of the run's files."""
        return pa.concat_tables(self.tables_of(file))

    def tables_of(self, file: ManifestFile) -> Iterator[pa.Table]:
        """The rows of one of the run's files, some thousand at once."""
        return self._parts.of_file(file, Selection.of(None, None))

    def rows(self, columns: Collection[str] | None = None, where: Where | None = None) -> Iterator[Row]:
        """The same rows one by one, as dicts."""
        for table in self.tables(columns, where):
            for batch in table.to_batches(max_chunksize=1024):
                yield from batch.to_pylist()

    def around(self, user_key: str, columns: Collection[str]) -> pa.Table:
        """All rows of the row groups that may hold a user, ordered by user_key: its own, and those of the users beside it."""
        selection = replace(Selection.of(columns, [("user_key", "==", user_key)]), with_neighbours=True)
        return pa.concat_tables([MANIFEST.empty_table().select(selection.columns), *self._parts.tables(selection)])

    def find(self, pair_id: str) -> list[Row]:
        """The rows of one pair, by variant. Reads the column pair_id up to where it is found; `creative` needs less."""
        found = next(self.tables(where=[("pair_id", "==", pair_id)]), None)
        return [] if found is None else found.sort_by("variant").to_pylist()

    def of_user(self, user_key: str) -> list[Row]:
        """The rows of one user, best rank first; reads only the row groups that can hold the user."""
        found = self.rows(where=[("user_key", "==", user_key)])
        return sorted(found, key=lambda row: (row["rank"] is None, row["rank"], row["pair_id"], row["variant"]))

    def creative(
        self,
        product_id: str,
        *,
        user_key: str | None = None,
        user_id: str | None = None,
        user_secret: Path | bytes | None = None,
        campaign_key: Path | bytes | None = None,
        variant: int | None = None,
        locale: str | EllipsisType | None = ...,
        channel: str | EllipsisType | None = ...,
    ) -> Row | None:
        """The creative of a user and a product to show: the ok row of the best rank, or that of `variant`; None if there is none.

        The user is named by `user_key`, or by `user_id` and the file of the user secret, or by `user_id` and the file of the
        campaign key (which names the pair, and takes a scan of the column pair_id); without a file the public key of laptops is
        taken, where the run was made with it. `locale` and `channel` tell pairs of one user and product apart; with a campaign key
        they are null where they are not given. ConsumerError: a key of another run, or several pairs and no word which.
        """
        if user_key is None and user_id is None:
            raise TypeError("creative() takes user_key or user_id")
        if user_key is None and campaign_key is not None:
            words = (None if word is ... else word for word in (locale, channel))
            rows = self.find(pair_of(self.run, campaign_key, user_id, product_id, *words))
        else:
            user = user_key or user_key_of(self.run, user_secret, user_id)
            rows = list(self.rows(where=[("user_key", "==", user), ("product_id", "==", product_id)]))
            rows = [row for row in rows if locale in (..., row["locale"]) and channel in (..., row["channel"])]
        return self._best(rows, product_id, variant)

    def _best(self, rows: list[Row], product_id: str, variant: int | None) -> Row | None:
        pairs = {(row["locale"], row["channel"]) for row in rows}
        if len(pairs) > 1:
            found = ", ".join(f"locale={locale!r} channel={channel!r}" for locale, channel in sorted(pairs, key=str))
            raise ConsumerError(f"product {product_id}: the user has it {len(pairs)} times; say which: {found}")
        good = [row for row in rows if row["status"] == OK and variant in (None, row["variant"])]
        return min(good, key=lambda row: (row["rank"] or 0, row["variant"]), default=None)

    def picture(self, row: Row) -> bytes:
        """The picture of a row, or of one of its renditions; needs the columns uri, sha256 and bytes. ConsumerError: it is missing
        in the store, or not what the row says."""
        reference = Reference(row["uri"], row["sha256"], row["bytes"])
        if reference.uri is None:
            raise ConsumerError(f"pair {row.get('pair_id')}: has no picture; its status is {row.get('status')}")
        outcome, data = inspect(self.storage, reference)
        if outcome == OK:
            return data
        what = "is missing; the next refresh makes it again" if outcome == "missing" else "is not what its row says; do not show it"
        raise ConsumerError(f"{self.storage.uri}/{reference.uri} {what}. `adgen verify` names all such objects")

    def pictures(self, rows: Iterable[Row], threads: int = 16) -> Iterator[tuple[Row, bytes]]:
        """Each row with its picture, in the order of `rows`, fetched by threads a little ahead of who takes them: at most twice as
        many pictures as threads are in memory. Rows without one are left out. ConsumerError as `picture`."""
        wanted = (row for row in rows if row["uri"] is not None)
        return map_ahead(lambda row: (row, self.picture(row)), wanted, threads)

    def changes_since(self, run_id: str) -> Iterator[Change]:
        """What was added, changed and withdrawn since an older run, which must still be in the store; in no order."""
        return changes(self.storage, open_run(self.storage, self.run.campaign, run_id).run, self.run)


@dataclass(frozen=True)
class PublishedRun(ManifestReader):
    """The run that the pointer named when it was opened; it stays this run when another is published."""

    pointer: Pointer


def open_published(storage: Storage, campaign: str) -> PublishedRun:
    """What the campaign's pointer names now; ConsumerError if nothing is published or run.json is not the one named."""
    for _ in range(_TRIES):
        pointer = read_published(storage, campaign)
        try:
            return _open_named(storage, campaign, pointer)
        except StoreError:
            raise
        except ConsumerError:  # published and removed while we read? Then the pointer is another by now
            if read_published(storage, campaign) == pointer:
                raise
    return _open_named(storage, campaign, read_published(storage, campaign))


def read_published(storage: Storage, campaign: str) -> Pointer:
    """The campaign's pointer; ConsumerError if it has none."""
    key = layout.pointer(campaign)
    data = _document(storage, key)
    if data is None:
        raise ConsumerError(
            f"{storage.address(key)}: campaign {campaign} has nothing published; check the store and the name, or publish a run"
        )
    return parse_document(Pointer, data, storage.address(key))


def _open_named(storage: Storage, campaign: str, pointer: Pointer) -> PublishedRun:
    try:
        run = open_run(storage, campaign, pointer.run_id).run
    except ConsumerError as error:
        raise ConsumerError(f"{error}, and {layout.pointer(campaign)} names it; `adgen rollback` publishes another run") from None
    if not run.has_manifest_digest(pointer.manifest_digest):
        raise ConsumerError(
            f"run {run.run_id}: its list of manifest files is not the one that was published; `adgen rollback` publishes another"
        )
    return PublishedRun(storage, run, pointer)


def open_run(storage: Storage, campaign: str, run_id: str) -> ManifestReader:
    """A sealed run, published or not; ConsumerError if it is not there, has no manifest yet, or is of a newer schema."""
    key = layout.run_document(campaign, run_id)
    data = _document(storage, key)
    if data is None:
        raise ConsumerError(f"{storage.address(key)}: there is no such run")
    run = parse_document(RunDocument, data, storage.address(key))
    if run.schema_version > MANIFEST_SCHEMA_VERSION:
        raise ConsumerError(newer_schema(storage.address(key), run.schema_version))
    if run.counts is None:
        raise ConsumerError(f"run {run_id} of campaign {campaign} is {run.state} and has no manifest yet")
    return ManifestReader(storage, run)


def _document(storage: Storage, key: str) -> bytes | None:
    piece = storage.get_range(key, 0, _MOST_DOCUMENT_BYTES)
    if piece is not None and piece.size > len(piece.data):
        raise ConsumerError(f"{storage.address(key)}: has {piece.size:,} bytes, which no such document has; it is not adgen's")
    return piece and piece.data
