"""Hand-made shops for tests of catalog and plan: a few real pictures, tables as dicts, and whole nights without a model."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from adgen.creatives import layout
from adgen.creatives.documents import PlanPart
from adgen.creatives.journal import Journal
from adgen.creatives.objects import put_object
from adgen.creatives.storage import Storage
from adgen.records import FAILED, INPUT_TABLES, LINEAGE, MANIFEST, OK, with_later_columns
from adgen.shop.catalog.catalog import Catalog, CatalogPlace, build_catalog
from adgen.shop.catalog.rows import Encoders
from adgen.shop.inputs.tables import Inputs, open_inputs
from adgen.shop.plan.fingerprint import Maker
from adgen.shop.plan.plan import PlanSummary, make_plan
from adgen.shop.plan.rows import PLAN_PAIRS, PlanRules, carried_rows, rows_to_make, with_carried

Failed = Collection[str] | Callable[[dict], bool]

CAMPAIGN = "autumn"
MODEL = "a" * 64
WORDS = ("red", "blue", "steel", "cotton", "mug", "lamp", "shirt", "茶杯", "新款", "warm")


class CountingEncoder:
    """16 codes from a picture's pixels; counts the pictures."""

    def __init__(self):
        self.pictures = 0

    def __call__(self, pictures: list[Image.Image]) -> np.ndarray:
        self.pictures += len(pictures)
        return np.stack([np.asarray(each.convert("L").resize((4, 4)), np.int64).ravel() * 64 for each in pictures])


def tokenize(title: str) -> list[int]:
    return [ord(character) for character in title[:6].ljust(6)]


def rules(**changes) -> PlanRules:
    values = {
        "campaign_key": b"the campaign key",
        "user_secret": b"the user secret",
        "campaign_seed": 7,
        "maker": Maker(MODEL, "1", ("sampling", "finish", "words")),
        "history_items": 3,
        "pairs_per_shard": 4,
    }
    return PlanRules(**(values | changes))


def encoders(encoder: CountingEncoder | None = None) -> Encoders:
    return Encoders(encoder or CountingEncoder(), tokenize)


@dataclass
class SmallShop:
    """Tables as dicts in a folder; change them, `save`, and have a `night`."""

    folder: Path
    products: dict[str, dict] = field(default_factory=dict)
    histories: dict[str, list[str]] = field(default_factory=dict)
    pairs: list[tuple] = field(default_factory=list)
    nights: int = 0
    rows_of_products: list[dict] = field(default_factory=list)
    pictures: bool = False  # whether a night's creatives are objects in the store, each with a rendition

    def paint(self, name: str, colour: int) -> str:
        """A picture file, a speckled square on white; painted again it has another size and another time."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((16, 16, 4), 255, np.uint8)
        pixels[3:13, 3:13] = np.random.default_rng(colour).integers(0, 200, (10, 10, 4), dtype=np.uint8)
        picture = Image.fromarray(pixels).convert("RGBA" if "cutout" in name else "RGB")
        picture.save(path, format="PNG")
        os.utime(path, ns=(colour * 10**9, colour * 10**9))
        return name

    def save(self) -> Inputs:
        products = [{"product_id": name} | row for name, row in self.products.items()] + self.rows_of_products
        clicks = [
            {"user_id": user, "clicks": [{"product_id": p, "clicked_at": None} for p in ids]}
            for user, ids in self.histories.items()
        ]
        names = ("user_id", "product_id", "locale", "channel")
        pairs = [dict(zip(names, pair, strict=True)) for pair in self.pairs]
        for name, rows in (("products", products), ("histories", clicks), ("pairs", pairs)):
            schema = pa.schema([each.with_nullable(True) for each in INPUT_TABLES[name]])
            pq.write_table(pa.Table.from_pylist(rows, schema), self.folder / f"{name}.parquet")
        return open_inputs(str(self.folder))

    def catalog(self, storage: Storage, encoder: CountingEncoder | None = None) -> Catalog:
        scratch = self.folder.parent / "scratch"
        return build_catalog(self.save(), CatalogPlace(storage, MODEL, CAMPAIGN, scratch / "cache"), encoders(encoder), scratch)

    def night(self, storage: Storage, base: "Night | None" = None, failed: Failed = frozenset(), **options) -> "Night":
        """Catalog, plan, and every shard committed: ok, or failed for the pairs in `failed`, or the rows of which it is true."""
        return run_night(self, storage, base, failed, **options)


@dataclass
class Night:
    journal: Journal
    parts: list[PlanPart]
    summary: PlanSummary
    generate: list[dict]
    carry: list[dict]
    beside: list[dict]
    """Rows that are carried beside other variants of their pairs, which were made."""

    @property
    def made(self) -> set[str]:
        return {row["pair_id"] for row in self.generate if row["reason"] is None}

    def lineage(self) -> dict[str, dict]:
        tables = [self.journal.read_lineage(part.index).to_pylist() for part in self.parts]
        return {row["pair_id"]: row for rows in tables for row in rows}


def small_shop(folder: Path, num_products: int = 12, num_users: int = 10) -> SmallShop:
    """Each user clicked five products and is paired with two."""
    shop = SmallShop(folder)
    for n in range(num_products):
        shop.products[f"p{n}"] = {
            "title": f"{WORDS[n % 10]} {WORDS[(n * 7 + 3) % 10]} number {n}",
            "selling_points": ["warm", f"{n} ml"],
            "image": shop.paint(f"images/{n}.png", n + 1),
            "cutout": shop.paint(f"cutouts/{n}.png", n + 100) if n % 3 else None,
            "scale": 0.7,
        }
    for n in range(num_users):
        shop.histories[f"u{n}"] = [f"p{(n + step * step) % num_products}" for step in range(5)]
        shop.pairs += [(f"u{n}", f"p{(n * 5 + step) % num_products}", "en", None) for step in (0, 3)]
    return shop


def run_night(shop: SmallShop, storage: Storage, base: Night | None, failed: Failed, **options) -> Night:
    shop.nights += 1
    catalog = shop.catalog(storage)
    journal = Journal(storage, CAMPAIGN, layout.new_run_id())
    ours = rules(**{name: options.pop(name) for name in list(options) if name in PlanRules.__dataclass_fields__})
    if base:
        ours = PlanRules(**vars(ours) | {"base_run": base.journal.run_id})
    scratch = shop.folder.parent / f"plan{shop.nights}"
    parts, summary = make_plan(ours, shop.save(), catalog, journal, scratch, base.journal if base else None, **options)
    journal.commit_plan(parts, settings_digest="s", inputs={}, base_run=None, pointer_etag=None, pointer_generation=0)
    night = Night(journal, parts, summary, [], [], [])
    for part in parts:
        table = journal.read_plan_part(part)
        if part.kind == "carry":
            night.carry += table.to_pylist()
            journal.commit_part(part, *carried_rows(table))
        else:
            to_make = rows_to_make(with_later_columns(table, PLAN_PAIRS))
            night.generate += to_make.to_pylist()
            night.beside += carried_rows(table)[0].to_pylist()
            made = _commit_rows(to_make, failed, storage if shop.pictures else None)
            journal.commit_part(part, *with_carried(table, *made))
    return night


def _commit_rows(plan: pa.Table, failed: Failed, storage: Storage | None) -> tuple[pa.Table, pa.Table]:
    rows = []
    for row in plan.to_pylist():
        is_failed = failed(row) if callable(failed) else row["pair_id"] in failed
        reason = row["reason"] or ("engine" if is_failed else None)
        made = {"schema_version": 1, "status": FAILED if reason else OK, "reason": reason, "stale": False}
        made |= vars_of(storage, row) if storage and not reason else {}
        rows.append(row | made | {"title": row["product_title"], "model_digest": MODEL, "gates": [("g", "ok")], "scores": []})
    manifest = [{name: row.get(name) for name in MANIFEST.names} for row in rows]
    lineage = [{name: row.get(name) for name in LINEAGE.names} for row in rows]
    return pa.Table.from_pylist(manifest, MANIFEST), pa.Table.from_pylist(lineage, LINEAGE)


def vars_of(storage: Storage, row: dict) -> dict:
    """The manifest's columns of a picture and a rendition, which are put into the store."""
    picture, small = (vars(put_object(storage, f"{size} {row['fingerprint']}".encode(), "webp")) for size in ("large", "small"))
    return picture | {"renditions": [small | {"ratio": "1:1", "width": 1, "height": 1, "format": "webp"}]}
