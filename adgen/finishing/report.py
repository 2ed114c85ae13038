"""Reads a run from a store, and its pictures from the inputs, into the contact sheet.

The only file of this part that reads anything, and the only one that looks at other parts: at the store's readers and,
for product and history pictures, at the input tables. Its output belongs under private/.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives.journal import Journal
from adgen.creatives.reading import ManifestReader, open_published, open_run
from adgen.creatives.references import references_of
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.errors import InputError, PairError, StoreError
from adgen.finishing.contact_sheet import (
    CREATIVE_SIDE,
    HISTORY_SIDE,
    PRODUCT_SIDE,
    Card,
    ReportSummary,
    render_report,
    thumbnail,
)
from adgen.records import OK
from adgen.shop.inputs.locations import read_bytes
from adgen.shop.inputs.tables import Inputs, open_inputs

CARDS = 60
PARTS_READ = 24  # shards that are looked at: a report of a billion pairs costs what one of ten thousand does


def write_report(
    store_uri: str | Path,
    campaign: str,
    out: str | Path,
    *,
    inputs: str | None = None,
    run_id: str | None = None,
    access: S3Access | None = None,
    roofline_share: float | None = None,
    num_cards: int = CARDS,
) -> int:
    """Write the contact sheet of the campaign's published run (or of `run_id`) to the file `out`; the cards in it.

    `inputs` is the folder of the input tables, for product and history pictures; without it, or where the private part
    of the store is not readable, the sheet shows what is. ConsumerError: nothing published, no such run.
    """
    page, count = build_report(open_storage(store_uri, access), campaign, inputs, run_id, roofline_share, num_cards)
    Path(out).write_text(page, encoding="utf-8")
    return count


def build_report(
    storage: Storage,
    campaign: str,
    inputs: str | None = None,
    run_id: str | None = None,
    roofline_share: float | None = None,
    num_cards: int = CARDS,
) -> tuple[str, int]:
    """The contact sheet as HTML, and the number of cards in it; see `write_report`."""
    reader = open_run(storage, campaign, run_id) if run_id else open_published(storage, campaign)
    rows, histories = _sample(reader, num_cards)
    wanted = {row["product_id"] for row in rows} | {product for clicks in histories.values() for product in clicks}
    shop = Products.of(inputs, wanted)
    cards = [_card(storage, row, histories.get(row["pair_id"]), shop) for row in rows]
    if not _has_variants(reader):
        cards = [replace(card, variant=None) for card in cards]
    return render_report(_summary(reader, roofline_share), cards), len(cards)


def _has_variants(reader: ManifestReader) -> bool:
    counts = reader.run.counts
    return counts.pairs is not None and counts.pairs < counts.rows


def _summary(reader: ManifestReader, roofline_share: float | None) -> ReportSummary:
    run, counts = reader.run, reader.run.counts
    return ReportSummary(
        campaign=run.campaign,
        run_id=run.run_id,
        state=run.state,
        started_at=run.created_at,
        seconds=(run.updated_at - run.created_at).total_seconds(),
        rows=counts.rows,
        pairs=counts.pairs,
        ok=counts.ok,
        rejected=counts.rejected,
        failed=counts.failed,
        carried=counts.carried,
        generated=counts.generated,
        stale=counts.stale,
        drawn_again=counts.drawn_again,
        templates=counts.templates,
        plain_backgrounds=counts.plain_backgrounds,
        reasons=counts.reasons,
        roofline_share=roofline_share,
        published=run.pointer == "moved",
        note=run.note,
    )


# -- which creatives -------------------------------------------------------------------------------------------


def _sample(reader: ManifestReader, num_cards: int) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """Manifest rows to show, and by pair_id the product ids of the history that was drawn, where they can be read.

    The lowest pair_ids of some shards: they are keyed hashes, so as good as random, and the same each time.
    """
    histories: dict[str, list[str]] = {}
    switched_off: dict[str, str] = {}
    try:
        tables = []
        for table, lineage in _shards(reader):
            tables.append(table)
            for row in lineage.to_pylist():
                histories[row["pair_id"]] = row["history_ids"] or []
                switched_off[row["pair_id"]] = row.get("kernels_off") or ""
    except (
        StoreError,
        PermissionError,
    ):  # no access to private/, or its run is cleaned up: the public manifest has the rows as well
        histories, tables = {}, [reader.table(file) for file in _spread(reader.run.manifest, 4)]
    if not tables:
        return [], {}
    rows = pa.concat_tables(tables).sort_by([("pair_id", "ascending"), ("rank", "ascending")])
    good = pc.equal(rows["status"], OK)
    bad = rows.filter(pc.invert(good)).slice(0, num_cards // 3)
    chosen = [*bad.to_pylist(), *rows.filter(good).slice(0, num_cards - bad.num_rows).to_pylist()]
    for row in chosen:
        if off := switched_off.get(row["pair_id"]):
            row["gates"] = [*(row["gates"] or ()), ("kernels", f"warn: switched off: {off}")]
    shown = {row["pair_id"] for row in chosen}
    return chosen, {pair: clicks for pair, clicks in histories.items() if pair in shown}


def _shards(reader: ManifestReader) -> Iterator[tuple[pa.Table, pa.Table]]:
    journal = Journal(reader.storage, reader.run.campaign, reader.run.run_id)
    for part in _spread(journal.read_plan().parts, PARTS_READ):
        lineage = journal.read_lineage(part.index)
        yield journal.read_part(part.index), lineage if lineage is not None else pa.table({"pair_id": [], "history_ids": []})


def _spread(items: tuple, most: int) -> list:
    """At most `most` of the items, evenly spread."""
    count = min(len(items), most)
    return [items[index * len(items) // count] for index in range(count)]


# -- what they were made from ----------------------------------------------------------------------------------


@dataclass
class Products:
    """The products that cards show or that their users clicked. A thumbnail is made once, whoever clicked it."""

    products: dict[str, dict[str, Any]] = field(default_factory=dict)
    inputs: Inputs | None = None
    _thumbnails: dict[tuple[str, int], bytes | None] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs_uri: str | None, product_ids: Iterable[str]) -> "Products":
        """Reads the product table once, keeping these products; an empty shop when there are no inputs any more."""
        if inputs_uri is None:
            return cls()
        try:
            inputs = open_inputs(inputs_uri, ["products"])
        except InputError:
            return cls()
        wanted = pa.array(sorted(product_ids), pa.string())
        columns = ["product_id", "title", "selling_points", "image", "cutout"]
        found = {}
        for batch in inputs["products"].batches(columns):
            rows = batch.filter(pc.is_in(batch["product_id"], value_set=wanted))
            found |= {row["product_id"]: row for row in rows.to_pylist()}
        return cls(found, inputs)

    def title(self, product_id: str) -> str:
        return self.products.get(product_id, {}).get("title") or ""

    def picture(self, product_id: str, side: int) -> bytes | None:
        """A thumbnail of the product's picture, or of its cut-out; None where neither can be read."""
        key = (product_id, side)
        if key not in self._thumbnails:
            row = self.products.get(product_id, {})
            self._thumbnails[key] = self._thumbnail(row.get("image") or row.get("cutout"), side)
        return self._thumbnails[key]

    def _thumbnail(self, uri: str | None, side: int) -> bytes | None:
        if not uri:
            return None
        try:
            return thumbnail(read_bytes(self.inputs.resolve(uri)), side)
        except PairError:
            return None


def _card(storage: Storage, row: dict[str, Any], history: list[str] | None, shop: Products) -> Card:
    product = shop.products.get(row["product_id"], {})
    reference = next((found for found in references_of(row) if found.is_well_formed), None)
    stored = storage.get(reference.uri) if reference else None
    return Card(
        pair_id=row["pair_id"],
        product_id=row["product_id"],
        status=row["status"],
        reason=row["reason"],
        title=row["title"],
        picture=thumbnail(stored.data, CREATIVE_SIDE) if stored else None,
        product_title=shop.title(row["product_id"]),
        selling_points=tuple(product.get("selling_points") or ()),
        product_picture=shop.picture(row["product_id"], PRODUCT_SIDE),
        history=None
        if history is None
        else tuple((shop.title(click) or click, shop.picture(click, HISTORY_SIDE)) for click in history),
        gates=dict(row["gates"] or ()),
        seconds=row["seconds"],
        locale=row["locale"],
        channel=row["channel"],
        carried=row["carried_from"] is not None,
        stale=row["stale"],
        variant=row["variant"],
        rank=row["rank"],
    )
