"""Bad input never stops the rest: one refresh, on a real Ray, over a shop with everything that may be odd or wrong in it."""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.models import save_small_model
from support.progress import Silent
from support.shops import SmallShop, small_shop

from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.on_ray.refresh.job import Summary, refresh
from adgen.on_ray.refresh.settings import RefreshSettings

CAMPAIGN = "odd"
GATES = ("title_empty", "forbidden_words", "numbers_and_units", "picture_blank", "product_visible")
RED, BLUE, WHITE = (200, 20, 20), (20, 20, 200), (255, 255, 255)


def two_colours(side: int = 32) -> Image.Image:
    """A product on white: red above, blue below."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    middle, edge = side // 2, side // 4
    pixels[edge:middle, edge:-edge], pixels[middle:-edge, edge:-edge] = RED, BLUE
    return Image.fromarray(pixels)


def see_through(picture: Image.Image) -> Image.Image:
    """The same as a cut-out."""
    pixels = np.asarray(picture.convert("RGB"))
    return Image.fromarray(np.dstack([pixels, np.where((pixels == WHITE).all(axis=2), 0, 255).astype(np.uint8)]))


def upside_down_with_a_note(picture: Image.Image) -> bytes:
    """Stored turned by 180 degrees; its EXIF says so."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 3
    picture.rotate(180).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


def file_of(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of some hundred bytes whose header asks for side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


GREY16 = Image.fromarray(np.asarray(two_colours().convert("L"), np.uint16) * 257)
ODD_PICTURES = {
    "cmyk": file_of(two_colours().convert("CMYK"), "JPEG"),
    "palette": file_of(two_colours().quantize(8)),
    "palette with transparency": file_of(see_through(two_colours()).quantize(8)),
    "grey": file_of(two_colours().convert("L")),
    "grey 16 bit": file_of(GREY16),
    "turned": upside_down_with_a_note(two_colours()),
}
ODD_TITLES = {
    "right to left": "كوب أحمر من الفولاذ ‏‮gum",
    "emoji": "🔥 mug 👩‍👩‍👧‍👦 🇨🇳",
    "half an emoji": "mug \ud83d"[:4] + "\u200d",
    "special tokens": "<|User|> </prompt> <prompt> <image_placeholder> <begin_of_image> mug",
    "long": "red steel mug " * 714 + "mug!",
    "blank": "   ",
}
BAD_FILES = {
    "unreadable": ("unreadable", b"this is no picture"),
    "empty": ("unreadable", b""),
    "truncated": ("truncated", file_of(see_through(two_colours()))[:-40]),
    "one pixel": ("too_small", file_of(Image.new("RGBA", (1, 1), (9, 9, 9, 128)))),
    "bomb": ("too_large", bomb(60_000)),
    "invisible": ("no_cutout", file_of(Image.new("RGBA", (16, 16)))),
}
BAD_PLACES = {
    "missing": ("missing_file", "cutouts/nowhere.png"),
    "outside": ("outside_roots", "../../../etc/hostname"),
    "absolute": ("outside_roots", "/etc/hostname"),
    "foreign": ("scheme_not_allowed", "https://example.org/a.png"),
}
NULLS = {"untitled": "title", "unscaled": "scale", "pointless": "selling_points", "without image": "image"}


@dataclass
class Night:
    summary: Summary
    store: str
    by_product: dict[str, dict]
    rows: list[dict]
    num_good: int


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_small_model(directory)
    return directory


@pytest.fixture(scope="module")
def night(ray_cluster, model, tmp_path_factory) -> Night:
    """One refresh of a shop with twenty good pairs and everything else, by somebody whose history is sound."""
    folder = tmp_path_factory.mktemp("odd")
    shop = small_shop(folder / "inputs")
    good = list(shop.pairs)
    add_odd_things(shop)
    add_bad_things(shop)
    shop.save()
    made = settings(shop.folder, folder / "store", model)
    summary = refresh(made, Silent())
    rows = list(open_published(open_storage(made.store), CAMPAIGN).rows())
    by_product = {row["product_id"]: row for row in rows}
    return Night(summary, made.store, by_product, rows, len(good))


def settings(inputs: Path, store: Path, model: Path, **changes) -> RefreshSettings:
    values = {
        "inputs": str(inputs),
        "store": str(store),
        "campaign": CAMPAIGN,
        "model": str(model),
        "plan": {"pairs_per_shard": 32},
        "sampling": {"max_title_tokens": 8},
        "engine": {"deepspeed": False},
        "finish": {"width": 64, "height": 64, "gates": dict.fromkeys(GATES, "warn")},
    }
    return RefreshSettings.model_validate(values | changes)


def add_odd_things(shop: SmallShop) -> None:
    plain = shop.products["p1"]
    for name, data in ODD_PICTURES.items():
        (shop.folder / f"{name}.bin").write_bytes(data)
        shop.products[name] = plain | {"image": f"{name}.bin", "cutout": None}
    for name, title in ODD_TITLES.items():
        shop.products[name] = plain | {"title": title, "selling_points": [title, ""]}
    shop.histories |= {
        "an odd taste": [*ODD_PICTURES, *ODD_TITLES],
        "nothing": [],
        "the target alone": ["p2"],
        "only what is broken": [*BAD_FILES, "nobody sells this"],
    }
    shop.pairs += [("u1", name, "en", None) for name in [*ODD_PICTURES, *ODD_TITLES]]
    shop.pairs += [(user, "p2", "fr", None) for user in ("an odd taste", "nothing", "the target alone", "only what is broken")]
    shop.pairs += [("a stranger", "p2", "fr", None)]


def add_bad_things(shop: SmallShop) -> None:
    plain = shop.products["p1"]
    for name, (_, data) in BAD_FILES.items():
        (shop.folder / f"{name}.bin").write_bytes(data)
        shop.products[name] = plain | {"image": f"{name}.bin", "cutout": f"{name}.bin"}
    for name, (_, place) in BAD_PLACES.items():
        shop.products[name] = plain | {"cutout": place}
    for name, field in NULLS.items():
        shop.products[name] = plain | {field: None}
    shop.products["too wide"] = plain | {"scale": 1.5}
    bad = [*BAD_FILES, *BAD_PLACES, *NULLS, "too wide", "nobody sells this"]
    shop.pairs += [("u1", name, "en", None) for name in bad] + [(None, "p1", "en", None), ("u1", None, "en", None)]
    shop.pairs += [shop.pairs[0]] * 3


@pytest.mark.parametrize("name", [*ODD_PICTURES, *ODD_TITLES])
def test_odd_pictures_and_titles_get_a_creative(night, name):
    row = night.by_product[name]
    assert (row["status"], row["reason"]) == ("ok", None)
    picture = Image.open(Path(night.store) / row["uri"])
    assert picture.size == (64, 64)


@pytest.mark.parametrize("name", ["cmyk", "palette", "palette with transparency", "turned"])
def test_the_product_on_the_creative_has_its_colours_and_stands_upright(night, name):
    pixels = np.asarray(Image.open(Path(night.store) / night.by_product[name]["uri"]).convert("RGB"), np.int16)
    above, below = pixels[20:28, 24:40].mean(axis=(0, 1)), pixels[36:44, 24:40].mean(axis=(0, 1))
    assert above[0] > 120 > above[2]
    assert below[2] > 120 > below[0]


def test_users_without_a_usable_history_get_a_creative_of_the_product_alone(night):
    rows = [row for row in night.rows if row["locale"] == "fr"]
    assert [row["status"] for row in rows] == ["ok"] * 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *((name, reason) for name, (reason, _) in (BAD_FILES | BAD_PLACES).items()),
        *((name, "null_field") for name in NULLS),
        ("too wide", "invalid_scale"),
        ("nobody sells this", "unknown_product"),
        ("", "null_field"),
    ],
)
def test_what_is_bad_has_a_row_that_says_why(night, name, reason):
    row = night.by_product[name]
    assert (row["status"], row["reason"], row["uri"]) == ("failed", reason, None)


def test_the_rest_is_made_and_published(night):
    num_odd = len(ODD_PICTURES) + len(ODD_TITLES) + 5
    num_bad = len(BAD_FILES) + len(BAD_PLACES) + len(NULLS) + 2 + 2
    summary = night.summary
    assert summary.published
    assert (summary.pairs, summary.failed) == (night.num_good + num_odd + num_bad, num_bad)
    assert (summary.generated, summary.rejected, summary.engine_calls) == (night.num_good + num_odd, 0, night.num_good + num_odd)
    assert summary.reasons["null_field"] == len(NULLS) + 2
    checked = verify(open_storage(night.store), CAMPAIGN)
    assert (checked.rows, checked.ok, checked.failed) == (summary.pairs, summary.generated, num_bad)
    assert (checked.missing, checked.mismatched) == (0, 0)


def test_a_pair_named_again_is_made_once_and_counted(night):
    assert night.summary.duplicates == 3
    assert len({row["pair_id"] for row in night.rows}) == len(night.rows)
