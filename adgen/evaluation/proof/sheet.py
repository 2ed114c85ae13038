"""The sheet that shows what the numbers mean: some products, each for several users, in a picture for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from adgen.images import on_white

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CREATIVE_SIDE, CLICK_SIDE, CLICKS = 160, 50, 6  # pixels; clicks a user
_PRODUCT_SIDE, _GAP, _CAPTION, _CLICKS_A_ROW = 96, 10, 16, 3
_INK, _PAPER = (40, 40, 46), (255, 255, 255)
_QUALITY = 90


@dataclass(frozen=True)
class Column:
    """One user."""

    clicked: list[Image.Image]
    """Newest last."""
    creatives: list[Image.Image]
    """One a product."""


def draw_sheet(products: Sequence[Image.Image], columns: Sequence[Column]) -> Image.Image:
    """products: RGBA, one a row; every column has a creative for each. RGB."""
    clicks_high = -(-CLICKS // _CLICKS_A_ROW) * (CLICK_SIDE + 4)
    top = _GAP + _CAPTION + clicks_high + _GAP
    width = _PRODUCT_SIDE + 2 * _GAP + len(columns) * (CREATIVE_SIDE + _GAP)
    sheet = Image.new("RGB", (width, top + len(products) * (CREATIVE_SIDE + _GAP)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), "product", _INK, ImageFont.load_default(13))
    for row, product in enumerate(products):
        small = on_white(product).resize((_PRODUCT_SIDE, _PRODUCT_SIDE), Image.Resampling.LANCZOS)
        y = top + row * (CREATIVE_SIDE + _GAP) + (CREATIVE_SIDE - _PRODUCT_SIDE) // 2
        sheet.paste(small, (_GAP, y))
    for number, column in enumerate(columns):
        left = _PRODUCT_SIDE + 2 * _GAP + number * (CREATIVE_SIDE + _GAP)
        pen.text((left, _GAP), f"user {number + 1} clicked", _INK, ImageFont.load_default(13))
        for place, picture in enumerate(column.clicked[:CLICKS]):
            x = left + place % _CLICKS_A_ROW * (CLICK_SIDE + 4)
            y = _GAP + _CAPTION + place // _CLICKS_A_ROW * (CLICK_SIDE + 4)
            sheet.paste(_square(picture, CLICK_SIDE), (x, y))
        for row, picture in enumerate(column.creatives):
            sheet.paste(_square(picture, CREATIVE_SIDE), (left, top + row * (CREATIVE_SIDE + _GAP)))
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write it in the format that the name says (one of SUFFIXES), small enough for a repository."""
    options = {"optimize": True} if path.suffix.lower() == ".png" else {"quality": _QUALITY}
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, **options)


def _square(picture: Image.Image, side: int) -> Image.Image:
    return picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
