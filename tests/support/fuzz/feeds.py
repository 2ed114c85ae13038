"""Feeds and a click log in every format, small and sound: what is mutated and imported."""

import gzip
import json

import pyarrow as pa

from support.feeds import SHOPIFY, merchant_atom, merchant_rss, merchant_tsv, meta_csv, table
from support.fuzz.tables import parquet

PRODUCTS = [
    {
        "id": f"a{n}",
        "title": f"A red mug {n}, 茶",
        "image_link": f"images/{n % 3}.png",
        "product_highlight": ["Keeps warm", "Steel"],
    }
    for n in range(8)
]
CLICKS = [{"user": f"u{n % 3}", "product": f"a{n}", "time": f"2026-11-01T13:00:0{n}Z"} for n in range(8)]
SCHEMAS = {
    "feed": pa.schema([("id", pa.string()), ("title", pa.string()), ("image_link", pa.string()),
                       ("product_highlight", pa.list_(pa.string()))]),
    "log": pa.schema([("user", pa.string()), ("product", pa.string()), ("time", pa.string())]),
}  # fmt: skip
ROWS = {"feed": PRODUCTS, "log": CLICKS}
MAPPED = {"log": ("user_id=user", "product_id=product", "clicked_at=time"), "feed": ()}


def feeds_and_logs() -> dict[str, tuple[str, bytes]]:
    """File name -> ("feed" or "log", its bytes)."""
    found = {
        "rss.xml": ("feed", merchant_rss().encode()),
        "atom.xml": ("feed", merchant_atom().encode()),
        "merchant.tsv": ("feed", merchant_tsv().encode()),
        "utf16.tsv": ("feed", merchant_tsv().encode("utf-16")),
        "meta.csv": ("feed", meta_csv().encode()),
        "shopify.csv": ("feed", SHOPIFY.encode()),
        "packed.tsv.gz": ("feed", gzip.compress(merchant_tsv().encode(), mtime=0)),
        "log.csv": ("log", table(CLICKS).encode()),
    }
    for kind, rows in ROWS.items():
        found[f"{kind}.jsonl"] = kind, "\n".join(map(json.dumps, rows)).encode()
        found[f"{kind}.parquet"] = kind, parquet(rows, SCHEMAS[kind])
        found[f"{kind}-short-pages.parquet"] = kind, parquet(rows, SCHEMAS[kind], data_page_size=1, row_group_size=3)
    return found
