"""A shard on its way from stage to stage, as bytes: Ray Data carries them and never looks inside.

look-up  -> "shard" (its pairs), "pictures" (product files), "squares" (what the model is shown of each product)
generate -> "shard" with titles and painted pictures; "squares" end here, "pictures" pass by unread
finish   -> counts
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt

import numpy as np
import pyarrow as pa
from PIL import Image

from adgen.creatives.documents import PlanPart
from adgen.finishing.finish import ProductFacts
from adgen.on_ray.rows import Row

# Pixels on white shrink to a tenth, in a millisecond each.
_PACKED = pa.ipc.IpcWriteOptions(compression="lz4")

_TYPES = {"picture": pa.large_binary()}  # together they may be more than 2 GB


def plan_part(row: Row) -> PlanPart:
    """The plan's entry that a dataset row carries."""
    return PlanPart.model_validate({name: row[name] for name in PlanPart.model_fields})


PRODUCT_FACTS = ("product_id", "product_title", "selling_points", "scale", "locale", "channel", "cutout")
"""The columns that `product_facts` asks for."""


def product_facts(pair: Row, picture: bytes | None) -> ProductFacts:
    """What generation and finishing need to know, from a planned pair and its product's file (None: its texts alone)."""
    facts = ProductFacts(
        title=pair["product_title"],
        selling_points=tuple(pair["selling_points"] or ()),
        scale=pair["scale"],
        locale=pair["locale"],
        channel=pair["channel"],
    )
    return replace(facts, cutout=picture) if pair["cutout"] else replace(facts, image=picture)


def raw(picture: np.ndarray) -> bytes:
    """A pair's "picture", as painted: the pixels of (S, S, 3) uint8. A file is made of it where nobody waits for an engine."""
    return picture.tobytes()


def painted(data: bytes) -> np.ndarray:
    """What `raw` was given, read-only."""
    side = isqrt(len(data) // 3)
    return np.frombuffer(data, np.uint8).reshape(side, side, 3)


def lossless(picture: np.ndarray) -> bytes:
    """PNG of (H, W, 3) uint8, quick rather than small."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return out.getvalue()


def pack(table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    """A table, such as a shard's rows, as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(stream: bytes) -> pa.Table:
    """What `pack` packed. A stage makes Python objects of the columns that it looks at; the others pass by as they are."""
    return pa.ipc.open_stream(pa.BufferReader(stream)).read_all()


def with_columns(pairs: pa.Table, rows: list[Row], names: Iterable[str]) -> pa.Table:
    """The table with these columns from its `rows`; a row without one has null there."""
    for name in names:
        column = pa.array([row.get(name) for row in rows], _TYPES.get(name))
        there = pairs.schema.get_field_index(name)
        pairs = pairs.append_column(name, column) if there < 0 else pairs.set_column(there, name, column)
    return pairs


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """Product files or squares, by product id."""
    table = pa.table({"product": pa.array(files, pa.string()), "data": pa.array(files.values(), pa.large_binary())})
    return pack(table, _PACKED)


def unpack_files(packed: bytes) -> dict[str, bytes]:
    """What `pack_files` packed."""
    table = unpack(packed)
    return dict(zip(table["product"].to_pylist(), table["data"].to_pylist(), strict=True))
