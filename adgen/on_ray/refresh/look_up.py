"""A shard's plan entry -> its pairs with everything that generation and finishing need.

Products are cut out here, so that no engine waits for a picture to be decoded. No torch: a look-up starts in a second.
"""

import hashlib
from itertools import islice
from typing import NamedTuple

from adgen.errors import PairError
from adgen.finishing.finish import product_cutout
from adgen.images import condition_square, use_limits
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import pack, pack_files, plan_part, product_facts
from adgen.on_ray.refresh.provenance import PROVENANCE
from adgen.on_ray.rows import Row, as_row_error
from adgen.records import SOURCES, with_later_columns
from adgen.shop.catalog.catalog import Catalog
from adgen.shop.history import filled
from adgen.shop.inputs.locations import read_bytes
from adgen.shop.plan.rows import PLAN_PAIRS, rows_to_make


class Products(NamedTuple):
    """Of a shard's products, by id."""

    pictures: dict[str, bytes]
    """Their files."""
    squares: dict[str, bytes]
    """What the model is shown of each: `adgen.images.condition_square`, its pixels. None of a product that cannot be shown."""


class LookUp:
    """A shard's plan entry -> its pairs with everything that generation and finishing need."""

    def __init__(self, context: Context, catalog: Catalog):
        self.context = context
        self.journal = context.journal()
        self.catalog = catalog
        use_limits(context.settings.pictures)

    @as_row_error
    def __call__(self, row: Row) -> Row:
        """Adds "shard", "pictures" and "squares"; a pair that cannot be made gets a reason and no picture."""
        table = with_later_columns(self.journal.read_plan_part(plan_part(row)), PLAN_PAIRS)
        pairs = rows_to_make(table).to_pylist()
        products = self.look_up(pairs)
        return row | {"shard": pack(pairs), "pictures": pack_files(products.pictures), "squares": pack_files(products.squares)}

    def look_up(self, pairs: list[Row]) -> Products:
        """Complete planned pairs, or give them a reason; their products."""
        products = Products({}, {})
        for pair in pairs:
            # Every row has every column from here on: Arrow takes a table's columns from its first row.
            pair |= {"history_titles": [], "history_codes": [], "title": None, "picture": None, "seconds": None}
            pair |= {"history_items": None, "style_agreement": None, **dict.fromkeys(SOURCES)}
            pair |= dict.fromkeys(PROVENANCE)
            if pair["reason"] is None:
                self._look_up_product(pair, products)
        self._look_up_histories([pair for pair in pairs if pair["reason"] is None])
        return products

    def _look_up_product(self, pair: Row, products: Products) -> None:
        product, pictures = pair["product_id"], products.pictures
        try:
            if product not in pictures:
                pictures[product] = read_bytes(pair["cutout"] or pair["image"])
            if pair["cutout_hash"] not in (None, hashlib.sha256(pictures[product]).hexdigest()):
                raise PairError("input_changed", f"the picture of {product} is not the one that was planned")
            if product not in products.squares:
                fact = product_facts(pair, pictures[product])
                products.squares[product] = condition_square(product_cutout(fact), fact.scale or 1.0).tobytes()
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
