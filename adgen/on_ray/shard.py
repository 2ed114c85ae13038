"""A shard on its way through the stages: one dataset row, whose tables travel as bytes, and its errors as words."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from adgen import errors
from adgen.errors import RunError
from adgen.finishing.finish import ProductFacts

Row = dict[str, Any]


def telling(call: Callable[[Any, Row], Row]) -> Callable[[Any, Row], Row]:
    """A stage's `__call__` whose RunError travels on as a row, past the stages behind it: Ray Data wraps what a stage
    raises, and the driver could no longer tell what it was."""

    @wraps(call)
    def telling_call(stage: Any, row: Row) -> Row:
        if "error" in row:
            return row
        try:
            return call(stage, row)
        except RunError as error:
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
            return {"index": row["index"], "error": kind.__name__, "message": str(error)}

    return telling_call


def raise_told(row: Row) -> Row:
    """The row itself, unless it tells of an error: that error, of its own kind."""
    if "error" in row:
        raise getattr(errors, row["error"])(row["message"])
    return row


def product_facts(pair: Row, picture: bytes) -> ProductFacts:
    """What finishing and the condition picture need, from a planned pair and its product's bytes."""
    facts = ProductFacts(
        title=pair["product_title"],
        selling_points=tuple(pair["selling_points"] or ()),
        scale=pair["scale"],
        locale=pair["locale"],
        channel=pair["channel"],
    )
    return replace(facts, cutout=picture) if pair["cutout"] else replace(facts, image=picture)


def lossless(picture: np.ndarray) -> bytes:
    """PNG of (H, W, 3) uint8, quick rather than small."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=1)
    return out.getvalue()


def pack(pairs: list[Row], pictures: dict[str, bytes]) -> bytes:
    """A shard's rows and its products' pictures, as one Arrow stream after another."""
    sink = io.BytesIO()
    data = pa.array(pictures.values(), pa.large_binary())
    tables = (pa.Table.from_pylist(pairs), pa.table({"product": pa.array(pictures, pa.string()), "data": data}))
    for table in tables:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def unpack(shard: bytes) -> tuple[list[Row], dict[str, bytes]]:
    """What `pack` packed."""
    source = pa.BufferReader(shard)
    pairs = pa.ipc.open_stream(source).read_all()
    pictures = pa.ipc.open_stream(source).read_all()
    return pairs.to_pylist(), dict(zip(pictures["product"].to_pylist(), pictures["data"].to_pylist(), strict=True))
