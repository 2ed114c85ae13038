"""`adgen import-clicks`: a click log as the table `histories`, in flat memory.

Rows are staged as Parquet, which DuckDB sorts by user and time, a hash bucket of users at a time and on disk where it must: neither
many users nor one with most of the clicks (a crawler, "anonymous") need more memory. Events are filtered, never weighted.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adgen import records
from adgen.errors import InputError, SettingsError
from adgen.shop.inputs.feeds.columns import CLICK_COLUMNS, Columns, text_of
from adgen.shop.inputs.feeds.problems import Problems
from adgen.shop.inputs.feeds.rows import read_rows
from adgen.shop.inputs.feeds.sources import Source, sources_of
from adgen.shop.inputs.feeds.staging import TableWriter, check_places, local_folder, move_into, open_staged, quoted
from adgen.shop.inputs.feeds.times import microseconds
from adgen.shop.inputs.tables import InputTable, open_inputs

PROBLEMS_FILE = "click_problems.parquet"
WRITTEN = (PROBLEMS_FILE, "histories.parquet")
ROWS_AT_ONCE = 65_536
ROWS_PER_BUCKET = 1_000_000
_ROWS_PER_BATCH = 16_384
_EVENTS_SHOWN = 30
_DAY = 86_400 * 1_000_000
_STAGED = pa.schema(
    [
        ("user_id", pa.string()),
        ("product_id", pa.string()),
        ("clicked_at", pa.timestamp("us")),
    ]
)


@dataclass(frozen=True)
class ClickOptions:
    """How a log is read."""

    mapping: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    """Those that count as clicks; none: all."""
    max_clicks: int = 1000
    """Of one user, the newest: a crawler has no taste."""
    encoding: str | None = None
    max_bad_share: float = 0.1

    def __post_init__(self):
        if self.max_clicks < 1:
            raise SettingsError(f"--max-clicks {self.max_clicks}: is not 1 or more")
        if not 0 <= self.max_bad_share <= 1:
            raise SettingsError(f"--max-bad-share {self.max_bad_share}: is not a share from 0 to 1")


@dataclass
class ClickSummary:
    """What an import read, wrote and left out; every problem is a row of `click_problems.parquet`."""

    rows: int = 0
    users: int = 0
    clicks: int = 0
    other_events: int = 0
    older_clicks: int = 0
    """Left out beyond the newest `max_clicks` of a user."""
    of_unknown_products: int | None = None
    """Clicks on what is not in the table `products`: they count once it is. None: there is no such table yet."""
    events: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)


def import_clicks(file: str, dest: str | Path, options: ClickOptions = ClickOptions()) -> ClickSummary:
    """Write histories and problems of the log `file` (a file, a folder, s3://) into the local folder `dest`.

    InputError names file, line and column of what cannot be read, and says why where no row, or too few, can be used; the table of
    before is then as it was.
    """
    target = local_folder(dest)
    check_places(file, target, WRITTEN)
    products = open_inputs(str(target), (), optional=("products",)).tables.get("products")
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target) as folder:
        staging = Path(folder)
        problems, summary = Problems(staging / PROBLEMS_FILE), ClickSummary()
        try:
            _Stage(staging, options, problems, summary).take_all(file)
            _check_events(file, options, summary)
            problems.check(summary.rows - summary.other_events, options.max_bad_share, file)
        finally:
            problems.close()
        _write_histories(staging, products, options.max_clicks, summary)
        move_into(target, staging, WRITTEN)
    summary.skipped, summary.repaired, summary.examples = dict(problems.skipped), dict(problems.repaired), problems.examples
    return summary


def _check_events(file: str, options: ClickOptions, summary: ClickSummary) -> None:
    """InputError where --events leaves no row."""
    if summary.rows and summary.rows == summary.other_events:
        found = ", ".join(f"{event} {count}" for event, count in summary.events.items()) or "none"
        wanted = " ".join(options.events)
        raise InputError(f"{file}: none of its {summary.rows} rows has an event of --events {wanted}; found: {found}")


class _Stage:
    """Clicks as staged Parquet rows, in the order of the log."""

    def __init__(self, staging: Path, options: ClickOptions, problems: Problems, summary: ClickSummary):
        self._staging, self._options, self._problems, self._summary = staging, options, problems, summary
        self._columns = Columns(CLICK_COLUMNS, options.mapping)
        self._events = frozenset(event.casefold() for event in options.events)
        self._counts: Counter[str] = Counter()
        self._tomorrow = int(time.time() * 1_000_000) + _DAY

    def take_all(self, file: str) -> None:
        """Stage every click of the log."""
        with pq.ParquetWriter(self._staging / "staged.parquet", _STAGED) as writer:
            rows: list[tuple[str, str, int | None]] = []
            for source in sources_of(file, self._staging):
                for click in self._clicks(source):
                    rows.append(click)
                    if len(rows) >= _ROWS_PER_BATCH:
                        writer.write_batch(_batch(rows))
                        rows = []
            if rows:
                writer.write_batch(_batch(rows))
        self._summary.events = dict(self._counts.most_common(_EVENTS_SHOWN))

    def _clicks(self, source: Source) -> Iterator[tuple[str, str, int | None]]:
        report = self._problems.of(source.name)

        def counted(*problem: Any, **more: Any) -> None:
            self._summary.rows += 1
            report(*problem, **more)

        names, rows = read_rows(source, counted, self._options.encoding)
        columns = self._columns.within(source.name, names, ("user_id", "product_id", *(["event"] if self._events else [])))
        for line, row in rows:
            self._summary.rows += 1
            if click := self._click(columns, line, row, report):
                yield click

    def _click(self, columns: Columns, line: int, row: dict[str, Any], report: Any) -> tuple[str, str, int | None] | None:
        event = text_of(columns.value(row, "event"))
        if event and (event in self._counts or len(self._counts) < 10 * _EVENTS_SHOWN):
            self._counts[event] += 1
        if self._events and event.casefold() not in self._events:
            self._summary.other_events += 1
            return None
        ids = {}
        for column in ("user_id", "product_id"):
            ids[column] = text_of(columns.value(row, column))
            if not ids[column] or "\ufffd" in ids[column]:
                report(line, column, ids[column], f"missing_{column}" if not ids[column] else "bad_text", "")
                return None
        clicked_at = columns.value(row, "clicked_at")
        try:
            moment = None if clicked_at is None else microseconds(clicked_at)
        except ValueError as error:
            report(line, "clicked_at", clicked_at, "bad_time", str(error))
            return None
        if moment is not None and moment > self._tomorrow:
            report(line, "clicked_at", clicked_at, "future_time", "later than tomorrow; kept as it is", skipped=False)
        return ids["user_id"], ids["product_id"], moment


def _batch(rows: list[tuple[str, str, int | None]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _STAGED, strict=True)], schema=_STAGED
    )


def _write_histories(staging: Path, products: InputTable | None, max_clicks: int, summary: ClickSummary) -> None:
    staged = f"read_parquet('{quoted(staging / 'staged.parquet')}', file_row_number = true)"
    count = pq.read_metadata(staging / "staged.parquet").num_rows
    buckets = 1 + count // ROWS_PER_BUCKET
    with TableWriter(staging / "histories.parquet", records.HISTORIES) as writer, open_staged(staging) as base:
        for bucket in range(buckets):
            query = (
                f"SELECT user_id, product_id, clicked_at FROM {staged} WHERE hash(user_id) % {buckets} = {bucket} "
                "ORDER BY user_id, clicked_at NULLS FIRST, file_row_number"
            )
            for batch in _by_user(base.sql(query).to_arrow_reader(ROWS_AT_ONCE), max_clicks):
                writer.write_batch(batch)
                summary.users += batch.num_rows
                summary.clicks += len(batch.column("clicks").flatten())
        summary.older_clicks = count - summary.clicks
        if products:
            summary.of_unknown_products = _of_unknown(base, staged, products)


def _by_user(batches: Iterable[pa.RecordBatch], max_clicks: int) -> Iterator[pa.RecordBatch]:
    """Rows of histories from clicks sorted by user and time; of each user the last `max_clicks`."""
    waiting: pa.RecordBatch | None = None  # the last user's, who may go on in the next batch
    for batch in batches:
        rows = batch if waiting is None else pa.concat_batches([waiting, batch])
        users = rows.column("user_id")
        starts = np.flatnonzero(np.r_[True, pc.not_equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)])
        if len(starts) > 1:
            yield _histories(rows.slice(0, starts[-1]), starts, max_clicks)
        waiting = rows.slice(max(starts[-1], len(users) - max_clicks))
    if waiting is not None:
        yield _histories(waiting, np.array([0, len(waiting)]), max_clicks)


def _histories(rows: pa.RecordBatch, bounds: np.ndarray, max_clicks: int) -> pa.RecordBatch:
    """`bounds`: where each user's clicks begin, and where the last one's end."""
    counts = np.minimum(np.diff(bounds), max_clicks)
    offsets = np.r_[0, np.cumsum(counts)]
    kept = rows.take(pa.array(np.arange(offsets[-1]) + np.repeat(bounds[1:] - offsets[1:], counts)))
    moments = kept.column("clicked_at").cast(records.CLICK.field("clicked_at").type)
    clicks = pa.StructArray.from_arrays([kept.column("product_id"), moments], fields=list(records.CLICK))
    users = rows.column("user_id").take(pa.array(bounds[:-1]))
    return pa.RecordBatch.from_arrays(
        [users, pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), clicks, records.HISTORIES.field("clicks").type)],
        schema=records.HISTORIES,
    )


def _of_unknown(base: duckdb.DuckDBPyConnection, staged: str, products: InputTable) -> int:
    failed: list[InputError] = []
    base.register("known", products.reader(["product_id"], failed))
    try:
        return base.execute(f"SELECT count(*) FROM {staged} ANTI JOIN known USING (product_id)").fetchone()[0]
    except duckdb.Error as error:
        raise failed[0] if failed else error from None
