"""A shard's plan entry -> its pairs with everything that generation and finishing need.

Products are cut out here, so that no engine waits for a picture to be decoded. No torch: a look-up starts in a second.
"""

import hashlib
from typing import NamedTuple

from adgen.errors import PairError
from adgen.finishing.finish import product_cutout
from adgen.images import condition_square, square_frame, use_limits
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import PRODUCT_FACTS, pack, pack_files, plan_part, product_facts, with_columns
from adgen.on_ray.rows import Row, as_row_error
from adgen.records import with_later_columns
from adgen.shop.catalog.catalog import Catalog
from adgen.shop.history import filled
from adgen.shop.inputs.locations import read_bytes
from adgen.shop.plan.rows import PLAN_PAIRS, rows_to_make

ASKED = (*PRODUCT_FACTS, "image", "cutout_hash", "history_ids", "reason", "detail")
FOUND = ("reason", "detail", "history_titles", "history_codes", "history_items")
"""What a look-up adds to the plan's columns, or changes in them."""


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
        planned = rows_to_make(table)
        pairs = planned.select(ASKED).to_pylist()
        products = self.look_up(pairs)
        shard = pack(with_columns(planned, pairs, FOUND))
        return row | {"shard": shard, "pictures": pack_files(products.pictures), "squares": pack_files(products.squares)}

    def look_up(self, pairs: list[Row]) -> Products:
        """Complete planned pairs, or give them a reason; their products."""
        products = Products({}, {})
        for pair in pairs:
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
                products.squares[product] = self.square(pair, pictures[product])
        except PairError as error:
            pair["reason"], pair["detail"] = error.reason, error.detail

    def square(self, pair: Row, picture: bytes) -> bytes:
        """The pixels of the product as the model is shown it. PairError: it cannot be."""
        fact = product_facts(pair, picture)
        return condition_square(square_frame(product_cutout(fact)), fact.scale or 1.0).tobytes()

    def _look_up_histories(self, pairs: list[Row]) -> None:
        """All of a shard's clicks in one look-up: one a pair costs many times as much."""
        shown = [filled(pair["history_ids"] or (), self.context.history_items) for pair in pairs]
        clicked = self.catalog.clicked(product for products in shown for product in products)
        for pair, products in zip(pairs, shown, strict=True):
            pair["history_items"] = len(products)
            pair["history_titles"] = [clicked[product][0] for product in products]
            pair["history_codes"] = b"".join(clicked[product][1] for product in products)
