"""Pixels: reading pictures that strangers made, and placing a product on a canvas. A leaf: Pillow and numpy, no torch.

Reading is defensive: the header is checked before the pixels are decoded, and every way a file can be bad has its own
reason, so that a failed row says which.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from adgen.errors import PairError

MAX_PIXELS = 50_000_000
MIN_SIDE = 2
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ALPHA_THRESHOLD = 50  # spec 3.1: the product's box is where alpha is above this


def read_picture(source: bytes | str | Path, what: str = "picture", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as 8-bit RGB or RGBA, upright. PairError: missing_file, unreadable, truncated, too_large, too_small.

    Handles CMYK, palette, grey, 16-bit and EXIF-rotated files; RGBA when the file has any transparency.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except FileNotFoundError:
        raise PairError("missing_file", f"{what} {source}") from None
    except OSError as error:
        raise PairError("unreadable", f"{what} {source}: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs and odd EXIF; the limits below decide
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height > max_pixels:
                raise PairError("too_large", f"{what} has {width}x{height} pixels, limit {max_pixels}")
            if min(width, height) < MIN_SIDE:
                raise PairError("too_small", f"{what} has {width}x{height} pixels")
            picture.load()
            return _eight_bit(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        raise PairError("too_large", f"{what} is over the decoder's own limit") from None
    except Image.UnidentifiedImageError:
        raise PairError("unreadable", f"{what} is not a picture of a known format") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise PairError(reason, f"{what}: {error}") from None


def _eight_bit(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow clips 16-bit to 255 when converting; scale by the type's range instead.
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        picture = Image.fromarray(np.clip(values / top * 255.0 + 0.5, 0, 255).astype(np.uint8))
    transparent = "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info
    return picture.convert("RGBA" if transparent else "RGB")


def product_box(rgba: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels with alpha above 50, as minimum and maximum indices (both inclusive).

    PairError `no_cutout` when there is no such pixel.
    """
    alpha = np.asarray(rgba.getchannel("A"))
    rows, columns = np.nonzero(alpha > ALPHA_THRESHOLD)
    if rows.size == 0:
        raise PairError("no_cutout", "the cut-out has no visible pixel")
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def place_product(rgba: Image.Image, max_ratio: float) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The product on an empty canvas of its own size, no larger than `max_ratio` of the frame (spec 3.1).

    Returns the RGBA canvas and (left, top, right, bottom) of the pasted crop, right and bottom exclusive. The crop leaves
    out the last row and column of the alpha box, and box centre and size are truncated to integers, both as the
    published model does: its weights have seen exactly these pixels.
    """
    width, height = rgba.size
    left, top, right, bottom = product_box(rgba)
    if right == left or bottom == top:
        raise PairError("no_cutout", "the cut-out's product is one pixel thin")
    crop = rgba.crop((left, top, right, bottom))
    crop_width, crop_height = crop.size
    largest = max(crop_width / width, crop_height / height)
    if largest > max_ratio:
        shrink = max_ratio / largest
        crop_width, crop_height = max(1, int(crop_width * shrink)), max(1, int(crop_height * shrink))
        crop = crop.resize((crop_width, crop_height), Image.Resampling.BICUBIC)
    x = int((left + right) / 2 - crop_width / 2)
    y = int((top + bottom) / 2 - crop_height / 2)
    canvas = Image.new("RGBA", rgba.size, (0, 0, 0, 0))
    canvas.paste(crop, (x, y))
    return canvas, (x, y, x + crop_width, y + crop_height)


def on_white(rgba: Image.Image) -> Image.Image:
    """Alpha-composited over white, RGB."""
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def paste_product(background: Image.Image, placed: Image.Image) -> Image.Image:
    """The placed product (RGBA canvas, any size) alpha-pasted over `background`, at the background's size; RGB."""
    if placed.size != background.size:
        placed = placed.resize(background.size, Image.Resampling.BICUBIC)
    return Image.alpha_composite(background.convert("RGBA"), placed).convert("RGB")
