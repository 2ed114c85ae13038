"""`adgen make-pairs`: which user gets a creative of which product, in flat memory.

All users x a campaign's products, each user's N products most similar to what the user clicked, or a given list.

Similarity is the mean cosine of a product's title with the titles of the user's clicks, by the hashed n-grams of the coarse step
(`shop/similarity.py`).
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adgen import records
from adgen.errors import InputError, SettingsError
from adgen.shop.inputs.feeds.columns import PAIR_COLUMNS, Columns, text_of
from adgen.shop.inputs.feeds.problems import Problems
from adgen.shop.inputs.feeds.rows import DELIMITERS, open_text, read_rows, text_lines
from adgen.shop.inputs.feeds.sources import Source, sources_of
from adgen.shop.inputs.feeds.staging import TableWriter, check_places, local_folder, move_into
from adgen.shop.inputs.tables import Inputs, open_inputs
from adgen.shop.similarity import EMBEDDING_SIZE, embed_titles

PROBLEMS_FILE = "pair_problems.parquet"
WRITTEN = (PROBLEMS_FILE, "pairs.parquet")
ROWS_AT_ONCE = 65_536
USERS_AT_ONCE = 256
PRODUCTS_AT_ONCE = 32_768


@dataclass(frozen=True)
class PairOptions:
    """Which pairs."""

    top: int | None = None
    """Products a user; None: all of the campaign's."""
    products: str | None = None
    """File with the campaign's products, a column product_id or one id a line; None: all of the table."""
    given: str | None = None
    """File with the pairs themselves."""
    mapping: tuple[str, ...] = ()
    locale: str | None = None
    """None: the product's."""
    channel: str | None = None
    max_pairs: int = 100_000_000
    max_bad_share: float = 0.1

    def __post_init__(self):
        if self.given and (self.top or self.products):
            raise SettingsError("--list names the pairs: it goes with neither --top nor --products")
        if self.top is not None and self.top < 1:
            raise SettingsError(f"--top {self.top}: is not 1 or more")


@dataclass
class PairSummary:
    """What was written; problems of a list or of the campaign's products are rows of `pair_problems.parquet`."""

    users: int = 0
    products: int = 0
    pairs: int = 0
    without_clicks: int = 0
    """Users whose clicks say nothing: they get the campaign's first products."""
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)


def make_pairs(inputs: str | Path, options: PairOptions) -> PairSummary:
    """Write pairs and problems into the local folder `inputs`, which has products and histories. InputError as the imports."""
    target = local_folder(inputs)
    check_places(options.given, target, WRITTEN)
    tables = open_inputs(str(target), ("products",) if options.given else ("products", "histories"))
    with tempfile.TemporaryDirectory(prefix=".import-", dir=target) as folder:
        staging = Path(folder)
        problems, summary = Problems(staging / PROBLEMS_FILE), PairSummary()
        try:
            products = ProductIndex(tables, options.locale)
            with TableWriter(staging / "pairs.parquet", records.PAIRS) as writer:
                made = _given if options.given else _crossed
                for batch in made(tables, products, options, problems, summary, staging):
                    summary.pairs += batch.num_rows
                    writer.write_batch(batch)
        finally:
            problems.close()
        move_into(target, staging, WRITTEN)
    summary.skipped, summary.examples = dict(problems.skipped), problems.examples
    return summary


class ProductIndex:
    """The table `products` by row: finds ids by a hash of 64 bits, 16 bytes a product, so that ten million fit."""

    def __init__(self, inputs: Inputs, locale: str | None):
        self._table, self._locale = inputs["products"], locale
        hashes = [np.zeros(0, np.uint64)]
        hashes += [_hashes(batch.column(0).to_pylist()) for batch in self._table.batches(["product_id"], ROWS_AT_ONCE)]
        found = np.concatenate(hashes)
        self._order = np.argsort(found, kind="stable").astype(np.uint32)
        self._sorted = found[self._order]
        self.size = len(found)

    def rows_of(self, ids: list[str | None]) -> np.ndarray:
        """Their rows in the table, -1 of those that are not there; int64."""
        wanted = _hashes(ids)
        places = np.minimum(np.searchsorted(self._sorted, wanted), self.size - 1)
        return np.where(self._sorted[places] == wanted, self._order[places].astype(np.int64), -1)

    def campaign(self, rows: np.ndarray | None) -> tuple[np.ndarray, pa.Array, pa.Array]:
        """(rows, ids, locales) of these rows, or of all, in the table's order."""
        kept, ids, locales, start = np.arange(self.size) if rows is None else np.unique(rows), [], [], 0
        for batch in self._table.batches(["product_id", "locale"], ROWS_AT_ONCE):
            inside = pa.array(kept[(kept >= start) & (kept < start + batch.num_rows)] - start)
            ids.append(batch.column(0).take(inside))
            locales.append(batch.column(1).take(inside))
            start += batch.num_rows
        given = pa.array([self._locale] * len(kept), pa.string()) if self._locale else pa.concat_arrays(locales)
        return kept, pa.concat_arrays(ids), given

    def embeddings(self, file: Path) -> np.ndarray:
        """(products, 256) float16 of the titles, in a file: the system keeps of it in memory what fits."""
        found = np.memmap(file, np.float16, "w+", shape=(self.size, EMBEDDING_SIZE))
        start = 0
        for batch in self._table.batches(["title"], 8192):
            found[start : start + batch.num_rows] = embed_titles(batch.column(0).to_pylist())
            start += batch.num_rows
        return found


def _hashes(ids: list[str | None]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b((each or "").encode("utf-8", "surrogatepass"), digest_size=8).digest() for each in ids)
    return np.frombuffer(digests, np.uint64)


# -- users x products --------------------------------------------------------------------------------------------------


def _crossed(
    tables: Inputs, products: ProductIndex, options: PairOptions, problems: Problems, summary: PairSummary, staging: Path
) -> Iterator[pa.RecordBatch]:
    rows, ids, locales = products.campaign(_campaign_rows(products, options, problems, staging))
    summary.products = len(rows)
    each = min(options.top or len(rows), len(rows))
    expected = tables["histories"].num_rows * each
    if expected > options.max_pairs:
        raise InputError(
            f"{tables['histories'].num_rows:,} users x {each:,} products are {expected:,} pairs, more than --max-pairs "
            f"{options.max_pairs:,}; say --top N, or name the campaign's products"
        )
    embeddings = products.embeddings(staging / "embeddings") if each < len(rows) else None
    for batch in tables["histories"].batches(["user_id", "clicks"], USERS_AT_ONCE):
        batch = batch.filter(pc.is_valid(batch.column(0)))
        summary.users += batch.num_rows
        if embeddings is None:
            yield from _all_of(batch.column(0), ids, locales, options.channel)
            continue
        tastes, clicked = _tastes(batch.column(1), products, embeddings)
        summary.without_clicks += int((~clicked).sum())
        best = _best(tastes, embeddings, rows, each)
        yield _pairs(
            pa.array(np.repeat(np.arange(batch.num_rows), each)),
            batch.column(0),
            pa.array(best.ravel()),
            ids,
            locales,
            options.channel,
        )


def _campaign_rows(products: ProductIndex, options: PairOptions, problems: Problems, staging: Path) -> np.ndarray | None:
    if options.products is None:
        return None
    rows, count = [], 0
    for source in sources_of(options.products, staging):
        wanted = _ids_of_lines(source)
        if wanted is None:
            names, read = read_rows(source, problems.of(source.name))
            columns = Columns(PAIR_COLUMNS, options.mapping).within(source.name, names, ("product_id",))
            wanted = [(line, text_of(columns.value(row, "product_id"))) for line, row in read]
        found = products.rows_of([each for _, each in wanted])
        for (line, each), row in zip(wanted, found, strict=True):
            if row < 0:
                problems.add(source.name, line, "product_id", each, "unknown_product", "it is not in the table products")
        rows.append(found[found >= 0])
        count += len(wanted)
    problems.check(count, options.max_bad_share, options.products)
    return np.concatenate(rows)


def _ids_of_lines(source: Source) -> list[tuple[int, str]] | None:
    """Each line's id with its number; None where the file has columns."""
    if source.kind() != "table":
        return None
    found = []
    with open_text(source) as text:
        for number, line in enumerate(text_lines(source, text), 1):
            if not found and any(delimiter in line for delimiter in DELIMITERS):
                return None
            if each := line.strip("\ufeff \r\n").strip('"'):
                found.append((number, each))
    return found[1:] if found[0][1].lower() in PAIR_COLUMNS["product_id"] else found


def _all_of(users: pa.Array, ids: pa.Array, locales: pa.Array, channel: str | None) -> Iterator[pa.RecordBatch]:
    step = max(1, ROWS_AT_ONCE // max(len(ids), 1))
    for first in range(0, len(users), step):
        some = users.slice(first, step)
        for start in range(0, len(ids), ROWS_AT_ONCE):
            places = np.arange(start, min(start + ROWS_AT_ONCE, len(ids)))
            who = pa.array(np.repeat(np.arange(len(some)), len(places)))
            yield _pairs(who, some, pa.array(np.tile(places, len(some))), ids, locales, channel)


def _pairs(who: pa.Array, users: pa.Array, what: pa.Array, ids: pa.Array, locales: pa.Array, channel: str | None) -> pa.RecordBatch:
    channels = pa.array([channel], pa.string()).take(pa.array(np.zeros(len(who), np.int64)))
    return pa.RecordBatch.from_arrays([users.take(who), ids.take(what), locales.take(what), channels], schema=records.PAIRS)


def _tastes(clicks: pa.Array, products: ProductIndex, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((users, 256) float32 mean embedding of each user's clicks, whether there are any that are known)."""
    flat = clicks.flatten()
    owner = np.asarray(pc.list_parent_indices(clicks))
    rows = products.rows_of(pc.struct_field(flat, "product_id").to_pylist())
    owner, rows = owner[rows >= 0], rows[rows >= 0]
    several, place = np.unique(rows, return_inverse=True)
    sums, counts = np.zeros((len(clicks), EMBEDDING_SIZE), np.float32), np.bincount(owner, minlength=len(clicks))
    np.add.at(sums, owner, embeddings[several].astype(np.float32)[place])
    return sums / np.maximum(counts, 1)[:, None], counts > 0


def _best(tastes: np.ndarray, embeddings: np.ndarray, rows: np.ndarray, each: int) -> np.ndarray:
    """(users, each) places in `rows` of the most similar products, the best first; of equal ones the table's first."""
    best = np.zeros((len(tastes), 0), np.int64)  # a score and its place in one number: partitioned, not sorted, by the million
    for start in range(0, len(rows), PRODUCTS_AT_ONCE):
        some = rows[start : start + PRODUCTS_AT_ONCE]
        scores = np.rint(-1000 * (tastes @ embeddings[some].astype(np.float32).T))  # no order of summation tips what is rounded
        keys = scores.astype(np.int64) << 32 | np.arange(start, start + len(some))
        best = np.concatenate([best, keys], axis=1)
        if best.shape[1] > each:
            best = np.partition(best, each - 1, axis=1)[:, :each]
    return np.sort(best, axis=1) & 0xFFFF_FFFF


# -- a list that somebody made -----------------------------------------------------------------------------------------


def _given(
    tables: Inputs, products: ProductIndex, options: PairOptions, problems: Problems, summary: PairSummary, staging: Path
) -> Iterator[pa.RecordBatch]:
    count = 0
    for source in sources_of(options.given or "", staging):
        report = problems.of(source.name)
        names, rows = read_rows(source, report)
        columns = Columns(PAIR_COLUMNS, options.mapping).within(source.name, names, ("user_id", "product_id"))
        batch: list[tuple[int, dict[str, str | None]]] = []
        for line, row in rows:
            count += 1
            texts = {name: text_of(columns.value(row, name)) or None for name in PAIR_COLUMNS}
            texts |= {"locale": texts["locale"] or options.locale, "channel": texts["channel"] or options.channel}
            missing = next((name for name in ("user_id", "product_id") if not texts[name]), None)
            if missing:
                report(line, missing, None, f"missing_{missing}", "")
            else:
                batch.append((line, texts))
            if len(batch) >= ROWS_AT_ONCE:
                yield _known(batch, products, report)
                batch = []
        if batch:
            yield _known(batch, products, report)
    problems.check(
        count + problems.skipped["not_json"] + problems.skipped["wrong_number_of_cells"], options.max_bad_share, str(options.given)
    )


def _known(batch: list[tuple[int, dict[str, str | None]]], products: ProductIndex, report) -> pa.RecordBatch:
    found = products.rows_of([texts["product_id"] for _, texts in batch])
    for (line, texts), row in zip(batch, found, strict=True):
        if row < 0:
            report(line, "product_id", texts["product_id"], "unknown_product", "it is not in the table products")
    return pa.RecordBatch.from_pylist([texts for (_, texts), row in zip(batch, found, strict=True) if row >= 0], records.PAIRS)
