"""One row of a feed as a product and its offer. Knows columns and values, no files."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from adgen.errors import PairError
from adgen.shop.inputs.feeds.columns import Columns, text_of
from adgen.shop.inputs.feeds.offers import LONGEST_LINK, offer_of
from adgen.shop.inputs.feeds.selling_points import selling_points
from adgen.shop.inputs.html_text import plain_text
from adgen.shop.inputs.locations import is_s3, resolve_uri

DEFAULT_SCALE = 0.6
LONGEST_ID = 200
LONGEST_TITLE = 1000
_SOURCE_AND_CONTENT = re.compile(r"^\s*(?:trained_algorithmic_media|default)\s*:\s*", re.I)  # structured_title in one cell
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
REQUIRED = ("product_id", "title", "image")


class BadValue(Exception):
    """The row cannot become a product."""

    def __init__(self, column: str, value: Any, reason: str, detail: str = ""):
        super().__init__(detail)
        self.column, self.value, self.reason = column, value, reason


@dataclass
class Pictures:
    """Names pictures of a feed in `folder` (None: relative links mean nothing) for tables in the local folder `dest`."""

    folder: str | None
    dest: str
    uses_folder: bool = False
    """Whether a row names a picture of the feed's folder outside of `dest`."""

    def locate(self, column: str, link: str) -> str:
        """An https link as it is; a file of the feed's own folder relative to `dest`, or as absolute path. BadValue: no other."""
        if link.lower().startswith("https://"):
            return _https(column, link)
        if self.folder is None:
            raise BadValue(column, link, "scheme_not_allowed", "only https: the feed lies on the web, or in the root of the disk")
        try:
            found = resolve_uri(link, self.folder, allowed_roots=(self.dest,))
        except PairError as error:
            raise BadValue(column, link, error.reason, "links are https, or name files in the feed's folder") from None
        inside = None if is_s3(found) else _below(found, self.dest)
        if not is_s3(found) and not os.path.isfile(found):
            raise BadValue(column, link, "missing_file", f"{found} is no file")
        self.uses_folder |= inside is None
        return inside or found


def _https(column: str, link: str) -> str:
    try:
        parts = urlsplit(link)
        has_host = bool(parts.hostname) and (parts.port or 443) > 0
    except ValueError:
        has_host = False
    if not has_host or len(link) > LONGEST_LINK or re.search(r"\s", link):
        raise BadValue(column, link, "bad_link", f"no https link of at most {LONGEST_LINK} characters")
    if parts.username is not None or parts.password is not None:
        raise BadValue(column, link.replace(parts.netloc, f"...@{parts.hostname}"), "credentials_in_link", "")
    return link


def _below(path: str, folder: str) -> str | None:
    prefix = os.path.join(os.path.realpath(folder), "")
    return path[len(prefix) :] if path.startswith(prefix) else None


@dataclass(frozen=True)
class Reader:
    """Reads rows of one feed."""

    columns: Columns
    pictures: Pictures
    locale: str | None = None
    currency: str | None = None
    scale: float = DEFAULT_SCALE

    def __call__(self, row: dict[str, Any], report: Callable[[str, Any, str, str], None]) -> dict[str, Any]:
        """Columns of products and offers. BadValue: the row is left out.

        `report(column, value, reason, detail)`: it is used without this value.
        """
        texts = {name: text_of(self.columns.value(row, name)) for name in ("product_id", "title", "image", "cutout", "description")}
        for column in REQUIRED:
            if not texts[column]:
                raise BadValue(column, None, f"missing_{column}")
        title = plain_text(_SOURCE_AND_CONTENT.sub("", texts["title"]).strip('" '))[:LONGEST_TITLE]
        _check_texts(texts["product_id"], title)
        text = {name: plain_text(text_of(self.columns.value(row, name))) or None for name in ("category", "brand", "locale")}
        listed = [text_of(value) for value in self.columns.values(row, "selling_points")]
        points = selling_points(listed, texts["description"], title)
        offer = {name: text_of(self.columns.value(row, name)) for name in ("price", "availability", "link", "gtin")}
        return {
            "product_id": texts["product_id"],
            "title": title,
            "selling_points": [point for point in points if "\ufffd" not in point],
            "image": self.pictures.locate("image", texts["image"]),
            "cutout": self._cutout(texts["cutout"], report),
            "scale": self._scale(row, report),
            **text,
            "locale": text["locale"] or self.locale,
            **offer_of(offer, self.currency, report),
        }

    def _cutout(self, link: str, report: Callable[[str, Any, str, str], None]) -> str | None:
        try:
            return self.pictures.locate("cutout", link) if link else None
        except BadValue as error:
            report(error.column, error.value, error.reason, str(error))
            return None

    def _scale(self, row: dict[str, Any], report: Callable[[str, Any, str, str], None]) -> float:
        text = text_of(self.columns.value(row, "scale"))
        if not text:
            return self.scale
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if 0 < number <= 1:
            return number
        report("scale", text, "bad_scale", f"expected a number above 0, at most 1; taken as {self.scale:g}")
        return self.scale


def _check_texts(product_id: str, title: str) -> None:
    if len(product_id) > LONGEST_ID or _CONTROLS.search(product_id):
        raise BadValue("product_id", product_id, "bad_product_id", f"at most {LONGEST_ID} characters, no control characters")
    for column, text in (("product_id", product_id), ("title", title)):
        if "\ufffd" in text:
            raise BadValue(column, text, "bad_text", "its bytes are not of the file's encoding; see --encoding")
    if not title:
        raise BadValue("title", None, "missing_title", "it has tags only")
