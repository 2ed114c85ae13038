"""Pixels: reading pictures that strangers made, and placing a product on a canvas. A leaf: Pillow and numpy, no torch.

Reading is defensive: the header is checked before the pixels are decoded, and every way a file can be bad has its own
reason, so that a failed row says which.
"""

import io
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageFilter, ImageOps

from adgen.errors import PairError

MAX_PIXELS = 50_000_000
MIN_SIDE = 2
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ALPHA_THRESHOLD = 50  # spec 3.1: the product's box is where alpha is above this

# -- reading ---------------------------------------------------------------------------------------------------


def read_picture(source: bytes | str | Path, what: str = "picture", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as 8-bit sRGB, mode RGB or RGBA, upright; of an animation the first frame.

    PairError: missing_file, unreadable, truncated, too_large, too_small. Handles CMYK, palette, grey, 16-bit and
    EXIF-rotated files; RGBA when the file has any transparency.
    """
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except FileNotFoundError:
        raise PairError("missing_file", f"{what} {source}") from None
    except OSError as error:
        raise PairError("unreadable", f"{what} {source}: {error}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs and odd EXIF; the limits below decide
        try:
            if size := _webp_size(data):
                _check_size(*size, what, max_pixels)  # Pillow's WebP reader allocates the canvas when it opens
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(*picture.size, what, max_pixels)
            picture.load()
            return _eight_bit(_to_srgb(ImageOps.exif_transpose(picture)))
        except PairError:
            raise
        except (Image.DecompressionBombError, MemoryError):
            raise PairError("too_large", f"{what} is over the decoder's own limit") from None
        except Image.UnidentifiedImageError:
            raise PairError("unreadable", f"{what} ({len(data)} bytes) is not a picture of a known format") from None
        except Exception as error:
            # Whatever a decoder raises on these bytes (struct.error, KeyError, zlib.error ...) is the file's fault.
            raise PairError("truncated" if _is_cut(data, error) else "unreadable", f"{what}: {error}") from None


def _check_size(width: int, height: int, what: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PairError("too_large", f"{what} has {width}x{height} pixels, limit {max_pixels}")
    if min(width, height) < MIN_SIDE:
        raise PairError("too_small", f"{what} has {width}x{height} pixels, at least {MIN_SIDE} a side are needed")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that a WebP file's first chunk declares; None for other files."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _is_cut(data: bytes, error: Exception) -> bool:
    if data[:4] == b"RIFF":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return any(word in str(error).lower() for word in ("truncated", "not processed", "end of file"))


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Colours of a wide-gamut or CMYK profile as sRGB: a shop's red has to stay that red."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK"):
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture
        mode = "RGB" if picture.mode == "CMYK" else picture.mode
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (OSError, ImageCms.PyCMSError):
        return picture  # a profile nobody can read says nothing about the pixels


def _eight_bit(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow clips these modes to 255 when it converts them; scale by the range of the type instead.
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        top = 65535.0 if picture.mode.startswith("I;16") else _range_of(values)
        picture = Image.fromarray(np.clip(values / top * 255.0 + 0.5, 0, 255).astype(np.uint8))
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _range_of(values: np.ndarray) -> float:
    """The white of a 32-bit picture, which does not say: the smallest usual range that holds its brightest pixel."""
    return next((top for top in (1.0, 255.0, 65535.0) if values.max() <= top), float(values.max()))


# -- the product without its background -------------------------------------------------------------------------

BORDER_TOLERANCE = 24  # largest difference per channel from the border's colour that still counts as border
BORDER_SHARE = 0.9  # share of the outermost pixels that must have the border's colour
KEPT_SHARE = (0.005, 0.95)  # a product outside these shares of the picture means that the removal went wrong
BORDER_SIDE = 2048  # pixels; larger pictures are reduced first, which keeps time and memory in bounds
MAX_TURNS = 100  # of the border's longest way in: a maze is no product picture


def cut_out(picture: Image.Image) -> Image.Image:
    """The product as RGBA: `picture` itself where it has transparent pixels, else its near-uniform border removed.

    A "cut-out" that is opaque everywhere is a photograph saved under the wrong name. PairError: no_cutout.
    """
    if picture.mode == "RGBA" and picture.getchannel("A").getextrema()[0] < 255:
        return picture
    return remove_border(picture)


def check_product(picture: Image.Image) -> None:
    """PairError `no_cutout` unless `picture` holds a product that can be cut out and placed."""
    product_placement(cut_out(picture), 1.0)


def remove_border(picture: Image.Image) -> Image.Image:
    """RGBA without the near-uniform colour that reaches in from the edges; the product's edge is feathered.

    Areas of that colour inside the product stay. PairError `no_cutout` where the border is not of one colour, or nearly
    nothing or nearly everything would be left.
    """
    picture = picture.convert("RGB")
    picture.thumbnail((BORDER_SIDE, BORDER_SIDE), Image.Resampling.LANCZOS)
    rgb = np.asarray(picture)
    edge = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]]).astype(np.int16)
    colour = np.median(edge, axis=0).astype(np.int16)
    uniform = float((np.abs(edge - colour).max(axis=1) <= BORDER_TOLERANCE).mean())
    if uniform < BORDER_SHARE:
        raise PairError("no_cutout", f"no cut-out, and only {uniform:.0%} of the picture's edge is of one colour")
    outside = _reached_from_edges(np.abs(rgb - colour).max(axis=2) <= BORDER_TOLERANCE)
    product = Image.fromarray(np.where(outside, 0, 255).astype(np.uint8))
    # Median: specks of noise in the border go. Minimum: the outermost pixel is half border, a halo on any other colour.
    product = product.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.MinFilter(3))
    product = product.filter(ImageFilter.GaussianBlur(0.7))
    kept = float(np.asarray(product).mean()) / 255
    if not KEPT_SHARE[0] <= kept <= KEPT_SHARE[1]:
        raise PairError("no_cutout", f"no cut-out, and removing the border leaves {kept:.1%} of the picture")
    return Image.fromarray(np.dstack([rgb, np.asarray(product)]))


def _reached_from_edges(open_: np.ndarray) -> np.ndarray:
    """The part of a (H, W) mask that is connected with the picture's edge in four directions."""
    reached = np.zeros_like(open_)
    reached[[0, -1]], reached[:, [0, -1]] = open_[[0, -1]], open_[:, [0, -1]]
    before = -1
    for _ in range(MAX_TURNS // 2):  # each round follows the ways in around two more turns
        if (count := int(reached.sum())) == before:
            return reached
        before = count
        reached = _spread_along_rows(reached, open_)
        reached = _spread_along_rows(reached.T, open_.T).T
    raise PairError("no_cutout", f"no cut-out, and the picture's border winds around more than {MAX_TURNS} turns")


def _spread_along_rows(reached: np.ndarray, open_: np.ndarray) -> np.ndarray:
    """Every horizontal run of open pixels that holds a reached one becomes reached as a whole."""
    starts = open_.copy()
    starts[:, 1:] &= ~open_[:, :-1]
    run = np.cumsum(starts.ravel())  # the run's number at each of its pixels
    hit = np.zeros(run[-1] + 1, dtype=bool)
    hit[run[reached.ravel()]] = True
    return open_ & hit[run].reshape(open_.shape)


# -- the product on its frame ----------------------------------------------------------------------------------


class Placement(NamedTuple):
    """Where a product goes in its frame, in the frame's pixels; right and bottom are exclusive."""

    crop: tuple[int, int, int, int]
    """What is taken of the cut-out: left, top, right, bottom."""
    target: tuple[int, int, int, int]
    """Where it goes: left, top, right, bottom; smaller than `crop` where the product was over its largest share."""


def square_frame(rgba: Image.Image) -> Image.Image:
    """The cut-out centred on a transparent square whose side is its longer one; a square cut-out is returned as it is.

    The published model stretches a non-square cut-out to a square and pastes it stretched. Here the condition and the
    paste both start from this square, so that the product keeps its shape in what the model sees and in the creative.
    """
    side = max(rgba.size)
    if rgba.size == (side, side):
        return rgba
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    return square


def product_box(rgba: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels with alpha above 50, as minimum and maximum indices (both inclusive).

    PairError `no_cutout` when there is no such pixel.
    """
    box = rgba.getchannel("A").point(lambda alpha: 255 * (alpha > ALPHA_THRESHOLD)).getbbox()
    if box is None:
        raise PairError("no_cutout", "the cut-out has no visible pixel")
    left, top, right, bottom = box
    return left, top, right - 1, bottom - 1


def product_placement(rgba: Image.Image, max_ratio: float) -> Placement:
    """Where the product of a frame goes when it may take at most `max_ratio` of it in either direction (spec 3.1).

    The crop leaves out the last row and column of the alpha box, and box centre and size are truncated to integers,
    both as the published model does: its weights have seen exactly these pixels. PairError: invalid_scale when
    max_ratio is not in 0..1, no_cutout when nothing is visible.
    """
    if not 0 < max_ratio <= 1:
        raise PairError("invalid_scale", f"scale {max_ratio} is not above 0 and at most 1")
    # Tables hold scale as float32; 0.7 must come back as 0.7, or the truncation below loses a pixel.
    max_ratio = round(float(max_ratio), 6)
    left, top, right, bottom = product_box(rgba)
    width, height = right - left, bottom - top
    if width == 0 or height == 0:
        raise PairError("no_cutout", "the cut-out's product is one pixel thin")
    largest = max(width / rgba.width, height / rgba.height)
    if largest > max_ratio:
        shrink = max_ratio / largest
        width, height = max(1, int(width * shrink)), max(1, int(height * shrink))
    x = int((left + right) / 2 - width / 2)
    y = int((top + bottom) / 2 - height / 2)
    return Placement((left, top, right, bottom), (x, y, x + width, y + height))


def place_product(rgba: Image.Image, max_ratio: float) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The product on an empty canvas of its own size, no larger than `max_ratio` of the frame (spec 3.1).

    Returns the RGBA canvas and (left, top, right, bottom) of the pasted crop, right and bottom exclusive.
    """
    crop_box, target = product_placement(rgba, max_ratio)
    crop = rgba.crop(crop_box)
    size = (target[2] - target[0], target[3] - target[1])
    if crop.size != size:
        crop = crop.resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", rgba.size, (0, 0, 0, 0))
    canvas.paste(crop, target[:2])
    return canvas, target


def on_white(rgba: Image.Image) -> Image.Image:
    """Alpha-composited over white, RGB."""
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")
