"""A catalog's rows: what has to be read of each product in this run, and what is made of it.

`image_hash` and `cutout_hash` are sha256 of the files' bytes; without a cut-out the product is cut from its picture, and
`cutout_hash` is the picture's. `click_hash` covers what a history shows: title and picture. `product_hash` covers what a
target is: title, selling points, scale, cut-out and picture.

Whether a product can be set on a background at all (`no_cutout`) is found here, once a picture, and not once a pair.

A file that cannot be read leaves its reason on the row, and is tried again the next time; hashes and codes stay those of
the last good reading, so that one bad night of a shop's file server changes nobody's history.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from adgen.config import PictureSettings
from adgen.cutouts import check_product
from adgen.errors import PairError, RunError
from adgen.images import holding, read_picture, use_limits
from adgen.records import digest
from adgen.shop.inputs.locations import read_bytes, stat
from adgen.shop.inputs.tables import Inputs
from adgen.shop.inputs.text import BAD_TEXT, is_bad, readable
from adgen.shop.similarity import EMBEDDING_NAME, EMBEDDING_SIZE, embed_titles

Encoder = Callable[[list[Image.Image]], np.ndarray]
Tokenize = Callable[[str], list[int]]
Embed = Callable[[list[str]], np.ndarray]


def no_change(picture: Image.Image) -> Image.Image:
    """The picture itself."""
    return picture


@dataclass(frozen=True)
class Encoders:
    """What makes a product ready for the model. Pickles as paths, not as weights."""

    encoder: Encoder
    """Pictures -> (n, tokens) codes below 65536."""
    tokenize: Tokenize
    """A clicked title -> its ids."""
    embed: Embed = embed_titles
    """Titles -> (n, embedding_size), for the similarity of clicks."""
    embedding: str = EMBEDDING_NAME
    """The name of `embed`: another one embeds every title again."""
    embedding_size: int = EMBEDDING_SIZE
    reduce: Callable[[Image.Image], Image.Image] = no_change
    """What of a picture `encoder` sees: pictures wait for it in this size."""
    limits: PictureSettings = field(default_factory=PictureSettings)
    """What is taken for a picture."""


PRODUCTS_PER_BATCH = 64
_PICTURES_AT_ONCE = 16  # pictures that wait for the encoder
_THREADS = 16
NO_CUTOUT = "no_cutout"  # what a picture shows, not how its reading went: stays as long as the bytes do

_ONE_FILE = [("", pa.string()), ("_stamp", pa.string()), ("_hash", pa.string()), ("_reason", pa.string()), ("_detail", pa.string())]
_KEY = [pa.field("key", pa.uint64(), nullable=False), pa.field("product_id", pa.string(), nullable=False)]
_FACTS = [
    *_KEY,
    pa.field("title", pa.string()),
    pa.field("selling_points", pa.list_(pa.string())),
    pa.field("scale", pa.float32()),
    *(pa.field(name + ending, kind) for name in ("image", "cutout") for ending, kind in _ONE_FILE),
    pa.field("click_hash", pa.string()),
    pa.field("product_hash", pa.string()),
]
_MODEL = [pa.field("title_ids", pa.list_(pa.int32())), pa.field("codes", pa.binary())]  # codes: uint16, little-endian
_ASKED = [pa.field(name, pa.bool_()) for name in ("clicked", "read_image", "read_cutout", "cutout_checked")]


def row_schema(embedding_size: int = EMBEDDING_SIZE) -> pa.Schema:
    """A product with all that a catalog knows of it."""
    return pa.schema([*_FACTS, *_MODEL, pa.field("embedding", pa.list_(pa.float16(), embedding_size))])


FACT_NAMES = [field.name for field in _FACTS]
ID_NAMES = ["key", "product_id", "title", "click_hash", "title_ids", "codes"]
WORK = pa.schema([*_FACTS, *_MODEL, *_ASKED])


@dataclass
class Changes:
    """A bucket's products: rows that stay as they were, and batches (`WORK`) for `encode_products`."""

    kept: pa.Table
    work: list[pa.Table] = field(default_factory=list)


def changed_products(
    products: pa.Table, previous: pa.Table, inputs: Inputs, batch_rows: int = PRODUCTS_PER_BATCH, embed_again: bool = False
) -> Changes:
    """Compare `products` (from `read_products`) with their `previous` rows (from `Catalog.rows`; empty the first time).

    Reads the files' stamps, not the files. With `embed_again` every title is embedded anew, and no file read for that.
    """
    before = {row["product_id"]: (index, row) for index, row in enumerate(previous.drop_columns("embedding").to_pylist())}
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda row: _locate(row, inputs), products.to_pylist(), chunksize=256))
    kept, work = [], []
    for row in found:
        index, old = before.get(row["product_id"], (-1, None))
        if old and not embed_again and _is_same(row, old):
            kept.append(index)
        else:
            work.append(_work(row, old))
    batches = [pa.Table.from_pylist(work[start : start + batch_rows], WORK) for start in range(0, len(work), batch_rows)]
    return Changes(previous.take(pa.array(kept, pa.int64())), batches)


def _locate(row: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """The row with absolute URIs and the files' stamps, or the reasons why there are none."""
    for name in ("image", "cutout"):
        uri, stamp, reason, detail = row[name], None, None, None
        if uri is not None:
            try:
                named, uri = uri, None  # a place that rows may not name is named nowhere else
                if is_bad(named):
                    raise PairError(BAD_TEXT, f"the path of the {name} is not UTF-8: {readable(named)!r}")
                uri = inputs.resolve(named)
                stamp = stat(uri)
            except PairError as error:
                reason, detail = error.reason, error.detail
        row |= {name: uri, f"{name}_stamp": stamp, f"{name}_reason": reason, f"{name}_detail": detail}
    return row


def _is_same(row: dict[str, Any], old: dict[str, Any]) -> bool:
    names = ("title", "selling_points", "scale", "image", "cutout", "image_stamp", "cutout_stamp")
    failed = any(each[f"{name}_reason"] not in (None, NO_CUTOUT) for each in (row, old) for name in ("image", "cutout"))
    return not failed and all(row[name] == old[name] for name in names) and (old["codes"] is not None or not row["clicked"])


def _work(row: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
    last = {name: old[name] if old else None for name in ("image_hash", "cutout_hash", "title_ids", "codes")}
    if old and old["cutout"] is None:
        last["cutout_hash"] = None  # it was the picture's
    work = row | last
    work["cutout_checked"] = bool(old) and old["cutout"] == row["cutout"] and old["cutout_reason"] in (None, NO_CUTOUT)
    if work["cutout_checked"] and row["cutout_reason"] is None:
        work |= {name: old[name] for name in ("cutout_reason", "cutout_detail")}
    for name in ("image", "cutout"):
        known = old and last[f"{name}_hash"] and old[f"{name}_reason"] in (None, NO_CUTOUT)
        same = known and (old[name], old[f"{name}_stamp"]) == (row[name], row[f"{name}_stamp"])
        work[f"read_{name}"] = row[f"{name}_stamp"] is not None and not same
    if row["clicked"] and last["codes"] is None and row["image_stamp"]:
        work["read_image"] = True
    if row["cutout"] is None and old and old["cutout"] is not None and row["image_stamp"]:
        work["read_image"] = True  # from now on the product is cut from it, so it has to be a picture
    return work


def encode_products(batch: pa.Table, encoders: Encoders) -> pa.Table:
    """Read, hash and encode what a batch of `changed_products` asks for; its finished rows."""
    use_limits(encoders.limits)
    rows = batch.to_pylist()
    for start in range(0, len(rows), _PICTURES_AT_ONCE):
        _read_and_encode(rows[start : start + _PICTURES_AT_ONCE], encoders)
    for row in rows:
        row["title_ids"] = encoders.tokenize(readable(row["title"] or "")) if row["codes"] is not None else None
        _derive_hashes(row)
    embeddings = np.asarray(encoders.embed([readable(row["title"] or "") for row in rows]), np.float16)
    schema = row_schema(embeddings.shape[1])
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    facts = pa.Table.from_pylist(rows, pa.schema([*_FACTS, *_MODEL]))
    return facts.append_column(schema.field("embedding"), values).cast(schema)


def _read_and_encode(rows: list[dict[str, Any]], encoders: Encoders) -> None:
    def reduced(row: dict[str, Any]) -> Image.Image | None:
        with holding():
            _read_cutout(row)
        with holding():
            picture = _read_image(row)
            return picture and encoders.reduce(picture)

    with ThreadPoolExecutor(min(_THREADS, len(rows))) as pool:
        pictures = list(pool.map(reduced, rows))
    clicked = [(row, picture) for row, picture in zip(rows, pictures, strict=True) if picture is not None]
    if not clicked:
        return
    codes = np.asarray(encoders.encoder([picture for _, picture in clicked]))
    if codes.ndim != 2 or len(codes) != len(clicked) or codes.min() < 0 or codes.max() > 0xFFFF:
        raise RunError(f"the image tokenizer gave {codes.shape} codes in {codes.min()}..{codes.max()} for {len(clicked)} pictures")
    for (row, _), values in zip(clicked, codes.astype("<u2"), strict=True):
        row["codes"] = values.tobytes()


def _read_cutout(row: dict[str, Any]) -> None:
    """Hash and check the cut-out, if it has to be read."""
    if row["read_cutout"]:
        _check_cutout(row, _read_file(row, "cutout", known=row["cutout_checked"]))


def _read_image(row: dict[str, Any]) -> Image.Image | None:
    """Hash and check the picture, if it has to be read; itself if its codes have to be made."""
    if not row["read_image"]:
        return None
    is_product, encoded, before = _is_cut_from_image(row), row["codes"] is not None, row["image_hash"]
    if not row["clicked"] and not is_product:
        _read_file(row, "image", decode=False)
        return None
    picture = _read_file(row, "image", known=encoded and (row["cutout_checked"] or not is_product))
    if is_product:
        _check_cutout(row, picture)
    return None if not row["clicked"] or (encoded and row["image_hash"] == before) else picture


def _read_file(row: dict[str, Any], name: str, decode: bool = True, known: bool = False) -> Image.Image | None:
    """Set the file's hash. It is decoded unless all of its bytes' facts are `known` and the bytes are the same."""
    try:
        data = read_bytes(row[name])
        sha256 = hashlib.sha256(data).hexdigest()
        picture = read_picture(data, name) if decode and not (known and sha256 == row[f"{name}_hash"]) else None
    except PairError as error:
        row |= {f"{name}_reason": error.reason, f"{name}_detail": error.detail}
        return None
    if name == "image" and sha256 != row["image_hash"] and not row["clicked"]:
        row["codes"] = None  # of another picture, and nobody clicks this product any more
    row[f"{name}_hash"] = sha256
    return picture


def _check_cutout(row: dict[str, Any], picture: Image.Image | None) -> None:
    """Whether the product of a picture that was decoded in this run can be cut out and seen."""
    if picture is None:
        return
    reason = detail = None
    try:
        check_product(picture)
    except PairError as error:
        reason, detail = error.reason, error.detail
    row |= {"cutout_reason": reason, "cutout_detail": detail}


def _is_cut_from_image(row: dict[str, Any]) -> bool:
    return row["cutout"] is None and row["cutout_reason"] in (None, NO_CUTOUT)  # else it names a place that it may not


def _derive_hashes(row: dict[str, Any]) -> None:
    if _is_cut_from_image(row):
        row["cutout_hash"] = row["image_hash"]
        if row["image_reason"] is not None:
            row |= {"cutout_reason": row["image_reason"], "cutout_detail": row["image_detail"]}
    points, scale = row["selling_points"], row["scale"]
    facts = (row["title"], None if points is None else len(points), *(points or ()), None if scale is None else repr(scale))
    known = row["cutout_hash"] is not None
    row["product_hash"] = digest("product", *facts, row["cutout_hash"], row["image_hash"]) if known else None
    row["click_hash"] = digest("click", row["title"], row["image_hash"]) if row["codes"] is not None else None


def join_rows(parts: Iterable[pa.Table]) -> pa.Table:
    """Rows of one bucket in the catalog's order."""
    return pa.concat_tables(parts).sort_by([("key", "ascending"), ("product_id", "ascending")]).combine_chunks()
