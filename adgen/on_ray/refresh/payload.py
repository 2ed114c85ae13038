"""A shard on its way from stage to stage, as bytes: Ray Data carries them and never looks inside."""

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
from PIL import Image

from adgen.creatives.documents import PlanPart
from adgen.finishing.finish import ProductFacts
from adgen.on_ray.rows import Row


def plan_part(row: Row) -> PlanPart:
    """The plan's entry that a dataset row carries."""
    return PlanPart.model_validate({name: row[name] for name in PlanPart.model_fields})


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
