"""The plan and the journal of a run: what is to be done, and what is done, shard by shard.

`plan.json` commits the plan. A shard is done when its journal part exists; that part is created by one conditional PUT
after everything it names, so a worker may die anywhere, and any number of workers may do the same shard: each of its rows is
published exactly once.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adgen.creatives import layout
from adgen.creatives.documents import Plan, PlanPart, parse_document, utc_now
from adgen.creatives.storage import Storage, Taken
from adgen.creatives.tombstones import Tombstones, hashes_digest
from adgen.errors import RunError, StoreError
from adgen.records import LINEAGE, MANIFEST, with_later_columns

_LINEAGE_KEY = b"adgen.lineage"
_FORGOTTEN_KEY = b"adgen.forgotten"  # how many planned rows a part lacks
_PARTS_AT_ONCE = 16


class Journal:
    """A run's plan and journal. Holds no connection of its own and no lock: pickle it to the workers.

    With `tombstones`, every commit reads them again and leaves out the users who were forgotten since.
    """

    def __init__(self, storage: Storage, campaign: str, run_id: str, tombstones: Tombstones | None = None):
        self.storage = storage
        self.campaign = layout.checked_campaign(campaign)
        self.run_id = layout.checked_run_id(run_id)
        self.tombstones = tombstones
        self._last_read: tuple[PlanPart, pa.Table] | None = None

    def write_plan_part(self, index: int, pairs: pa.Table, kind: str = "generate") -> PlanPart:
        """Store one shard's pairs (any columns, one of them pair_id); its entry for `commit_plan`."""
        if "pair_id" not in pairs.column_names:
            raise RunError(f"plan part {index} has no column pair_id; it has {', '.join(pairs.column_names)}")
        data = to_parquet(pairs)
        sha256 = hashlib.sha256(data).hexdigest()
        self.storage.put(layout.plan_part(self.campaign, self.run_id, index, sha256), data)
        return PlanPart(index=index, rows=pairs.num_rows, bytes=len(data), sha256=sha256, kind=kind)

    def commit_plan(
        self,
        parts: Iterable[PlanPart],
        *,
        settings_digest: str,
        inputs: dict[str, str],
        base_run: str | None,
        pointer_etag: str | None,
        pointer_generation: int,
        forgotten: Collection[str] = (),
    ) -> Plan:
        """Create plan.json, after the last part. RunError if the parts are not numbered 0, 1, 2, ...

        `forgotten` are the tombstones that the rows were planned without; where there are others by now, the parts are
        written again without those users.
        """
        parts = tuple(sorted(parts, key=lambda part: part.index))
        if [part.index for part in parts] != list(range(len(parts))):
            raise RunError(f"run {self.run_id}: its {len(parts)} plan parts are not numbered from 0 without a gap")
        known = self.tombstones.hashes() if self.tombstones else frozenset(forgotten)
        if known - set(forgotten):
            parts = self._without_forgotten(parts)
        plan = Plan(
            parts=parts,
            settings_digest=settings_digest,
            inputs=inputs,
            base_run=base_run,
            pointer_etag=pointer_etag,
            pointer_generation=pointer_generation,
            created_at=utc_now(),
            forgotten=hashes_digest(known),
        )
        key = layout.plan_document(self.campaign, self.run_id)
        try:
            self.storage.create(key, plan.to_bytes())
        except StoreError as error:
            stored = self.storage.get(key)
            if stored is None or stored.data != plan.to_bytes():
                raise StoreError(f"{self.storage.address(key)}: another driver planned this run; {error}") from None
        return plan

    def read_plan(self) -> Plan:
        """The committed plan; StoreError if there is none."""
        key = layout.plan_document(self.campaign, self.run_id)
        return parse_document(Plan, self.storage.read(key), self.storage.address(key))

    def read_plan_part(self, part: PlanPart) -> pa.Table:
        """The shard's pairs; RunError if they are not the bytes that the plan committed."""
        last = self._last_read  # one look: threads share the journal
        if last and last[0] == part:
            return last[1]
        table = self._read_verified(part)
        self._last_read = (part, table)
        return table

    def _read_verified(self, part: PlanPart) -> pa.Table:
        key = layout.plan_part(self.campaign, self.run_id, part.index, part.sha256)
        data = self.storage.read(key)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise RunError(f"{self.storage.address(key)}: is not what plan.json committed; start a new run")
        return from_parquet(data)

    def done(self) -> set[int]:
        """Numbers of the shards that have a journal part, by listing."""
        indexes = (layout.journal_index(entry.key) for entry in self.storage.entries(self._folder()))
        return {index for index in indexes if index is not None}

    def unfinished(self, plan: Plan | None = None) -> list[PlanPart]:
        """Plan parts without journal part, by number."""
        done = self.done()
        return [part for part in (plan or self.read_plan()).parts if part.index not in done]

    def commit_part(self, part: PlanPart, rows: pa.Table, lineage: pa.Table | None = None) -> bool:
        """Make `rows` (records.MANIFEST) the shard's result; False if another worker's result is there already.

        RunError, and nothing written, where the rows' (pair_id, variant) are not exactly the plan part's less those of users
        forgotten since; a plan part without a column `variant` means variant 0. `lineage` (records.LINEAGE) is written
        before the commit.
        """
        rows = _with_schema(rows, MANIFEST, f"rows of shard {part.index}")
        planned = self.read_plan_part(part)
        gone = self.forgotten_pairs_of(planned)
        rows, planned = without_pairs(rows, gone), without_pairs(planned, gone)
        self._compare_with_plan(part, planned, rows)
        metadata = {_FORGOTTEN_KEY: str(part.rows - planned.num_rows).encode()} if gone else {}
        if lineage is not None:
            lineage = without_pairs(lineage, gone)
            data = to_parquet(_with_schema(lineage, LINEAGE, f"lineage of shard {part.index}"))
            sha256 = hashlib.sha256(data).hexdigest()
            key = layout.lineage_part(self.campaign, self.run_id, part.index, sha256)
            self.storage.put(key, data)
            metadata[_LINEAGE_KEY] = key.encode()
        rows = rows.replace_schema_metadata(metadata)
        try:
            self.storage.create(layout.journal_part(self.campaign, self.run_id, part.index), to_parquet(rows))
        except Taken:
            return False
        return True

    def read_part(self, index: int) -> pa.Table:
        """The committed rows of a shard (records.MANIFEST); StoreError if it has none."""
        return self._read_table(layout.journal_part(self.campaign, self.run_id, index), MANIFEST)

    def read_lineage(self, index: int) -> pa.Table | None:
        """The lineage that the shard's committed rows name; None if they were committed without."""
        metadata = self.read_part(index).schema.metadata or {}
        key = metadata.get(_LINEAGE_KEY)
        return self._read_table(key.decode(), LINEAGE) if key else None

    def _read_table(self, key: str, schema: pa.Schema) -> pa.Table:
        try:
            return with_later_columns(from_parquet(self.storage.read(key)), schema)
        except ValueError as error:
            raise StoreError(f"{self.storage.address(key)}: {error}") from None

    def forgotten_users(self, users: Iterable[str]) -> set[str]:
        """Which of the users are forgotten now."""
        return self.tombstones.among(users) if self.tombstones else set()

    def forgotten_pairs_of(self, planned: pa.Table) -> set[str]:
        """Pairs of a plan part whose users are forgotten now."""
        named = "user_id" in planned.column_names
        return pairs_of(planned, self.forgotten_users(pc.unique(planned["user_id"]).to_pylist())) if named else set()

    def forgotten_pairs(self, plan: Plan) -> set[str]:
        """Pairs of the plan whose users were forgotten since it was committed; reads it through only when somebody was."""
        hashes = self.tombstones.hashes() if self.tombstones else frozenset()
        if not hashes or hashes_digest(hashes) == plan.forgotten:
            return set()
        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            return set().union(*pool.map(lambda part: self.forgotten_pairs_of(self._read_verified(part)), plan.parts))

    def _without_forgotten(self, parts: tuple[PlanPart, ...]) -> tuple[PlanPart, ...]:
        """The parts written again without the users who were forgotten since they were made; none is left empty."""
        kept: list[PlanPart] = []
        for part in parts:
            before = self.read_plan_part(part)
            table = without_pairs(before, self.forgotten_pairs_of(before))
            if table.num_rows:
                same = part.index == len(kept) and table.num_rows == before.num_rows
                kept.append(part if same else self.write_plan_part(len(kept), table, part.kind))
        names = {layout.plan_part(self.campaign, self.run_id, part.index, part.sha256) for part in kept}
        for part in parts:
            if (key := layout.plan_part(self.campaign, self.run_id, part.index, part.sha256)) not in names:
                self.storage.delete(key)
        return tuple(kept)

    def _folder(self) -> str:
        return layout.journal(self.campaign, self.run_id)

    def _compare_with_plan(self, part: PlanPart, plan: pa.Table, rows: pa.Table) -> None:
        if _same_rows(plan, rows):
            return
        planned, made = _row_keys(plan), _row_keys(rows)
        if planned == made:
            return
        missing, extra = planned - made, made - planned
        examples = [f"missing {key}" for key in list(missing)[:3]] + [f"not planned {key}" for key in list(extra)[:3]]
        raise RunError(
            f"shard {part.index} of run {self.run_id}: its rows are not the plan's: {missing.total()} missing, "
            f"{extra.total()} not planned or twice ({'; '.join(examples)}); this is a fault of the pipeline"
        )


def pairs_of(table: pa.Table, users: Collection[str]) -> set[str]:
    """The pair_ids of those users' rows in a table that names users."""
    found = table.filter(pc.is_in(table["user_id"], value_set=pa.array(sorted(users), pa.string()))) if users else table.slice(0, 0)
    return set(found["pair_id"].to_pylist())


def without_pairs(table: pa.Table, pairs: Collection[str]) -> pa.Table:
    """The table without the rows of those pairs."""
    if not pairs:
        return table
    return table.filter(pc.invert(pc.is_in(table["pair_id"], value_set=pa.array(sorted(pairs), pa.string()))))


def planned_rows(table: pa.Table) -> int:
    """How many rows the plan had for a committed part: those that are there and those of users forgotten since."""
    return table.num_rows + int((table.schema.metadata or {}).get(_FORGOTTEN_KEY, b"0"))


def _same_rows(plan: pa.Table, rows: pa.Table) -> bool:
    """Whether the keys are the same in the same order, as they are unless variants were carried: found without Python objects."""
    if "variant" not in plan.column_names:
        return False
    return plan["pair_id"].equals(rows["pair_id"]) and plan["variant"].cast(pa.int32()).equals(rows["variant"])


def _row_keys(table: pa.Table) -> Counter:
    variants = table["variant"].to_pylist() if "variant" in table.column_names else [0] * table.num_rows
    return Counter(zip(table["pair_id"].to_pylist(), variants, strict=True))


def _with_schema(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    if table.schema.names != schema.names:
        raise RunError(f"{what}: columns are {table.schema.names}, must be {schema.names}")
    try:
        table = table.cast(schema)
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise RunError(f"{what}: {error}") from None
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise RunError(f"{what}: column {field.name} has nulls")
    return table


def to_parquet(table: pa.Table) -> bytes:
    """The table as one Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def from_parquet(data: bytes, columns: Collection[str] | None = None) -> pa.Table:
    """The table in one Parquet file; of `columns` those that it has."""
    # Without Arrow's threads: a process that ends while they are starting or stopping is now and then aborted (one `adgen pull` of
    # forty on a busy machine), and workers share the cores among themselves already.
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(columns and [name for name in file.schema_arrow.names if name in columns], use_threads=False)
