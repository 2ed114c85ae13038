"""`adgen import-feed`: a product feed as the tables `products` and `offers`, in flat memory.

Rows are read as a stream into staging Parquet; DuckDB then takes the first of each product, a hash bucket at a time. Pictures that
lie on the web are fetched when asked for. Tables of before stay until the new ones are whole.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adgen import records
from adgen.errors import InputError, SettingsError
from adgen.progress import Progress
from adgen.shop.inputs.feeds.columns import PRODUCT_COLUMNS, Columns
from adgen.shop.inputs.feeds.offers import OFFERS
from adgen.shop.inputs.feeds.problems import Problems
from adgen.shop.inputs.feeds.product import DEFAULT_SCALE, REQUIRED, BadValue, Pictures, Reader
from adgen.shop.inputs.feeds.rows import Row, read_rows
from adgen.shop.inputs.feeds.shopify import NOT_FOR_SALE, is_shopify, one_row_a_product
from adgen.shop.inputs.feeds.sources import Source, sources_of
from adgen.shop.inputs.feeds.staging import TableWriter, check_places, local_folder, move_into, open_staged, quoted
from adgen.shop.inputs.tables import PICTURE_ROOTS
from adgen.shop.inputs.web.fetcher import Fetcher

PROBLEMS_FILE = "feed_problems.parquet"
WRITTEN = ("offers.parquet", PICTURE_ROOTS, PROBLEMS_FILE, "products.parquet")
ROWS_PER_BATCH = 4096
ROWS_PER_BUCKET = 1_000_000
STAGED = pa.schema([*records.PRODUCTS, *list(OFFERS)[1:], pa.field("file", pa.string()), pa.field("line", pa.int64())])
PicturePass = Callable[[Iterator[pa.RecordBatch], Problems], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class FeedOptions:
    """How a feed is read."""

    mapping: tuple[str, ...] = ()
    encoding: str | None = None
    locale: str | None = None
    currency: str | None = None
    scale: float = DEFAULT_SCALE
    max_bad_share: float = 0.1
    """Of rows that cannot be used; above it nothing is written."""

    def __post_init__(self):
        if not 0 < self.scale <= 1:
            raise SettingsError(f"--scale {self.scale}: is not above 0 and at most 1")
        if not 0 <= self.max_bad_share <= 1:
            raise SettingsError(f"--max-bad-share {self.max_bad_share}: is not a share from 0 to 1")


@dataclass
class FeedSummary:
    """What an import read, wrote, left out and repaired; every problem is a row of `feed_problems.parquet`."""

    rows: int = 0
    products: int = 0
    not_for_sale: int = 0
    on_the_web: int = 0
    """Products whose picture is still a link: the refresh goes to no web; `--fetch` fetches them."""
    skipped: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)


def import_feed(
    file: str,
    dest: str | Path,
    options: FeedOptions = FeedOptions(),
    picture_passes: Sequence[PicturePass] = (),
    fetcher: Fetcher | None = None,
    progress: Progress | None = None,
) -> FeedSummary:
    """Write products, offers and problems of the feed `file` (a file, a folder, s3://, https://) into the local folder `dest`.

    Each of `picture_passes` gives batches of products other pictures or cut-outs. InputError names file, line and column of what
    cannot be read, and says why where no row, or too few, can be used; the tables of before are then as they were.
    """
    target = local_folder(dest)
    check_places(file, target, WRITTEN)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target) as folder:
        staging = Path(folder)
        problems = Problems(staging / PROBLEMS_FILE)
        summary = FeedSummary()
        try:
            roots = _stage(sources_of(file, staging, fetcher), target, staging, options, problems, summary)
            summary.not_for_sale = problems.skipped.pop(NOT_FOR_SALE, 0)
            problems.check(summary.rows - summary.not_for_sale, options.max_bad_share, file)
            passes = [*picture_passes, *([partial(_advanced, progress, staging)] if progress else [])]
            _write_tables(staging, problems, summary, passes)
        finally:
            problems.close()
        _write_roots(staging, target, roots)
        move_into(target, staging, WRITTEN)
    summary.skipped, summary.repaired, summary.examples = dict(problems.skipped), dict(problems.repaired), problems.examples
    return summary


def _stage(
    sources: Iterator[Source], target: Path, staging: Path, options: FeedOptions, problems: Problems, summary: FeedSummary
) -> list[str]:
    """Write every row that is a product to staged.parquet; the folders outside of `target` where pictures lie."""
    columns, roots = Columns(PRODUCT_COLUMNS, options.mapping), []
    with pq.ParquetWriter(staging / "staged.parquet", STAGED) as writer:
        rows: list[dict[str, Any]] = []
        for source in sources:
            pictures = Pictures(source.folder, str(target))
            names, read_on = _rows_of(source, options, problems, summary)
            narrow = columns if is_shopify(names) else columns.within(source.name, names, REQUIRED)
            read = Reader(narrow, pictures, options.locale, options.currency, options.scale)
            for line, row in read_on:
                summary.rows += 1
                if product := _product(read, source, line, row, problems):
                    rows.append(product)
                if len(rows) >= ROWS_PER_BATCH:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, STAGED))
                    rows = []
            roots += [source.folder] if pictures.uses_folder and source.folder else []
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, STAGED))
    return roots


def _rows_of(
    source: Source, options: FeedOptions, problems: Problems, summary: FeedSummary
) -> tuple[list[str] | None, Iterator[Row]]:
    report = problems.of(source.name)

    def counted(*problem: Any, **more: Any) -> None:
        summary.rows += 1
        report(*problem, **more)

    names, rows = read_rows(source, counted, options.encoding)
    return names, one_row_a_product(rows, counted) if is_shopify(names) else rows


def _product(read: Reader, source: Source, line: int, row: dict[str, Any], problems: Problems) -> dict[str, Any] | None:
    def repaired(column: str, value: Any, reason: str, detail: str) -> None:
        problems.add(source.name, line, column, value, reason, detail, skipped=False)

    try:
        return read(row, repaired) | {"file": source.name, "line": line}
    except BadValue as error:
        problems.add(source.name, line, error.column, error.value, error.reason, str(error))
        return None


def _write_tables(staging: Path, problems: Problems, summary: FeedSummary, passes: Sequence[PicturePass]) -> None:
    with (
        TableWriter(staging / "products.parquet", records.PRODUCTS) as products,
        TableWriter(staging / "offers.parquet", OFFERS) as offers,
        open_staged(staging) as base,
    ):
        batches = _first_of_each(base, staging, problems)
        for each in passes:
            batches = each(batches, problems)
        for batch in batches:
            products.write_batch(batch.select(records.PRODUCTS.names).cast(records.PRODUCTS))
            offers.write_batch(batch.select(OFFERS.names).cast(OFFERS))
            summary.products += batch.num_rows
            summary.on_the_web += sum(1 for image in batch.column("image").to_pylist() if image.lower().startswith("https:"))


def _advanced(progress: Progress, staging: Path, batches: Iterator[pa.RecordBatch], _: Problems) -> Iterator[pa.RecordBatch]:
    progress.phase("products", pq.read_metadata(staging / "staged.parquet").num_rows)
    for batch in batches:
        progress.advance(batch.num_rows)
        yield batch


def _first_of_each(base: duckdb.DuckDBPyConnection, staging: Path, problems: Problems) -> Iterator[pa.RecordBatch]:
    """The first row of each product id, in the feed's order; the others are problems."""
    staged = staging / "staged.parquet"
    again, start = _repeated(base, staged), 0
    for batch in pq.ParquetFile(staged).iter_batches(ROWS_PER_BATCH):
        inside = again[slice(*np.searchsorted(again, (start, start + batch.num_rows)))] - start
        start += batch.num_rows
        for row in batch.take(pa.array(inside)).select(["file", "line", "product_id"]).to_pylist():
            detail = "the id was there before"
            problems.add(row["file"], row["line"], "product_id", row["product_id"], "duplicate_product", detail)
        kept = np.ones(batch.num_rows, bool)
        kept[inside] = False
        yield batch.filter(pa.array(kept))


def _repeated(base: duckdb.DuckDBPyConnection, staged: Path) -> np.ndarray:
    """The numbers of the rows whose product id an earlier row has, ascending; int64."""
    buckets = 1 + pq.read_metadata(staged).num_rows // ROWS_PER_BUCKET
    found = [np.zeros(0, np.int64)]
    for bucket in range(buckets):
        query = (
            f"SELECT file_row_number FROM read_parquet('{quoted(staged)}', file_row_number = true) "
            f"WHERE hash(product_id) % {buckets} = {bucket} "
            "QUALIFY row_number() OVER (PARTITION BY product_id ORDER BY file_row_number) > 1"
        )
        found += [batch.column(0).to_numpy().astype(np.int64) for batch in base.sql(query).to_arrow_reader(ROWS_PER_BATCH)]
    return np.sort(np.concatenate(found))


def _write_roots(staging: Path, target: Path, roots: list[str]) -> None:
    """The feed's folders beside those that an earlier import named."""
    try:
        before = json.loads((target / PICTURE_ROOTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        before = []
    except (OSError, ValueError) as error:
        raise InputError(f"{target / PICTURE_ROOTS}: not a JSON list of folders: {error}") from None
    found = list(dict.fromkeys([*before, *(os.path.abspath(root) if "://" not in root else root for root in roots)]))
    (staging / PICTURE_ROOTS).write_text(json.dumps(found), encoding="utf-8")
