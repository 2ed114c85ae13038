"""The synthetic shop: the embedded data of demo, tests and training, with its hidden truth.

`styles.parquet` says which style each product's picture has and which each user likes; evaluation reads it, nothing
else may. The same arguments give the same bytes on the same machine and library versions, in any number of processes.
"""

import json
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adgen import records
from adgen.errors import SettingsError
from adgen.shop.inputs.locations import is_s3, local_path
from adgen.shop.synthetic import people
from adgen.shop.synthetic.draws import draw, key_for, unit
from adgen.shop.synthetic.grammar import TONES
from adgen.shop.synthetic.shop import ProductLook, ReferenceLook, Shop
from adgen.shop.synthetic.styles import TEN, StyleSet

SPLITS = ("train", "eval")
TRUTH = pa.schema([("entity", pa.string()), ("id", pa.string()), ("styles", pa.list_(pa.string())), ("tone", pa.string())])
USERS_PER_BATCH = 20_000
PICTURES_PER_BATCH = 1000
PICTURES_A_PROCESS = 100  # drawing them takes about as long as starting one
_FIRST_CLICK = 1_767_225_600  # 2026-01-01, in seconds
_CLICK_DAYS = 120


@dataclass(frozen=True)
class SynthSummary:
    """What was written."""

    users: int
    products: int
    pairs: int
    references: int
    clicks: int
    pictures: int
    picture_bytes: int


def synthesize(
    dest: str | Path,
    num_users: int,
    num_products: int,
    num_pairs: int | None = None,
    seed: int = 0,
    split: str | None = None,
    num_references: int | None = None,
    picture_side: int = 256,
    workers: int = 1,
    styles: StyleSet = TEN,
    words: str = "shop",
    clicks: tuple[int, int] = (people.MIN_CLICKS, people.MAX_CLICKS),
) -> SynthSummary:
    """Write a shop into the local folder `dest`: four tables, pictures, cut-outs, references, `styles.parquet`.

    `num_pairs` defaults to four a user, `num_references` (drawn creatives, spread over all users first) to the pairs,
    at most 2000. `split` train or eval keeps to its own users, products and (kind, colour, pattern) combinations.
    `styles` and `words` ("shop": a grammar of a few hundred; "open": any; "mixed") say how much there is to see and to read;
    `clicks`: fewest and most of a user.
    `workers` > 1 draws in so many processes at most, where there is enough to draw; the bytes stay the same. SettingsError for
    counts out of range.
    """
    if is_s3(str(dest)):
        raise SettingsError(f"synth writes to a local folder, not to {dest}; copy it there afterwards")
    pairs = min(4, num_products) * num_users if num_pairs is None else num_pairs
    references = min(pairs, 2000) if num_references is None else num_references
    shop = Shop(
        Path(local_path(str(dest))), seed, split, num_users, num_products, pairs, references, picture_side, styles, words, clicks
    )
    _check(shop)
    _clear_tables(shop.dest)
    catalog = people.make_catalog(seed, split, num_products, styles, words)
    workers = min(workers, (num_products + references) // PICTURES_A_PROCESS)
    with tempfile.TemporaryDirectory(prefix=".synth-", dir=shop.dest) as staging, _drawing(workers) as run:
        writers = _Tables(Path(staging))
        picture_bytes = _write_products(shop, catalog, writers, run)
        opened = 0
        for users in _user_batches(num_users):
            tastes = people.make_tastes(seed, split, users, num_products, styles, clicks)
            opened += _write_histories(shop, catalog, writers, users, tastes)
            _write_pairs(shop, catalog, writers, users)
            picture_bytes += _write_references(shop, catalog, writers, users, run)
        writers.close()
        (Path(staging) / "shop.json").write_text(_describe(shop))
        # The tables come last: a shop cut short has none, and can't be opened. Of them references do: where they lie, all do.
        for file in sorted(Path(staging).iterdir(), key=lambda file: (file.stem == "references", file.name)):
            shutil.move(file, shop.dest / file.name)
    return SynthSummary(num_users, num_products, pairs, references, opened, 2 * num_products + references, picture_bytes)


def _check(shop: Shop) -> None:
    for name in ("num_users", "num_products", "num_pairs"):
        if getattr(shop, name) < 1:
            raise SettingsError(f"synth: {name}: expected at least 1, found {getattr(shop, name)}")
    if shop.num_pairs > shop.num_users * shop.num_products:
        limit = f"{shop.num_users} users x {shop.num_products} products"
        raise SettingsError(f"synth: num_pairs: {shop.num_pairs} is more than {limit}; each pair is made once")
    if not 0 <= shop.num_references <= shop.num_pairs:
        raise SettingsError(f"synth: num_references: expected 0..{shop.num_pairs}, found {shop.num_references}")
    if shop.split is not None and shop.split not in SPLITS:
        raise SettingsError(f"synth: split: expected one of {', '.join(SPLITS)}, found {shop.split!r}")
    if shop.words not in people.OPEN_WORDS:
        raise SettingsError(f"synth: words: expected one of {', '.join(people.OPEN_WORDS)}, found {shop.words!r}")
    if not 0 <= shop.clicks[0] <= shop.clicks[1] <= people.MAX_CLICKS:
        raise SettingsError(f"synth: clicks: expected two numbers from 0 to {people.MAX_CLICKS}, found {shop.clicks}")
    if not 16 <= shop.side <= 2048:
        raise SettingsError(f"synth: picture_side: expected 16..2048, found {shop.side}")


def _clear_tables(dest: Path) -> None:
    dest.mkdir(parents=True, exist_ok=True)
    for name in [*records.INPUT_TABLES, "styles"]:
        (dest / f"{name}.parquet").unlink(missing_ok=True)


def _describe(shop: Shop) -> str:
    settings = {name: value for name, value in vars(shop).items() if name not in ("dest", "styles", "words", "clicks")}
    settings |= {name: getattr(shop, name) for name in ("words", "clicks") if getattr(shop, name) != getattr(Shop, name)}
    words = {"styles": shop.styles.names, "kinds": people.KIND_NAMES, "tones": TONES}
    return json.dumps(settings | words, indent=1) + "\n"


class _Tables:
    """The shop's Parquet files, written batch by batch."""

    def __init__(self, folder: Path):
        schemas = records.INPUT_TABLES | {"styles": TRUTH}
        self._writers = {name: pq.ParquetWriter(folder / f"{name}.parquet", schemas[name]) for name in schemas}

    def add(self, table: str, columns: dict[str, pa.Array | list]) -> None:
        schema = self._writers[table].schema
        size = len(next(iter(columns.values())))
        arrays = [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(size, field.type) for field in schema
        ]
        self._writers[table].write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


@contextmanager
def _drawing(workers: int) -> Iterator[Callable]:
    """A `map` over pictures, in order: in `workers` processes, or in this one when that is 1."""
    if workers <= 1:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield partial(pool.imap, chunksize=16)


def _user_batches(num_users: int) -> Iterator[np.ndarray]:
    for start in range(0, num_users, USERS_PER_BATCH):
        yield np.arange(start, min(start + USERS_PER_BATCH, num_users))


# -- products --------------------------------------------------------------------------------------------------


def _write_products(shop: Shop, catalog: people.Catalog, writers: _Tables, run: Callable) -> int:
    total = 0
    for start in range(0, len(catalog), PICTURES_PER_BATCH):
        index = range(start, min(start + PICTURES_PER_BATCH, len(catalog)))
        looks = [
            ProductLook(each, *catalog.look(each), catalog.style_name(each), int(catalog.photographed[each])) for each in index
        ]
        drawn = list(run(shop.draw_product, looks))
        total += sum(size for _, size in drawn)
        ids = [shop.product_id(product) for product in index]
        writers.add(
            "products",
            {
                "product_id": ids,
                "title": [catalog.words(product).title(int(catalog.tone[product])) for product in index],
                "selling_points": [catalog.selling_points(product) for product in index],
                "image": [look.image for look in looks],
                "cutout": [look.cutout for look in looks],
                "scale": [scale for scale, _ in drawn],
                "category": [catalog.kind_name(product) for product in index],
                "brand": [catalog.brand(product) for product in index],
                "locale": [catalog.locale(product) for product in index],
            },
        )
        tones = [TONES[catalog.tone[product]] for product in index]
        styles = [[look.style] for look in looks]
        writers.add("styles", {"entity": ["product"] * len(ids), "id": ids, "styles": styles, "tone": tones})
    return total


# -- users -----------------------------------------------------------------------------------------------------


def _write_histories(shop: Shop, catalog: people.Catalog, writers: _Tables, users: np.ndarray, tastes: people.Tastes) -> int:
    products, valid = people.make_clicks(shop.seed, shop.split, users, tastes, catalog)
    moments = unit(draw(key_for("clicked at", shop.seed, shop.split), users[:, None], np.arange(people.MAX_CLICKS)))
    moments = np.sort(np.where(valid, moments, 2.0), axis=1)[valid]
    times = (_FIRST_CLICK + (moments * _CLICK_DAYS * 86_400).astype(np.int64)) * 1_000_000
    names = pa.array([shop.product_id(product) for product in range(len(catalog))])
    clicked = pa.StructArray.from_arrays(
        [names.take(pa.array(products[valid])), pa.array(times).cast(records.CLICK[1].type)], fields=list(records.CLICK)
    )
    offsets = np.concatenate([[0], np.cumsum(tastes.num_clicks)]).astype(np.int32)
    ids = [shop.user_id(user) for user in users]
    writers.add("histories", {"user_id": ids, "clicks": pa.ListArray.from_arrays(offsets, clicked)})
    styles = [tastes.styles(row) for row in range(len(users))]
    tones = [TONES[tone] for tone in tastes.tone]
    writers.add("styles", {"entity": ["user"] * len(ids), "id": ids, "styles": styles, "tone": tones})
    return len(clicked)


def _targets(shop: Shop, users: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, round, product) of each of these users' rows among `total` of the shop's pairs."""
    counts = shop.rounds(total, users)
    repeated = np.repeat(users, counts)
    rounds = np.arange(len(repeated)) - np.repeat(np.cumsum(counts) - counts, counts)
    return repeated, rounds, people.paired_products(shop.seed, shop.split, repeated, rounds, shop.num_products)


def _write_pairs(shop: Shop, catalog: people.Catalog, writers: _Tables, users: np.ndarray) -> None:
    repeated, _, products = _targets(shop, users, shop.num_pairs)
    names = pa.array([shop.product_id(product) for product in range(len(catalog))])
    locales = pa.array([catalog.locale(product) for product in range(len(catalog))])
    ids = pa.array([shop.user_id(user) for user in users])
    for start in range(0, len(repeated), USERS_PER_BATCH):  # bounded even when each user has thousands of pairs
        part = slice(start, start + USERS_PER_BATCH)
        chosen = pa.array(products[part])
        writers.add(
            "pairs",
            {
                "user_id": ids.take(pa.array(repeated[part] - users[0])),
                "product_id": names.take(chosen),
                "locale": locales.take(chosen),
            },
        )


# -- references ------------------------------------------------------------------------------------------------


def _write_references(shop: Shop, catalog: people.Catalog, writers: _Tables, users: np.ndarray, run: Callable) -> int:
    total = 0
    for rows in zip(*(_parts(column) for column in _targets(shop, users, shop.num_references)), strict=True):
        tastes = people.make_tastes(shop.seed, shop.split, rows[0], shop.num_products, shop.styles, shop.clicks)
        styles = people.reference_styles(shop.seed, shop.split, rows[0], rows[1], tastes)
        looks = [
            ReferenceLook(
                int(product), *catalog.look(product), tastes.names[style], int(catalog.photographed[product]), int(user), int(turn)
            )
            for user, turn, product, style in zip(*rows, styles, strict=True)
        ]
        total += sum(run(shop.draw_reference, looks))
        titles = [catalog.words(look.product).creative_titles(int(tone)) for look, tone in zip(looks, tastes.tone, strict=True)]
        writers.add(
            "references",
            {
                "user_id": [shop.user_id(look.user) for look in looks],
                "product_id": [shop.product_id(look.product) for look in looks],
                "image": [look.image for look in looks],
                "titles": titles,
            },
        )
    return total


def _parts(column: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(column), PICTURES_PER_BATCH):
        yield column[start : start + PICTURES_PER_BATCH]
