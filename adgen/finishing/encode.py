"""From pixels to the bytes of a picture file, in memory. Nothing is written here: adgen/creatives/objects.py puts the bytes into
the store. The same pixels, settings and library versions give the same bytes.

A new size is no code: `finish.width`, `finish.height` and `finish.renditions` (adgen/config.py). A new output format is an entry in
`PictureFormat` (adgen/config.py), in both tables here, and a branch of `_options`.
"""

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, PngImagePlugin

from adgen.config import PictureFormat

CONTENT_TYPES = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}
EXTENSIONS = {"webp": "webp", "jpeg": "jpg", "png": "png"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture file."""

    data: bytes
    format: str
    """webp, jpeg or png."""
    width: int
    height: int

    @property
    def extension(self) -> str:
        """Of an object's name, without a dot."""
        return EXTENSIONS[self.format]

    @property
    def content_type(self) -> str:
        """For the object's Content-Type."""
        return CONTENT_TYPES[self.format]


def encode(picture: Image.Image, format: PictureFormat, quality: int, xmp: bytes, webp_method: int = 4) -> Encoded:
    """`picture` (RGB) as a file that carries `xmp`; quality 1..100 is of WebP and JPEG, webp_method 0 (quick) to 6 (small)."""
    out = io.BytesIO()
    picture.save(out, **_options(format, quality, xmp, webp_method))
    return Encoded(out.getvalue(), format, *picture.size)


def _options(format: str, quality: int, xmp: bytes, webp_method: int) -> dict[str, Any]:
    if format == "webp":
        return {"format": "WEBP", "quality": quality, "method": webp_method, "xmp": xmp, "icc_profile": b"", "exif": b""}
    if format == "jpeg":
        # Full colour resolution: 4:2:0 bleeds the product's saturated edges into the background. No `optimize`: Pillow
        # gives it a buffer of a byte a pixel and fails on pictures that need more.
        return {"format": "JPEG", "quality": quality, "subsampling": "4:4:4", "xmp": xmp}
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8"))
    return {"format": "PNG", "compress_level": 6, "pnginfo": chunks}
