"""Pictures of every format that is read, and what may happen to their bytes."""

import io
import struct

import numpy as np
from hypothesis import strategies as draw
from PIL import Image, ImageCms

from support.fuzz.documents import mutated_bytes

SIDE = 24


def pictures() -> dict[str, bytes]:
    """A speckled square on white, as files of every kind."""
    pixels = np.full((SIDE, SIDE, 4), 255, np.uint8)
    pixels[5:19, 5:19] = np.random.default_rng(0).integers(0, 200, (14, 14, 4), dtype=np.uint8)
    rgba, rgb = Image.fromarray(pixels), Image.fromarray(pixels[..., :3])
    grey = Image.fromarray(np.asarray(rgb.convert("L"), np.uint16) * 257)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = {
        "rgb.png": (rgb, "PNG", {}),
        "rgba.png": (rgba, "PNG", {}),
        "profile.png": (rgb, "PNG", {"icc_profile": profile}),
        "grey16.png": (grey, "PNG", {}),
        "palette.png": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "bits.png": (rgb.convert("1"), "PNG", {}),
        "exif.png": (rgb, "PNG", {"exif": exif}),
        "rgb.jpg": (rgb, "JPEG", {"quality": 95}),
        "exif.jpg": (rgb, "JPEG", {"quality": 95, "exif": exif}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {"quality": 95}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True}),
        "lossy.webp": (rgb, "WEBP", {}),
        "lossless.webp": (rgba, "WEBP", {"lossless": True}),
        "animated.webp": (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "animated.gif": (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "rgb.bmp": (rgb, "BMP", {}),
        "rgb.tiff": (rgb, "TIFF", {}),
        "packed.tiff": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "float.tiff": (Image.fromarray(np.asarray(rgb.convert("L"), np.float32) / 255), "TIFF", {}),
        "rgb.avif": (rgb, "AVIF", {}),
    }
    return {name: _bytes(picture, kind, options) for name, (picture, kind, options) in saved.items()}


def _bytes(picture: Image.Image, kind: str, options: dict) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def spoilt_bytes(sound: bytes) -> draw.SearchStrategy[bytes]:
    """Changes anywhere; in the head, where sizes stand; or a size that is enormous."""

    @draw.composite
    def in_head(choose) -> bytes:
        data = bytearray(sound)
        place = choose(draw.integers(0, min(64, len(data) - 4)))
        number = choose(draw.sampled_from((0, 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1, 100_000)))
        order = choose(draw.sampled_from((">I", "<I", ">H", "<H")))
        packed = struct.pack(order, number & (0xFFFF if order[1] == "H" else 0xFFFFFFFF))
        data[place : place + len(packed)] = packed
        return bytes(data)

    return mutated_bytes(sound) | in_head()


@draw.composite
def harmless(choose, sound: dict[str, bytes]) -> tuple[str, bytes]:
    """A picture with something behind its end, or with notes that nobody can read; its name, and the bytes."""
    name = choose(draw.sampled_from(("rgb.png", "rgba.png", "rgb.jpg", "animated.gif", "rgb.bmp", "exif.png", "exif.jpg")))
    junk = choose(draw.binary(max_size=200))
    if not name.startswith("exif"):
        return name, sound[name] + junk
    # A second block of notes, before the first: its reader has to get over it.
    if name == "exif.jpg":
        block = b"\xff\xed" + struct.pack(">H", len(junk) + 2) + junk  # APP13: an editor's own
        return name, sound[name][:2] + block + sound[name][2:]
    import zlib

    chunk = b"zzZz" + junk
    return name, sound[name][:33] + struct.pack(">I", len(junk)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + sound[name][33:]
