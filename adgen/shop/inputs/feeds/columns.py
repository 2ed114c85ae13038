"""Which column of a feed is which of ours: Google Merchant, Meta, Shopify and what plain exports use, or as `--map` says."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from adgen.errors import InputError, SettingsError
from adgen.shop.inputs.feeds.rows import normal

PRODUCT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "product_id": ("id", "product_id", "sku_id", "offer_id", "item_id", "item_group_id", "sku"),
    "title": ("title", "name", "product_name", "product_title", "structured_title.content", "structured_title", "short_title"),
    "description": (
        *("description", "rich_text_description", "structured_description.content", "structured_description"),
        *("body_html", "body", "summary", "content", "long_description", "short_description"),
    ),
    "selling_points": (
        *("selling_points", "product_highlight", "product_highlights", "bullet_points", "bullet_point"),
        *(f"bullet_point_{number}" for number in range(1, 6)),
        *("highlights", "features", "key_features"),
    ),
    "image": (
        *("image_link", "image", "image_url", "image[0].url", "image.url", "image_0_url", "picture", "photo", "main_image"),
        *("image_src", "product_image_url"),
    ),
    "cutout": ("cutout", "cutout_link", "image_cutout"),
    "scale": ("scale", "max_ratio"),
    "category": ("product_type", "google_product_category", "fb_product_category", "category", "product_category", "type"),
    "brand": ("brand", "vendor", "manufacturer"),
    "locale": ("locale", "language", "content_language"),
    "price": ("price",),
    "availability": ("availability", "stock_status", "availability_status"),
    "link": ("link", "url", "product_url", "product_link", "handle_url"),
    "gtin": ("gtin", "ean", "upc", "barcode", "isbn", "gtin13"),
}
"""Our columns, and the normal names of theirs in the order in which they are asked."""
CLICK_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "user_id": ("user_id", "user", "userid", "visitor_id", "visitorid", "customer_id", "client_id", "user_pseudo_id", "uid"),
    "product_id": ("product_id", "item_id", "itemid", "sku_id", "sku", "content_id", "product", "id"),
    "clicked_at": ("clicked_at", "timestamp", "time", "event_time", "ts", "datetime", "date", "event_timestamp", "created_at"),
    "event": ("event", "event_type", "event_name", "action", "behavior", "type"),
}
PAIR_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "user_id": CLICK_COLUMNS["user_id"],
    "product_id": CLICK_COLUMNS["product_id"],
    "locale": ("locale", "language"),
    "channel": ("channel",),
}


class Columns:
    """Finds the values of our columns in a row of theirs."""

    def __init__(self, known: Mapping[str, tuple[str, ...]], mapping: Sequence[str] = ()):
        """`mapping`: `ours=theirs`, as on the command line. SettingsError: not so, or no column of ours."""
        self._names = dict(known) | _mapped(known, mapping)
        self._mapped = {pair.partition("=")[0].strip() for pair in mapping}

    def within(self, name: str, columns: list[str] | None, required: Sequence[str] = ()) -> "Columns":
        """For the file `name` with these columns (None: each row has its own). InputError: one that is needed is not there."""
        if columns is None:
            return self
        for ours in (*required, *self._mapped - set(required)):
            if not set(self._names[ours]) & set(columns):
                asked = self._names[ours][0] if ours in self._mapped else f"{ours} ({', '.join(self._names[ours][:4])})"
                found = ", ".join(columns[:60])
                raise InputError(f"{name}: has no column {asked}; it has {found:.600}. Say which it is: --map {ours}=COLUMN")
        narrow = copy(self)
        narrow._names = {ours: tuple(each for each in theirs if each in columns) for ours, theirs in self._names.items()}
        return narrow

    def value(self, row: Mapping[str, Any], ours: str) -> Any:
        """The first value of theirs that is not empty; None: there is none."""
        for theirs in self._names[ours]:
            found = row.get(theirs)
            if found is not None and found != "" and found != []:
                return found
        return None

    def values(self, row: Mapping[str, Any], ours: str) -> list[Any]:
        """All of theirs, where one of ours comes from several columns, such as bullet_point_1 to 5."""
        found: list[Any] = []
        for theirs in self._names[ours]:
            value = row.get(theirs)
            found += value if isinstance(value, list | tuple) else [value]
        return [value for value in found if value not in (None, "")]


def _mapped(known: Mapping[str, tuple[str, ...]], mapping: Sequence[str]) -> dict[str, tuple[str, ...]]:
    named: dict[str, tuple[str, ...]] = {}
    for pair in mapping:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not equals or not theirs or ours not in known:
            raise SettingsError(f"--map {pair}: expected OURS=THEIRS, where OURS is one of {', '.join(known)}")
        named[ours] = (*named.get(ours, ()), normal(theirs))
    return named


def text_of(value: Any) -> str:
    """A cell as text without blanks around it; of a list the first. Whole numbers that pandas made floats lose their .0."""
    if type(value) is str:  # nearly always
        return value.strip()
    if isinstance(value, list | tuple):
        value = next((each for each in value if each not in (None, "")), None)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
