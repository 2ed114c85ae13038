"""Shopify's product export: several rows a handle (variants, then further pictures) become one product."""

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from adgen.shop.inputs.feeds.rows import Report, Row

_HANDLES = ("handle", "url_handle")
_IMAGES = ("image_src", "product_image_url")
_PRICES = ("variant_price", "price")
_BARCODES = ("variant_barcode", "barcode")
_TRACKERS = ("variant_inventory_tracker", "inventory_tracker")
_QUANTITIES = ("variant_inventory_qty", "inventory_quantity")
_ON_DEMAND = {"variant_inventory_policy": "continue", "continue_selling_when_out_of_stock": "true"}
_NOT_FOR_SALE = {"status": ("draft", "archived"), "published": ("false",), "published_on_online_store": ("false",)}
NOT_FOR_SALE = "not_for_sale"
LAST = 1 << 30  # a picture without a position comes after those with one


def is_shopify(columns: list[str] | None) -> bool:
    """Whether these are the columns of a product export."""
    found = set(columns or ())
    return bool(found & set(_HANDLES)) and bool(found & set(_IMAGES)) and bool(found & set(_PRICES))


def one_row_a_product(rows: Iterator[Row], report: Report) -> Iterator[Row]:
    """Rows that stand together and share a handle, as one with the names of a plain feed."""
    product: _Product | None = None
    for line, row in rows:
        handle = _first(row, _HANDLES)
        if not handle:
            report(line, "handle", None, "missing_product_id", "")
            continue
        if product is None or product.handle != handle:
            if product:
                yield from product.finished(report)
            product = _Product(handle, line, row)
        product.take(row)
    if product:
        yield from product.finished(report)


class _Product:
    def __init__(self, handle: str, line: int, row: dict[str, Any]):
        self.handle, self._line, self._row = handle, line, row
        self._image = (LAST + 1, "")
        self._price: tuple[Decimal, str] | None = None
        self._odd_price = ""
        self._barcode = ""
        self._variants, self._in_stock = 0, False

    def take(self, row: dict[str, Any]) -> None:
        if image := _first(row, _IMAGES):
            position = _first(row, ("image_position",))
            self._image = min(self._image, (int(position) if position.isdecimal() and len(position) < 9 else LAST, image))
        if price := _first(row, _PRICES):
            self._variants += 1
            self._in_stock |= _is_in_stock(row)
            self._barcode = self._barcode or _first(row, _BARCODES)
            try:
                self._price = min(self._price or (Decimal("Infinity"), ""), (Decimal(price), price))
            except InvalidOperation:
                self._odd_price = price

    def finished(self, report: Report) -> Iterator[Row]:
        for column, values in _NOT_FOR_SALE.items():
            if (found := _first(self._row, (column,)).lower()) in values:
                report(self._line, column, found, NOT_FOR_SALE, "")
                return
        price = self._price[1] if self._price else self._odd_price
        stock = ("in_stock" if self._in_stock else "out_of_stock") if self._variants else None
        yield (
            self._line,
            self._row
            | {"id": self.handle, "image_link": self._image[1], "price": price, "availability": stock, "gtin": self._barcode},
        )


def _is_in_stock(row: dict[str, Any]) -> bool:
    if not _first(row, _TRACKERS):
        return True  # nobody counts it
    if any(_first(row, (column,)).lower() == value for column, value in _ON_DEMAND.items()):
        return True
    quantity = _first(row, _QUANTITIES)
    return quantity.isdecimal() and int(quantity[:9]) > 0


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := str(row.get(name) or "").strip())), "")
