"""`adgen import-clicks`: a click log as the table `histories`, in flat memory.

Rows are staged as Parquet with a hash bucket of their user; DuckDB then gathers the users of some buckets at a time. Events are
filtered, never weighted.
"""

import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adgen import records
from adgen.errors import SettingsError
from adgen.shop.inputs.feeds.columns import CLICK_COLUMNS, Columns, text_of
from adgen.shop.inputs.feeds.problems import Problems
from adgen.shop.inputs.feeds.rows import read_rows
from adgen.shop.inputs.feeds.sources import Source, sources_of
from adgen.shop.inputs.feeds.staging import local_folder, move_into, open_staged, quoted
from adgen.shop.inputs.feeds.times import microseconds

PROBLEMS_FILE = "click_problems.parquet"
BUCKETS = 256
ROWS_AT_ONCE = 500_000  # that DuckDB gathers: a list of each user's clicks is held in memory
_ROWS_PER_BATCH = 16_384
_EVENTS_SHOWN = 30
_STAGED = pa.schema(
    [
        ("bucket", pa.uint8()),
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
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target) as folder:
        staging = Path(folder)
        problems, summary = Problems(staging / PROBLEMS_FILE), ClickSummary()
        try:
            _Stage(staging, options, problems, summary).take_all(file)
            problems.check(summary.rows - summary.other_events, options.max_bad_share, file)
        finally:
            problems.close()
        _write_histories(staging, target / "products.parquet", options.max_clicks, summary)
        move_into(target, staging, [PROBLEMS_FILE, "histories.parquet"])
    summary.skipped, summary.repaired, summary.examples = dict(problems.skipped), dict(problems.repaired), problems.examples
    return summary


class _Stage:
    """Clicks as staged Parquet rows, in the order of the log."""

    def __init__(self, staging: Path, options: ClickOptions, problems: Problems, summary: ClickSummary):
        self._staging, self._options, self._problems, self._summary = staging, options, problems, summary
        self._columns = Columns(CLICK_COLUMNS, options.mapping)
        self._events = frozenset(event.casefold() for event in options.events)
        self._counts: Counter[str] = Counter()

    def take_all(self, file: str) -> None:
        """Stage every click of the log."""
        with pq.ParquetWriter(self._staging / "staged.parquet", _STAGED) as writer:
            rows: list[tuple[int, str, str, int | None]] = []
            for source in sources_of(file, self._staging):
                for click in self._clicks(source):
                    rows.append(click)
                    if len(rows) >= _ROWS_PER_BATCH:
                        writer.write_batch(_batch(rows))
                        rows = []
            if rows:
                writer.write_batch(_batch(rows))
        self._summary.events = dict(self._counts.most_common(_EVENTS_SHOWN))

    def _clicks(self, source: Source) -> Iterator[tuple[int, str, str, int | None]]:
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

    def _click(self, columns: Columns, line: int, row: dict[str, Any], report: Any) -> tuple[int, str, str, int | None] | None:
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
        time = columns.value(row, "clicked_at")
        try:
            moment = None if time is None else microseconds(time)
        except ValueError as error:
            report(line, "clicked_at", time, "bad_time", str(error))
            return None
        return zlib.crc32(ids["user_id"].encode("utf-8", "surrogatepass")) % BUCKETS, ids["user_id"], ids["product_id"], moment


def _batch(rows: list[tuple[int, str, str, int | None]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _STAGED, strict=True)], schema=_STAGED
    )


def _write_histories(staging: Path, products: Path, max_clicks: int, summary: ClickSummary) -> None:
    staged = f"read_parquet('{quoted(staging / 'staged.parquet')}', file_row_number = true)"
    count = pq.read_metadata(staging / "staged.parquet").num_rows
    step = max(1, BUCKETS * ROWS_AT_ONCE // max(count, 1))
    with pq.ParquetWriter(staging / "histories.parquet", records.HISTORIES) as writer, open_staged(staging) as base:
        for first in range(0, BUCKETS, step):
            query = (
                "SELECT user_id, list({'product_id': product_id, 'clicked_at': clicked_at} "
                f"ORDER BY clicked_at NULLS FIRST, file_row_number)[-{max_clicks}:] AS clicks "
                f"FROM {staged} WHERE bucket BETWEEN {first} AND {first + step - 1} GROUP BY user_id ORDER BY user_id"
            )
            for batch in base.sql(query).to_arrow_reader(_ROWS_PER_BATCH):
                writer.write_batch(batch.cast(records.HISTORIES))
                summary.users += batch.num_rows
                summary.clicks += len(batch.column("clicks").flatten())
        summary.older_clicks = count - summary.clicks
        if products.exists():
            known = f"SELECT product_id FROM read_parquet('{quoted(products)}')"
            query = f"SELECT count(*) FROM {staged} WHERE product_id NOT IN ({known})"
            summary.of_unknown_products = base.execute(query).fetchone()[0]
