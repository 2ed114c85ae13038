"""From a generated background and title to a creative: paste, clean, judge, mark, encode. Pure: bytes in, bytes out."""

from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from PIL import Image

from adgen.config import FinishSettings
from adgen.cutouts import cut_out
from adgen.errors import PairError
from adgen.finishing.channels import label_for
from adgen.finishing.encode import Encoded, encode
from adgen.finishing.gates import Draft, Verdict, judge
from adgen.finishing.marking import draw_label, xmp_packet
from adgen.finishing.paste import Composite, compose
from adgen.finishing.titles import clean_title
from adgen.images import read_picture


@dataclass(frozen=True, slots=True)
class ProductFacts:
    """What finishing needs to know of a product and of where its creative will be shown."""

    title: str
    selling_points: tuple[str, ...] = ()
    cutout: bytes | None = None
    """Picture file with transparency; preferred."""
    image: bytes | None = None
    """Picture file; its near-uniform border is removed when there is no cut-out."""
    scale: float | None = None
    """Largest share of the frame that the product may take, 0..1; None does not shrink it."""
    locale: str | None = None
    channel: str | None = None


@dataclass(frozen=True, slots=True)
class Rendition:
    """A further size of a creative."""

    ratio: str
    """In lowest terms, "4:5"."""
    picture: Encoded


@dataclass(frozen=True, slots=True)
class Finished:
    """A creative, rejected ones included: their pictures are for the report and are not meant to be published."""

    title: str
    picture: Encoded
    renditions: tuple[Rendition, ...]
    verdict: Verdict

    def manifest_fields(self) -> dict[str, Any]:
        """The manifest columns that finishing decides; uri, sha256 and bytes follow from `picture.data`."""
        return {
            "status": self.verdict.status,
            "reason": self.verdict.reason,
            "title": self.title or None,
            "width": self.picture.width,
            "height": self.picture.height,
            "format": self.picture.format,
            "gates": self.verdict.gates,
            "scores": self.verdict.scores,
        }


def product_cutout(product: ProductFacts) -> Image.Image:
    """The product as RGBA at its own resolution. PairError: no_cutout, or what `read_picture` finds."""
    if product.cutout is not None:
        return cut_out(read_picture(product.cutout, "cut-out"))
    if product.image is not None:
        return cut_out(read_picture(product.image, "product picture"))
    raise PairError("no_cutout", "the product has neither a cut-out nor a picture")


def finish(background: np.ndarray, title: str, product: ProductFacts, settings: FinishSettings) -> Finished:
    """The creative of a generated background (N, N, 3 uint8) and title. PairError when the product cannot be used."""
    if background.dtype != np.uint8 or background.ndim != 3 or background.shape[2] != 3:
        raise ValueError(f"background is {background.dtype} {background.shape}, not uint8 (N, N, 3)")
    scene = Image.fromarray(background)
    cutout = product_cutout(product)
    scale = 1.0 if product.scale is None else product.scale
    main = compose(scene, cutout, scale, settings.width, settings.height)
    cleaned = clean_title(title, settings.title_max_width)
    draft = Draft(
        title=cleaned.text,
        title_was_cut=cleaned.was_cut,
        product_texts=(product.title, *product.selling_points),
        locale=product.locale,
        background=background,
        product_share=main.product_share,
        product_inside=main.product_inside,
    )
    verdict = judge(draft, settings)
    renditions = []
    for wanted in settings.renditions:
        composite = compose(scene, cutout, scale, wanted.width, wanted.height)
        ratio = _ratio(wanted.width, wanted.height)
        if composite.product_inside < settings.product_inside_min:
            inside = f"warn: only {composite.product_inside:.0%} of the product is inside, left out"
            verdict.gates[f"rendition {ratio}"] = inside
            continue
        renditions.append(Rendition(ratio, _as_file(composite, wanted.format, product.channel, settings)))
    picture = _as_file(main, settings.format, product.channel, settings)
    return Finished(cleaned.text, picture, tuple(renditions), verdict)


def _as_file(composite: Composite, format: str, channel: str | None, settings: FinishSettings) -> Encoded:
    picture = composite.picture
    if label := label_for(channel, settings):
        picture = draw_label(picture, label, settings.label_font)
    return encode(picture, format, settings.quality, xmp_packet(picture, settings), settings.webp_method)


def _ratio(width: int, height: int) -> str:
    divisor = gcd(width, height)
    return f"{width // divisor}:{height // divisor}"
