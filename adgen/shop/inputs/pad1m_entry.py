"""One PAd1M entry (spec/PAD1M.md) as rows of ours. Knows nothing of files: it is given a decoded JSON value."""

import math
import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from adgen.records import digest
from adgen.shop.inputs.html_text import without_entities

TITLE_SPLIT = "<title_split>"
_COMMAS = re.compile("[,，]")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
Report = Callable[[str, str], None]


class BadEntry(Exception):
    """The entry cannot become a pair; `reason` is a stable word."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Product:
    """A product row; a clicked one has no cut-out and no selling points of its own."""

    product_id: str
    title: str | None
    image: str
    selling_points: tuple[str, ...] = ()
    cutout: str | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A (user, target) pair, its reference titles, and the user's clicked products, oldest first."""

    user_id: str
    target: Product
    titles: tuple[str, ...]
    clicks: tuple[Product, ...]


class Paths:
    """Names the pictures of a JSON file in `folder`, for tables written to `dest`; both absolute."""

    def __init__(self, folder: str, dest: str):
        self.folder, self.dest = folder, dest
        self.outside: str | None = None  # deepest folder that holds every picture named from outside `folder`

    def locate(self, path: str) -> tuple[str, str]:
        """(identity, URI for a row): the identity does not change when the whole set is moved elsewhere."""
        if _URI.match(path):
            return path, path
        full = posixpath.normpath(posixpath.join(self.folder, path))
        inside = _below(full, self.folder)
        if inside is None:
            parent = posixpath.dirname(full)
            self.outside = parent if self.outside is None else os.path.commonpath([self.outside, parent])
        return inside or full, _below(full, self.dest) or full

    def product(self, path: str, title: str | None, **more: Any) -> Product:
        identity, uri = self.locate(path)
        return Product(digest("pad1m product", identity)[:24], title, uri, **more)


def parse_entry(value: Any, paths: Paths, report: Report) -> Entry:
    """The entry as rows. BadEntry when it can't be used; `report(reason, detail)` for what was repaired."""
    if not isinstance(value, dict):
        raise BadEntry("not_an_object", f"found {type(value).__name__}")
    for name, number in value.items():
        if name != "max_ratio" and isinstance(number, float) and not math.isfinite(number):
            report("not_a_number", f"{name} is {_number(number)}")
    picture, title = (
        _path(_required_text(value, "f_path", report), report),
        without_entities(_required_text(value, "sku_title_cn", report)),
    )
    cutout = _path(_text(value, "f_path_trans", report), report)
    if not cutout:
        report("no_cutout", "f_path_trans is empty: the product must be cut out of its picture")
    target = paths.product(
        picture,
        title,
        selling_points=_pieces(_COMMAS.split(without_entities(_text(value, "word_list", report)))),
        cutout=paths.locate(cutout)[1] if cutout else None,
        scale=_scale(value.get("max_ratio"), report),
    )
    clicks = _clicks(value, paths, report)
    titles = _pieces(without_entities(_text(value, "gt_title_cn", report)).split(TITLE_SPLIT))
    return Entry(_user_id(value.get("user_id"), clicks, report), target, titles, clicks)


def _clicks(value: dict, paths: Paths, report: Report) -> tuple[Product, ...]:
    images, titles = _list(value, "history_images"), _list(value, "history_titles")
    if len(images) != len(titles):
        report("unequal_history", f"{len(images)} pictures, {len(titles)} titles; cut to the shorter")
    clicks = []
    for position, (image, title) in enumerate(zip(images, titles, strict=False)):
        if not isinstance(image, str) or not image.strip() or not isinstance(title, str | None):
            report("bad_click", f"history position {position}: picture {image!r}, title {title!r}; left out")
            continue
        clicks.append(
            paths.product(_path(_clean(image, report).strip(), report), without_entities(_clean(title or "", report)) or None)
        )
    if not clicks:
        report("empty_history", "no usable click")
    return tuple(clicks)


def _user_id(given: Any, clicks: tuple[Product, ...], report: Report) -> str:
    if given is None or given == "":
        return "h" + digest("pad1m user", *(click.product_id for click in clicks))[:24]
    if not isinstance(given, str | int) or isinstance(given, bool):
        raise BadEntry("wrong_type", f"user_id: expected text, found {_number(given)}")
    return _clean(str(given), report)


def _scale(given: Any, report: Report) -> float:
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if number and math.isfinite(given) and 0 < given <= 1:
        return float(given)
    report("bad_max_ratio", f"max_ratio: expected a number in 0..1, found {_number(given)}; taken as 1")
    return 1.0


def _number(given: Any) -> str:
    if isinstance(given, float) and not math.isfinite(given):
        return "NaN" if math.isnan(given) else "an infinite number, or one of more than a thousand digits"
    return f"{given!r:.100}"


def _path(path: str, report: Report) -> str:
    """A path as Windows writes it, with the slashes of all others."""
    if "\\" not in path:
        return path
    report("windows_path", f"{path!r:.200}: each backslash became a slash")
    return path.replace("\\", "/")


def _required_text(value: dict, field: str, report: Report) -> str:
    text = _text(value, field, report).strip()
    if not text:
        raise BadEntry(f"missing_{field}", f"{field} is absent or empty")
    return text


def _text(value: dict, field: str, report: Report) -> str:
    found = value.get(field)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise BadEntry("wrong_type", f"{field}: expected text, found {found!r:.100}")
    return _clean(found, report)


def _clean(text: str, report: Report) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, from a title cut inside an emoji
        report("bad_unicode", f"{text!r:.100}: broken characters became '?'")
        return text.encode("utf-8", "replace").decode()
    return text


def _list(value: dict, field: str) -> list:
    found = value.get(field)
    if found is None:
        return []
    if not isinstance(found, list):
        raise BadEntry("wrong_type", f"{field}: expected a list, found {found!r:.100}")
    return found


def _pieces(parts: list[str]) -> tuple[str, ...]:
    return tuple(piece for part in parts if (piece := part.strip()))


def _below(path: str, folder: str) -> str | None:
    prefix = folder.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None
