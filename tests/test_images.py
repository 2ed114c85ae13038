"""adgen/images.py: pictures that strangers made, and the product on its frame as the published model saw it."""

import io
import json
import struct
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw
from safetensors.numpy import load_file
from support.threads import Counted

from adgen import images
from adgen.config import PictureSettings
from adgen.cutouts import cut_out, remove_border
from adgen.errors import PairError
from adgen.images import on_white, place_product, product_placement, read_picture, square_frame, use_limits

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "product_preprocess.json").read_text())["cases"]


def saved(picture: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, format=format, **options)
    return out.getvalue()


def noise(width=40, height=30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reason_of(data: bytes, **limits) -> str:
    with pytest.raises(PairError) as caught:
        read_picture(data, **limits)
    return caught.value.reason


def mode_or_reason(data: bytes) -> str:
    try:
        return read_picture(data, max_pixels=1_000_000).mode
    except PairError as error:
        return error.reason


# -- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_is_read_as_rgb(format):
    picture = read_picture(saved(Image.new("RGB", (40, 30), (200, 30, 60)), format))
    assert (picture.mode, picture.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(picture).astype(int) - [200, 30, 60]).max() <= 4


def test_cmyk_jpeg_keeps_its_colours():
    # Pillow writes CMYK as Adobe does, with inverted values; reading them plainly would give a negative.
    picture = read_picture(saved(Image.new("RGB", (32, 32), (230, 20, 20)).convert("CMYK"), "JPEG"))
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture)[16, 16].astype(int) - [230, 20, 20]).max() <= 8


def test_palette_with_transparency_becomes_rgba():
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(1, (0, 0, 4, 8))
    read = read_picture(saved(picture, "PNG", transparency=0))
    assert read.mode == "RGBA"
    assert read.getpixel((0, 0)) == (0, 0, 255, 255)
    assert read.getpixel((7, 7))[3] == 0


def test_grey_with_alpha_becomes_rgba():
    read = read_picture(saved(Image.merge("LA", [Image.new("L", (8, 8), 90), Image.new("L", (8, 8), 40)]), "PNG"))
    assert (read.mode, read.getpixel((3, 3))) == ("RGBA", (90, 90, 90, 40))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    read = np.asarray(read_picture(saved(Image.fromarray(ramp), format)))
    assert np.abs(read[..., 0].astype(float) - ramp / 257).max() <= 1


def test_dark_sixteen_bit_grey_stays_dark():
    read = read_picture(saved(Image.fromarray(np.full((8, 8), 200, np.uint16)), "PNG"))
    assert read.getpixel((0, 0)) == (1, 1, 1)


def test_sixteen_bit_colour_png():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 4
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    assert read_picture(data).getpixel((1, 1)) == (255, 128, 0)


def test_float_tiff_with_nan_is_read():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, 0] = np.nan
    read = np.asarray(read_picture(saved(Image.fromarray(values), "TIFF")))
    assert (read[0, 0, 0], read[7, 7, 0]) == (0, 255)


@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 20)), (3, (40, 20)), (6, (20, 40)), (8, (20, 40))])
def test_exif_rotation_is_applied(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste("red", (0, 0, 20, 20))
    read = read_picture(saved(picture, "JPEG", exif=exif, quality=95))
    assert read.size == size
    red_corner = {1: (2, 2), 3: (37, 2), 6: (2, 2), 8: (2, 37)}[orientation]
    assert read.getpixel(red_corner)[0] > 200


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


BROKEN_EXIF = {
    "JPEG, its directory is cut": lambda: saved(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff"),
    "JPEG, no TIFF": lambda: saved(noise(), "JPEG", exif=b"Exif\0\0junkjunkjunk"),
    "PNG, no TIFF": lambda: with_chunk(saved(noise(), "PNG"), b"eXIf", b"junkjunk"),
    "PNG, raw profile is no hex": lambda: with_chunk(
        saved(noise(), "PNG"), b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 8\nnot hex!")
    ),
    "WEBP, no TIFF": lambda: saved(noise(), "WEBP", exif=b"junkjunk"),
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_broken_exif_never_loses_a_sound_picture(name):
    picture = read_picture(BROKEN_EXIF[name]())
    assert (picture.mode, picture.size) == ("RGB", (40, 30))


def test_a_note_that_cannot_be_written_again_does_not_lose_the_turn():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(saved(Image.new("RGB", (40, 20)), "PNG", exif=exif.tobytes() + b"\0" * 8))
    assert read_picture(bytes(data)).size == (20, 40)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    assert read_picture(data).convert("RGB").getpixel((8, 8))[0] > 200


def test_colour_profile_is_honoured():
    """A profile whose red and blue are exchanged: the picture comes out blue. sRGB and broken profiles change nothing."""
    red = Image.new("RGB", (8, 8), (200, 40, 40))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = srgb.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    exchanged = exchanged.replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))
    got = read_picture(saved(red, "PNG", icc_profile=exchanged)).getpixel((0, 0))
    assert got[2] > 150 > 100 > got[0]
    palette = read_picture(saved(red.quantize(4), "PNG", icc_profile=exchanged))
    assert (palette.mode, palette.getpixel((0, 0))) == ("RGB", got)
    assert read_picture(saved(red, "PNG", icc_profile=srgb)).getpixel((0, 0)) == (200, 40, 40)
    assert read_picture(saved(red, "PNG", icc_profile=b"no profile")).getpixel((0, 0)) == (200, 40, 40)


def test_bad_files_have_their_own_reasons(tmp_path):
    assert reason_of(b"") == "unreadable"
    assert reason_of(b"not a picture at all") == "unreadable"
    assert reason_of(saved(Image.new("RGB", (1, 1)), "PNG")) == "too_small"
    assert reason_of(saved(Image.new("1", (300, 300)), "PNG"), max_pixels=80_000) == "too_large"
    with pytest.raises(PairError, match="missing_file"):
        read_picture(tmp_path / "absent.png")
    with pytest.raises(PairError, match="unreadable"):
        read_picture(tmp_path)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"%PDF-1.7 and so on", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><title>404</title>", "HTML"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\x89PNG\r\n\x1a\nno chunk at all", "PNG"),
        (b"", "empty"),
        (b"words", "of no format that we know"),
    ],
)
def test_what_is_no_picture_is_named(data, found):
    with pytest.raises(PairError, match=rf"(unreadable|truncated): picture \(.*{found}"):
        read_picture(data)


def test_a_long_strip_is_refused_before_it_is_decoded(monkeypatch):
    """And one that is not much longer than wide is read."""
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    assert reason_of(saved_header(2_000_000, 24)) == "too_large"
    assert reason_of(saved_header(24, 1201)) == "too_large"
    monkeypatch.undo()
    assert read_picture(saved(Image.new("L", (24, 1200)), "PNG")).size == (24, 1200)


def saved_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG that says its size and holds nothing."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return with_chunk(with_chunk(b"\x89PNG\r\n\x1a\n".ljust(33), b"IDAT", b""), b"IHDR", header).replace(b" " * 25, b"")


@pytest.fixture
def limits():
    """`use_limits`, and the usual limits afterwards."""
    yield lambda **limits: use_limits(PictureSettings(**limits))
    use_limits(PictureSettings())


def test_a_picture_that_decodes_into_more_than_a_process_may_hold_is_too_large(limits):
    """A grey picture takes a byte a pixel as it is in the file, one of 16 bits four as Pillow keeps it (two before version 13),
    and each four more as RGB."""
    grey, deep = Image.new("L", (100, 100)), Image.fromarray(np.zeros((100, 100), np.int32))
    limits(max_decoded_bytes=50_000)
    assert read_picture(saved(grey, "PNG")).size == (100, 100)
    assert reason_of(saved(deep, "TIFF")) == "too_large"
    assert reason_of(saved(Image.new("RGB", (100, 100)), "WEBP")) == "too_large"
    limits(max_decoded_bytes=80_000)
    assert read_picture(saved(deep, "TIFF")).size == (100, 100)


def test_threads_decode_no_more_at_once_than_a_process_may_hold(limits, monkeypatch):
    limits(max_decoded_bytes=200_000)  # two of these pictures
    busy, most, lock = set(), [], threading.Lock()
    turned = images._upright

    def watched(picture):
        with lock:
            busy.add(id(picture))
            most.append(len(busy))
        time.sleep(0.01)
        with lock:
            busy.remove(id(picture))
        return turned(picture)

    monkeypatch.setattr(images, "_upright", watched)
    data = saved(Image.new("RGB", (100, 100)), "PNG")
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(read_picture, [data] * 16))) == 16
    assert max(most) == 2


def test_threads_hold_no_more_at_once_than_a_process_may_decode(limits):
    """Who reads a second picture in a block does not wait for itself."""
    limits(max_decoded_bytes=200_000)
    data, counter = saved(Image.new("RGB", (100, 100)), "PNG"), Counted()

    def work(_):
        with images.holding():
            read_picture(data)
            with counter:
                time.sleep(0.01)
            read_picture(data)
            with images.holding():
                read_picture(data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    assert counter.most == 2


def test_a_picture_that_fails_in_a_block_gives_its_bytes_back(limits):
    limits(max_decoded_bytes=200_000)
    cut = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)), "PNG")[:-500]

    def work():
        with images.holding():
            assert reason_of(cut) == "truncated"
            read_picture(saved(Image.new("RGB", (100, 100)), "PNG"))
            raise ValueError("mine")

    for _ in range(4):
        with pytest.raises(ValueError, match="mine"):
            work()


def test_sixteen_bits_take_no_memory_beside_the_picture():
    """As float64 a picture would take 24 bytes a pixel."""
    data = saved(Image.fromarray(np.zeros((2000, 2000), np.uint16)), "PNG")
    tracemalloc.start()
    try:
        read_picture(data)
        assert tracemalloc.get_traced_memory()[1] < 2000 * 2000 * 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_file_says_so(format):
    data = saved(noise(200, 200), format)
    assert reason_of(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pixel_bomb_is_refused_from_its_header(format):
    """The file declares far more pixels than it holds: reading it must fail on the size, not on the data."""
    data = bytearray(saved(noise(60, 60), format, **({"lossless": True} if format == "WEBP" else {})))
    if format == "PNG":
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    elif format == "WEBP":
        data[21:25] = struct.pack("<I", 16_382 | 16_382 << 14)
    elif format == "GIF":
        data[6:10] = struct.pack("<HH", 60_000, 60_000)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", 60_000, 60_000)
    else:
        picture = Image.open(io.BytesIO(bytes(data)))
        for tag in (256, 257):
            at = bytes(data).index(struct.pack("<HHI", tag, 4 if picture.tag_v2.tagtype[tag] == 4 else 3, 1))
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 60_000)
    assert reason_of(bytes(data)) == "too_large"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_bytes_are_a_reason_never_another_exception(format):
    data = saved(noise(24, 24), format)
    random = np.random.default_rng(3)
    for _ in range(150):
        damaged = bytearray(data[: random.integers(1, len(data) + 1)])
        for at in random.integers(0, len(damaged), 4):
            damaged[at] = random.integers(0, 256)
        outcome = mode_or_reason(bytes(damaged))
        assert outcome in ("RGB", "RGBA", "unreadable", "truncated", "too_large", "too_small")


# -- the product on its frame ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(len(CASES)))
def test_placement_equals_the_golden(case):
    tensors = load_file(GOLDEN / "product_preprocess.safetensors")
    placed, box = place_product(Image.fromarray(tensors[f"in/rgba{case}"]), CASES[case]["max_ratio"])
    assert list(box) == CASES[case]["adjusted_bbox"]
    np.testing.assert_array_equal(np.asarray(placed), tensors[f"out/adjusted{case}"])
    white = np.asarray(on_white(placed).resize((512, 512)))[::8, ::8]
    np.testing.assert_array_equal(white, tensors[f"out/white512_s8_{case}"])
    alpha = np.asarray(placed.resize((512, 512)))[::8, ::8]
    np.testing.assert_array_equal(alpha, tensors[f"out/trans_alpha512_s8_{case}"])


def box_of(width, height, box) -> Image.Image:
    rgba = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    rgba.paste((10, 200, 30, 255), box)
    return rgba


def test_scale_read_from_a_float32_column_places_the_same():
    product = box_of(81, 81, (0, 0, 81, 81))
    for scale in (0.1, 0.3, 0.7, 0.9):
        assert product_placement(product, float(np.float32(scale))) == product_placement(product, scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.01, float("nan")])
def test_scale_out_of_range_is_a_named_reason(scale):
    with pytest.raises(PairError, match="invalid_scale"):
        place_product(box_of(20, 20, (5, 5, 15, 15)), scale)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (5, 5, 6, 15), (5, 5, 6, 6)])
def test_cutout_without_a_product_is_a_named_reason(box):
    rgba = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    if box != (0, 0, 0, 0):
        rgba.paste((1, 2, 3, 255), box)
    with pytest.raises(PairError, match="no_cutout"):
        place_product(rgba, 0.5)


@pytest.mark.parametrize("size", [(31, 80), (80, 31), (40, 40)])
def test_square_frame_centres_and_keeps_every_pixel(size):
    product = box_of(*size, (3, 4, 20, 22))
    square = square_frame(product)
    assert square.size == (max(size), max(size))
    left, top = (max(size) - size[0]) // 2, (max(size) - size[1]) // 2
    np.testing.assert_array_equal(np.asarray(square)[top : top + size[1], left : left + size[0]], np.asarray(product))
    assert np.asarray(square)[..., 3].sum() == np.asarray(product)[..., 3].sum()


# -- products without a cut-out --------------------------------------------------------------------------------


def studio_photo() -> Image.Image:
    """A red disc with a white hole on a slightly noisy white ground."""
    y, x = np.mgrid[:120, :100]
    distance = np.hypot(x - 50, y - 60)
    rgb = np.full((120, 100, 3), 248.0)
    rgb[(distance < 35) & (distance > 12)] = (200, 20, 30)
    rgb += np.random.default_rng(1).normal(0, 3, rgb.shape)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def test_near_uniform_border_is_removed_and_the_inside_stays():
    alpha = np.asarray(remove_border(studio_photo()))[..., 3]
    assert alpha[0].max() == 0
    assert alpha[60, 20] == 255
    assert alpha[60, 50] == 255, "the white hole belongs to the product"
    assert ((alpha > 0) & (alpha < 255)).sum() > 100, "the edge is feathered"
    assert abs((alpha > 127).sum() / (np.pi * 35**2) - 1) < 0.1


def test_border_is_followed_around_corners():
    spiral = Image.new("RGB", (60, 60), "white")
    for inset in range(0, 28, 8):
        spiral.paste("black", (6 + inset, 6 + inset, 54 - inset, 9 + inset))
        spiral.paste("black", (6 + inset, 6 + inset, 9 + inset, 54 - inset))
    alpha = np.asarray(remove_border(spiral))[..., 3]
    assert alpha[30, 50] == 0
    assert alpha[56, 30] == 0


def maze(num_lanes=80) -> Image.Image:
    """White lanes joined at alternate ends, with one way in at the top: two turns a lane."""
    picture = Image.new("RGB", (60, 6 * num_lanes + 12), "white")
    picture.paste("black", (3, 3, 57, 6 * num_lanes + 9))
    picture.paste("white", (6, 0, 9, 6))
    for lane in range(num_lanes):
        top, end = 6 + 6 * lane, 51 if lane % 2 == 0 else 6
        picture.paste("white", (6, top, 54, top + 3))
        picture.paste("white", (end, top, end + 3, top + 6) if lane < num_lanes - 1 else (6, top, 54, top + 3))
    return picture


GRADIENT = Image.fromarray(np.tile(np.arange(60) * 4, (60, 1)).astype(np.uint8))


@pytest.mark.parametrize(
    "picture",
    [noise(60, 60), Image.new("RGB", (60, 60), "white"), GRADIENT, maze()],
    ids=["busy", "empty", "gradient", "maze"],
)
def test_border_that_cannot_be_removed_is_no_cutout(picture):
    with pytest.raises(PairError, match="no_cutout"):
        remove_border(picture)


@pytest.mark.slow
def test_large_picture_is_reduced_before_its_border_is_removed():
    photo = studio_photo().resize((3000, 3600))
    assert max(remove_border(photo).size) == 2048


def test_opaque_cutout_is_treated_as_a_photograph():
    assert cut_out(studio_photo().convert("RGBA")).getpixel((0, 0))[3] == 0
    real = box_of(20, 20, (5, 5, 15, 15))
    assert cut_out(real) is real


def with_alpha(change) -> Image.Image:
    """The studio photograph with an alpha channel that `change` changes."""
    alpha = np.full((120, 100), 255, np.uint8)
    change(alpha)
    rgb = np.asarray(studio_photo()).copy()
    rgb[alpha == 0] = 0  # what most programs leave under clear pixels
    return Image.fromarray(np.dstack([rgb, alpha]))


def round_corners(alpha: np.ndarray) -> None:
    corner = Image.new("L", alpha.shape[::-1])
    ImageDraw.Draw(corner).rounded_rectangle((0, 0, corner.width - 1, corner.height - 1), 20, fill=255)
    alpha[:] = np.asarray(corner)


def one_clear_pixel(alpha: np.ndarray) -> None:
    alpha[90, 95] = 0


def all_254(alpha: np.ndarray) -> None:
    alpha[:] = 254


def clear_frame(alpha: np.ndarray) -> None:
    alpha[[0, -1]], alpha[:, [0, -1]] = 0, 0


@pytest.mark.parametrize("change", [round_corners, one_clear_pixel, all_254, clear_frame])
def test_a_photograph_with_a_few_clear_pixels_is_no_cutout(change):
    plain = np.asarray(remove_border(studio_photo()))[..., 3]
    alpha = np.asarray(cut_out(with_alpha(change)))[..., 3]
    assert np.abs(alpha.astype(int) - plain).max() <= 1 or change is one_clear_pixel
    assert np.abs(alpha.astype(int) - plain).mean() < 0.2


def test_a_busy_photograph_with_one_clear_pixel_says_why_not():
    busy = noise(100, 100).convert("RGBA")
    busy.putpixel((50, 50), (0, 0, 0, 0))
    with pytest.raises(PairError, match="no_cutout"):
        cut_out(busy)


def test_a_cutout_that_fills_its_frame_stays_as_it_is():
    tight = noise(60, 60).convert("RGBA")
    tight.paste((0, 0, 0, 0), (0, 0, 15, 15))  # 6% of it
    assert cut_out(tight) is tight


def test_a_long_cutout_is_reduced_before_it_is_framed():
    strip = box_of(10_000, 250, (100, 50, 9_900, 200))
    cutout = cut_out(strip)
    assert cutout.size == (7071, 177)
    assert strip.size == (10_000, 250)
