"""A shard's plan entry -> its pairs with everything that generation and finishing need."""

import hashlib
from itertools import islice

from adgen.errors import PairError
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import pack, plan_part
from adgen.on_ray.refresh.provenance import PROVENANCE
from adgen.on_ray.rows import Row, as_row_error
from adgen.records import SOURCES, with_later_columns
from adgen.shop.catalog.catalog import Catalog
from adgen.shop.history import filled
from adgen.shop.inputs.locations import read_bytes
from adgen.shop.plan.rows import PLAN_PAIRS, rows_to_make


class LookUp:
    """A shard's plan entry -> its pairs with everything that generation and finishing need."""

    def __init__(self, context: Context, catalog: Catalog):
        self.context = context
        self.journal = context.journal()
        self.catalog = catalog

    @as_row_error
    def __call__(self, row: Row) -> Row:
        """Adds "shard"; a pair that cannot be made gets a reason and no picture."""
        table = with_later_columns(self.journal.read_plan_part(plan_part(row)), PLAN_PAIRS)
        pairs = rows_to_make(table).to_pylist()
        return row | {"shard": pack(pairs, self.look_up(pairs))}

    def look_up(self, pairs: list[Row]) -> dict[str, bytes]:
        """Complete planned pairs, or give them a reason; the products' pictures."""
        pictures: dict[str, bytes] = {}
        for pair in pairs:
            # Every row has every column from here on: Arrow takes a table's columns from its first row.
            pair |= {"history_titles": [], "history_codes": [], "title": None, "picture": None, "seconds": None}
            pair |= {"history_items": None, "style_agreement": None, **dict.fromkeys(SOURCES)}
            pair |= dict.fromkeys(PROVENANCE)
            if pair["reason"] is None:
                self._look_up_product(pair, pictures)
        self._look_up_histories([pair for pair in pairs if pair["reason"] is None])
        return pictures

    def _look_up_product(self, pair: Row, pictures: dict[str, bytes]) -> None:
        product = pair["product_id"]
        try:
            if product not in pictures:
                pictures[product] = read_bytes(pair["cutout"] or pair["image"])
            if pair["cutout_hash"] not in (None, hashlib.sha256(pictures[product]).hexdigest()):
                raise PairError("input_changed", f"the picture of {product} is not the one that was planned")
        except PairError as error:
            pair["reason"], pair["detail"] = error.reason, error.detail

    def _look_up_histories(self, pairs: list[Row]) -> None:
        """All of a shard's clicks in one look-up: one a pair costs many times as much."""
        shown = [filled(pair["history_ids"] or (), self.context.history_items) for pair in pairs]
        clicked = [product for products in shown for product in products]
        titles, codes = iter(self.catalog.titles(clicked)), iter(self.catalog.codes(clicked).tolist())
        for pair, products in zip(pairs, shown, strict=True):
            pair["history_items"] = len(products)
            pair["history_titles"] = list(islice(titles, len(products)))
            pair["history_codes"] = list(islice(codes, len(products)))
