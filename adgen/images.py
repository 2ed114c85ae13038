"""Pixels: reading pictures that strangers made, and placing a product on a canvas. A leaf: Pillow and numpy, no torch.

Reading is defensive: the header is checked before the pixels are decoded, and every way a file can be bad has its own
reason, so that a failed row says which.
"""

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from adgen.config import PictureSettings
from adgen.errors import PairError

MAX_PIXELS = 50_000_000
MIN_SIDE = 2
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
ALPHA_THRESHOLD = 50  # docs/design.md 6.6: the product's box is where alpha is above this

# -- reading ---------------------------------------------------------------------------------------------------


class _Limits:
    """What pictures may be, and the bytes that the process's threads decode into, or hold, right now."""

    def __init__(self, settings: PictureSettings):
        self.settings = settings
        self._taken = 0
        self._freed = threading.Condition()

    @contextmanager
    def decoding(self, size: int) -> Iterator[None]:
        """Waits until `size` bytes (at most all) are free. In a block of `holding` they stay taken to its end."""
        held = getattr(_thread, "held", None)
        with self._freed:
            if not held:  # who holds a picture does not wait for another one, or all might wait for each other
                self._freed.wait_for(lambda: self._taken + size <= self.settings.max_decoded_bytes)
            self._taken += size
        try:
            yield
        except BaseException:
            self.free(size)
            raise
        if held is None:
            self.free(size)
        else:
            held.append((self, size))

    def free(self, size: int) -> None:
        """Give back what was taken."""
        with self._freed:
            self._taken -= size
            self._freed.notify_all()


_limits = _Limits(PictureSettings())
_thread = threading.local()


@contextmanager
def holding() -> Iterator[None]:
    """A block in which a thread works on pictures that it reads: they count as decoded until it ends, so that many threads hold no
    more of them at once than they may decode. What the block gives away should be small. A block in a block is part of it."""
    if getattr(_thread, "held", None) is not None:
        yield
        return
    _thread.held = []
    try:
        yield
    finally:
        held, _thread.held = _thread.held, None
        for limits, size in held:
            limits.free(size)


def use_limits(settings: PictureSettings) -> None:
    """Set what this process takes for a picture, and how much of pictures it decodes at once."""
    global _limits
    if settings != _limits.settings:
        _limits = _Limits(settings)


def read_picture(source: bytes | str | Path, what: str = "picture", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as 8-bit sRGB, mode RGB or RGBA, upright; of an animation the first frame.

    PairError: missing_file, unreadable, truncated, too_large, too_small. Handles CMYK, palette, grey, 16-bit and
    EXIF-rotated files; RGBA when the file has any transparency. Waits while other threads decode as much as a process may.
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
            return _decoded(data, what, max_pixels)
        except PairError:
            raise
        except (Image.DecompressionBombError, MemoryError):
            raise PairError("too_large", f"{what} is over the decoder's own limit") from None
        except Image.UnidentifiedImageError:
            found = f"{what} ({len(data)} bytes) is {format_of(data)}"
            raise PairError("unreadable", f"{found}; pictures are {', '.join(FORMATS)}") from None
        except Exception as error:
            # Whatever a decoder raises on these bytes (struct.error, KeyError, zlib.error ...) is the file's fault.
            reason = "truncated" if _is_cut(data, error) else "unreadable"
            raise PairError(reason, f"{what} ({format_of(data)}): {error}") from None


def _decoded(data: bytes, what: str, max_pixels: int) -> Image.Image:
    # Pillow's WebP reader allocates the canvas when it opens: for that format the first chunk says what the others' header does.
    size, picture, mode = _webp_size(data), None, "RGBA"
    if size is None:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        size, mode = picture.size, picture.mode
    _check_size(*size, what, max_pixels)
    needed = size[0] * size[1] * (_BYTES_PER_PIXEL.get(mode.partition(";")[0], 4) + 4)  # as the file has it, and as RGB or RGBA
    limits = _limits
    if needed > limits.settings.max_decoded_bytes:
        raise PairError("too_large", f"{what} takes {needed} bytes to decode, limit {limits.settings.max_decoded_bytes}")
    with limits.decoding(needed):
        picture = picture or Image.open(io.BytesIO(data), formats=FORMATS)
        picture.load()
        return _eight_bit(_to_srgb(_upright(picture)))


_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I": 4, "F": 4}  # Pillow keeps all others in four


def _check_size(width: int, height: int, what: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PairError("too_large", f"{what} has {width}x{height} pixels, limit {max_pixels}")
    if min(width, height) < MIN_SIDE:
        raise PairError("too_small", f"{what} has {width}x{height} pixels, at least {MIN_SIDE} a side are needed")
    if max(width, height) > _limits.settings.max_aspect * min(width, height):
        raise PairError("too_large", f"{what} has {width}x{height} pixels, longer than {_limits.settings.max_aspect:g} to 1")


_SIGNATURES = (  # offset, bytes in lower case, what such a file is
    (0, b"\xff\xd8\xff", "JPEG"), (0, b"\x89png", "PNG"), (0, b"gif8", "GIF"), (0, b"bm", "BMP"), (0, b"ii*\0", "TIFF"),
    (0, b"mm\0*", "TIFF"), (8, b"webp", "WEBP"), (4, b"ftypavi", "AVIF"), (4, b"ftyphe", "HEIC"), (4, b"ftypmif1", "HEIF"),
    (4, b"ftyp", "a video"), (4, b"jxl ", "JPEG XL"), (0, b"\xff\x0a", "JPEG XL"), (4, b"jp  ", "JPEG 2000"), (0, b"%pdf", "PDF"),
    (0, b"%!ps", "PostScript"), (0, b"8bps", "a Photoshop file"), (0, b"\0\0\1\0", "an icon"), (0, b"pk\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "gzip data"), (0, b"<!doctype html", "HTML"), (0, b"<html", "HTML"), (0, b"<svg", "SVG"), (0, b"<?xml", "XML"),
    (0, b"{", "JSON"), (0, b"version https://git-lfs", "a Git LFS pointer"),
)  # fmt: skip


def format_of(data: bytes) -> str:
    """What a file is by its first bytes, for people."""
    head = data[:64].removeprefix(b"\xef\xbb\xbf").lower()
    head = head.lstrip() if head.lstrip()[:1] in (b"<", b"{") else head
    found = (name for offset, signature, name in _SIGNATURES if head[offset:].startswith(signature))
    return next(found, "of no format that we know" if data else "empty")


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


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF says. Pillow's own function writes the EXIF again, and fails with what is broken in it."""
    try:
        turn = _TURNS.get(picture.getexif().get(0x0112))
    except Exception:  # whatever its parser raises: notes that nobody can read say nothing about the pixels
        return picture
    return picture if turn is None else picture.transpose(turn)


def _to_srgb(picture: Image.Image) -> Image.Image:
    """Colours of a wide-gamut or CMYK profile as sRGB: a shop's red has to stay that red."""
    profile = picture.info.get("icc_profile")
    if profile and picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
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


_ROWS_AT_ONCE = 64


def _eight_bit(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow clips these modes to 255 when it converts them; scale by the range of the type instead.
        values, out = np.asarray(picture), np.empty(picture.size[::-1], np.uint8)
        blocks = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(values), _ROWS_AT_ONCE)]
        brightest = max(float(np.nan_to_num(values[block].astype(np.float64)).max()) for block in blocks)
        top = 65535.0 if picture.mode.startswith("I;16") else _range_of(brightest)
        for block in blocks:  # as float64 the whole picture would take many times its bytes
            out[block] = np.clip(np.nan_to_num(values[block].astype(np.float64)) / top * 255.0 + 0.5, 0, 255).astype(np.uint8)
        picture = Image.fromarray(out)
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def _range_of(brightest: float) -> float:
    """The white of a 32-bit picture, which does not say: the smallest usual range that holds its brightest pixel."""
    return next((top for top in (1.0, 255.0, 65535.0) if brightest <= top), brightest)


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
    """Where the product of a frame goes when it may take at most `max_ratio` of it in either direction (docs/design.md 6.6).

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
    """The product on an empty canvas of its own size, no larger than `max_ratio` of the frame (docs/design.md 6.6).

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


CONDITION_SIDE = 512  # of the square that the published model squeezes every product picture into first


def condition_square(frame: Image.Image, max_ratio: float) -> Image.Image:
    """A product's cut-out (RGBA, in its `square_frame`) as a model is shown it, before its own size: placed, on white, squeezed to
    a square (RGB).

    PairError: invalid_scale, no_cutout."""
    placed, _ = place_product(frame, max_ratio)
    return on_white(placed).resize((CONDITION_SIDE, CONDITION_SIDE), Image.Resampling.BICUBIC)


def on_white(rgba: Image.Image) -> Image.Image:
    """Alpha-composited over white, RGB."""
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")
