"""What stands in where no attempt of the model passes: a title from the product's own texts, a plain background.

Both are made of the product alone, so replay makes them again.
"""

from functools import cache
from importlib.resources import files

import numpy as np

from adgen.config import FinishSettings, Settings, read_toml, validate_settings
from adgen.finishing.finish import ProductFacts
from adgen.finishing.gates import picture_complaint, title_complaint
from adgen.finishing.titles import display_width
from adgen.images import read_picture

_SPAN = 36  # levels of 256 from the gradient's lighter to its darker end: a deviation of 10, where a blank picture has under 2
_BORDER = 0.04  # of a picture's side


class TitleTemplate(Settings):
    """How a language joins a title."""

    title: str = "{title} {points}"
    points: str = " "
    """Between selling points."""


@cache
def title_templates() -> dict[str, TitleTemplate]:
    """By language subtag; SettingsError names the file and the field where one is not valid."""
    path = files(__package__) / "templates.toml"
    return {name: validate_settings(TitleTemplate, values, path.name) for name, values in read_toml(str(path)).items()}


def template_title(product: ProductFacts, settings: FinishSettings) -> str | None:
    """The product's title with as many of its selling points, in their order, as `title_good_width` holds and no gate complains of.

    "" for a product without title and points, which the gate title_empty judges. None where the gate allowed_words is off, or no
    fallback is wanted: then any words will do, and the model's stay.
    """
    if not settings.fallbacks or settings.gates.allowed_words == "off":
        return None
    texts = (product.title, *product.selling_points)
    said, kept = product.title.strip(), []
    for point in map(str.strip, product.selling_points):
        if not point or point.casefold() in said.casefold():
            continue
        longer = _joined(product.title.strip(), [*kept, point], product.locale)
        is_first = not product.title.strip() and not kept
        fits = is_first or display_width(longer) <= settings.title_good_width
        if fits and title_complaint(longer, texts, product.locale, settings) is None:
            kept.append(point)
            said = longer
    return said


def _joined(title: str, points: list[str], locale: str | None) -> str:
    template = title_templates().get((locale or "").replace("_", "-").split("-")[0].lower(), TitleTemplate())
    joined = template.points.join(points)
    return template.title.format(title=title, points=joined) if title and joined else title or joined


def usable_background(picture: np.ndarray, product: ProductFacts, settings: FinishSettings) -> tuple[np.ndarray, str]:
    """The background (S, S, 3) uint8 that a creative gets, and whose it is: the model's `picture`, or a plain one where fallbacks
    are wanted and a gate complains of it. PairError: the product's picture cannot be read."""
    if settings.fallbacks and picture_complaint(picture, settings) is not None:
        return plain_background(product, len(picture)), "plain"
    return picture, "model"


def plain_background(product: ProductFacts, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the mean colour of the product picture's border, lighter above, darker below. PairError: the picture
    cannot be read."""
    picture = read_picture(product.cutout or product.image, "product picture").convert("RGBA")
    pixels = np.asarray(picture.crop(picture.getchannel("A").getbbox()))
    depth = max(1, round(min(pixels.shape[:2]) * _BORDER))
    border = np.ones(pixels.shape[:2], bool)
    border[depth:-depth, depth:-depth] = False
    shown = pixels[border & (pixels[..., 3] > 0)] if pixels.size else pixels.reshape(-1, 4)
    colour = shown[:, :3].mean(0) if len(shown) else np.full(3, 255.0)
    top = np.clip(colour + _SPAN / 2, _SPAN, 255)
    rows = top - np.linspace(0, _SPAN, side)[:, None]
    return np.broadcast_to(rows.round().astype(np.uint8)[:, None], (side, side, 3)).copy()
