"""The plan and the journal of a run: what is to be done, and what is done, shard by shard.

`plan.json` commits the plan. A shard is done when its journal part exists; that part is created by one conditional PUT
after everything it names, so a worker may die anywhere, and any number of workers may do the same shard.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from adgen.creatives import layout
from adgen.creatives.documents import Plan, PlanPart, parse_document, utc_now
from adgen.creatives.storage import Storage, Taken
from adgen.errors import RunError, StoreError
from adgen.records import LINEAGE, MANIFEST, with_later_columns

_LINEAGE_KEY = b"adgen.lineage"


class Journal:
    """A run's plan and journal. Holds no connection of its own and no lock: pickle it to the workers."""

    def __init__(self, storage: Storage, campaign: str, run_id: str):
        self.storage = storage
        self.campaign = layout.checked_campaign(campaign)
        self.run_id = layout.checked_run_id(run_id)
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
    ) -> Plan:
        """Create plan.json, after the last part. RunError if the parts are not numbered 0, 1, 2, ..."""
        parts = tuple(sorted(parts, key=lambda part: part.index))
        if [part.index for part in parts] != list(range(len(parts))):
            raise RunError(f"run {self.run_id}: its {len(parts)} plan parts are not numbered from 0 without a gap")
        plan = Plan(
            parts=parts,
            settings_digest=settings_digest,
            inputs=inputs,
            base_run=base_run,
            pointer_etag=pointer_etag,
            pointer_generation=pointer_generation,
            created_at=utc_now(),
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
        if self._last_read and self._last_read[0] == part:
            return self._last_read[1]
        key = layout.plan_part(self.campaign, self.run_id, part.index, part.sha256)
        data = self.storage.read(key)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise RunError(f"{self.storage.address(key)}: is not what plan.json committed; start a new run")
        table = from_parquet(data)
        self._last_read = (part, table)
        return table

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

        RunError, and nothing written, where the rows' (pair_id, variant) are not exactly the plan part's; a plan part
        without a column `variant` means variant 0. `lineage` (records.LINEAGE) is written before the commit.
        """
        rows = _with_schema(rows, MANIFEST, f"rows of shard {part.index}")
        self._compare_with_plan(part, rows)
        if lineage is not None:
            data = to_parquet(_with_schema(lineage, LINEAGE, f"lineage of shard {part.index}"))
            sha256 = hashlib.sha256(data).hexdigest()
            key = layout.lineage_part(self.campaign, self.run_id, part.index, sha256)
            self.storage.put(key, data)
            rows = rows.replace_schema_metadata({_LINEAGE_KEY: key.encode()})
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

    def _folder(self) -> str:
        return layout.journal(self.campaign, self.run_id)

    def _compare_with_plan(self, part: PlanPart, rows: pa.Table) -> None:
        planned, made = _row_keys(self.read_plan_part(part)), _row_keys(rows)
        if planned == made:
            return
        missing, extra = planned - made, made - planned
        examples = [f"missing {key}" for key in list(missing)[:3]] + [f"not planned {key}" for key in list(extra)[:3]]
        raise RunError(
            f"shard {part.index} of run {self.run_id}: its rows are not the plan's: {missing.total()} missing, "
            f"{extra.total()} not planned or twice ({'; '.join(examples)}); this is a fault of the pipeline"
        )


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


def from_parquet(data: bytes) -> pa.Table:
    """The table in one Parquet file."""
    # Without Arrow's threads: a process that ends while they are starting or stopping is now and then aborted (one `adgen pull` of
    # forty on a busy machine), and workers share the cores among themselves already.
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(use_threads=False)
