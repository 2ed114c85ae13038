"""Cut-outs at the import: what the border's removal can do, an operator's cutter for the rest, a quality, a sheet, `no_cutout`."""

import base64
import sys
import tomllib
from importlib.metadata import EntryPoint as EntryPointOf
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from support.feeds import read_table, table

from adgen.cli import main
from adgen.cutouts import cut_out
from adgen.errors import SettingsError
from adgen.images import read_picture
from adgen.shop.inputs import cutters
from adgen.shop.inputs.cutters import open_cutter, quality_of
from adgen.shop.inputs.feeds.products import FeedOptions
from adgen.shop.inputs.feeds.with_pictures import SHEET, PictureOptions, import_with_pictures
from adgen.shop.inputs.tables import open_inputs

SIDE = 96
RED_LESS_GREEN = (
    "CAg6fQoVCgVpbnB1dAoBdxIDb3V0IgRDb252EgNyZWQqGwgBCAMIAQgBEAEiDAAAgD8AAIC/AAAAAEIBd1ohCgVpbnB1dBIYChYIARISCgIIAQoCCAMKAwjAAgoDCMAC"
    "Yh8KA291dBIYChYIARISCgIIAQoCCAEKAwjAAgoDCMACQgQKABAN"
)
"""An ONNX file of one convolution, 1x3x320x320 -> 1x1x320x320."""
CUTTER = """
import sys
from PIL import Image, ImageDraw
picture = Image.open(sys.argv[1]).convert("RGBA")
open(sys.argv[3], "a").write("x")
if picture.getpixel((0, 0))[:3] == (1, 2, 3):
    sys.exit("this one I cannot cut")
mask = Image.new("L", picture.size)
ImageDraw.Draw(mask).ellipse((24, 24, 72, 72), fill=255)
if picture.getpixel((0, 0))[:3] == (4, 5, 6):
    mask = Image.new("L", picture.size, 90)
picture.putalpha(mask)
picture.save(sys.argv[2])
"""


def photograph(corner: tuple[int, int, int] | None = None) -> Image.Image:
    """A disc before noise: no border of one colour."""
    noise = np.random.default_rng(3).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    ImageDraw.Draw(picture).ellipse((24, 24, 72, 72), fill=(200, 30, 30))
    if corner:
        picture.putpixel((0, 0), corner)
    return picture


def on_white() -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(picture).ellipse((24, 24, 72, 72), fill=(200, 30, 30))
    return picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "feed").mkdir()
    (tmp_path / "cutter.py").write_text(CUTTER)
    return tmp_path


def imported(folder: Path, cutter: str | None, **pictures: Image.Image):
    """(summary, {product: its row}, problems)."""
    for name, picture in pictures.items():
        picture.save(folder / "feed" / f"{name}.png")
    (folder / "feed" / "feed.csv").write_text(table([{"id": name, "title": name, "image": f"{name}.png"} for name in pictures]))
    options = PictureOptions(cutter=cutter)
    summary = import_with_pictures(str(folder / "feed" / "feed.csv"), folder / "shop", FeedOptions(), options)
    rows = {row["product_id"]: row for row in read_table(folder / "shop", "products")}
    return summary, rows, read_table(folder / "shop", "feed_problems")


def command(folder: Path) -> str:
    return f"{sys.executable} {folder / 'cutter.py'} {{input}} {{output}} {folder / 'calls'}"


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text())


def test_a_near_uniform_border_needs_no_cutter(folder):
    summary, rows, problems = imported(folder, command(folder), white=on_white())
    assert (summary.cut_by_border, summary.cut_out, summary.no_cutout, problems) == (1, 0, 0, [])
    assert rows["white"]["cutout"] is None
    assert not (folder / "calls").exists()


def test_a_photograph_is_cut_out_by_the_command_once(folder):
    summary, rows, problems = imported(folder, command(folder), white=on_white(), photo=photograph())
    assert (summary.cut_by_border, summary.cut_out, summary.no_cutout, problems) == (1, 1, 0, [])
    inputs = open_inputs(str(folder / "shop"), ("products",))
    cutout = read_picture(inputs.resolve(rows["photo"]["cutout"]))
    assert cut_out(cutout) is cutout
    assert (cutout.getpixel((0, 0))[3], cutout.getpixel((48, 48))) == (0, (200, 30, 30, 255))
    _, again, _ = imported(folder, command(folder), white=on_white(), photo=photograph())
    assert again == rows
    assert calls(folder) == 1


def test_what_no_cutter_can_cut_has_the_reason_no_cutout(folder):
    pictures = {"photo": photograph(), "hard": photograph((1, 2, 3)), "haze": photograph((4, 5, 6))}
    summary, rows, problems = imported(folder, command(folder), **pictures)
    assert (summary.cut_out, summary.no_cutout, summary.repaired) == (1, 2, {"no_cutout": 2})
    assert [rows[name]["cutout"] for name in ("hard", "haze")] == [None, None]
    details = {problem["line"]: problem["detail"] for problem in problems}
    assert "this one I cannot cut" in details[3]
    assert "quality 0.00" in details[4]
    assert {problem["skipped"] for problem in problems} == {False}


def test_without_a_cutter_the_import_says_which_have_none(folder):
    summary, rows, [problem] = imported(folder, "border", white=on_white(), photo=photograph())
    assert (summary.cut_by_border, summary.no_cutout) == (1, 1)
    assert (problem["line"], problem["reason"]) == (3, "no_cutout")
    assert "of the picture's edge is of one colour" in problem["detail"]
    assert (folder / "shop" / SHEET).exists() is False
    assert set(rows) == {"white", "photo"}


def test_doubtful_cut_outs_are_on_a_sheet(folder):
    halves = Image.new("RGB", (SIDE, SIDE), "white")
    for left in (8, 56):
        ImageDraw.Draw(halves).rectangle((left, 30, left + 30, 66), fill=(20, 90, 200))
    summary, _, problems = imported(folder, "border", **{"white": on_white(), "halves<b>": halves})
    assert (summary.cut_by_border, summary.doubtful_cutouts, problems) == (2, 1, [])
    page = (folder / "shop" / SHEET).read_text()
    assert summary.sheet == str(folder / "shop" / SHEET)
    assert "halves&lt;b&gt;" in page
    assert "in pieces" in page
    assert "<p>white</p>" not in page
    imported(folder, "border", white=on_white())
    assert not (folder / "shop" / SHEET).exists()


def disc(alpha: int = 255, radius: int = 30) -> Image.Image:
    picture = Image.new("RGBA", (SIDE, SIDE))
    ImageDraw.Draw(picture).ellipse((48 - radius, 48 - radius, 48 + radius, 48 + radius), fill=(200, 30, 30, alpha))
    return picture


@pytest.mark.parametrize(
    ("picture", "least", "most", "worst"),
    [
        (disc(), 1, 1, ""),
        (disc(radius=3), 0, 0.2, "small"),
        (disc(alpha=140), 0, 0, "half clear"),
        (Image.new("RGBA", (SIDE, SIDE), "red"), 0, 0, "nearly the whole picture"),
        (Image.new("RGBA", (SIDE, SIDE)), 0, 0, "nothing is left"),
    ],
)
def test_the_quality_names_what_is_worst(picture, least, most, worst):
    quality = quality_of(picture)
    assert least <= quality.score <= most
    assert quality.worst == worst


class EntryPoint:
    name = "ours"

    def load(self):
        return lambda weights: lambda picture: disc() if weights is None else picture


def test_an_entry_point_is_a_cutter_and_a_wrong_answer_of_it_is_none(folder, monkeypatch):
    monkeypatch.setattr(cutters, "entry_points", lambda group: [EntryPoint()] if group == "adgen.cutters" else [])
    summary, rows, _ = imported(folder, "ours", photo=photograph())
    assert (summary.cut_out, rows["photo"]["cutout"].startswith("cutouts/made/")) == (1, True)
    assert open_cutter("ours", folder)(photograph()).mode == "RGB"
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda weights: lambda picture: picture.resize((5, 5)))
    summary, rows, [problem] = imported(folder, "ours", other=photograph((9, 9, 9)))
    assert (summary.no_cutout, problem["detail"]) == (1, "the cutter made RGB 5x5 of 96x96; expected RGBA")


@pytest.mark.slow
def test_rembg_cuts_out_with_a_network_of_the_operators(tmp_path, monkeypatch):
    """The library itself, with a network of one multiplication: the red of a pixel less its green."""
    pytest.importorskip("rembg", reason="needs adgen[cutter]")
    monkeypatch.setenv("U2NET_HOME", "set back after the test")
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    open_rembg = EntryPointOf("rembg", project["entry-points"]["adgen.cutters"]["rembg"], "adgen.cutters").load()
    with pytest.raises(SettingsError, match=r"holds 0 files \*\.onnx, expected one"):
        open_rembg(tmp_path)
    (tmp_path / "red.onnx").write_bytes(base64.b64decode(RED_LESS_GREEN))
    noise = np.zeros((SIDE, SIDE, 3), np.uint8)
    noise[..., 2] = np.random.default_rng(3).integers(0, 255, (SIDE, SIDE))
    picture = Image.fromarray(noise)
    ImageDraw.Draw(picture).ellipse((24, 24, 72, 72), fill=(255, 0, 0))
    cut = open_rembg(tmp_path)(picture)
    assert (cut.mode, cut.size, cut.getpixel((2, 2))[3], cut.getpixel((48, 48))) == ("RGBA", (SIDE, SIDE), 0, (255, 0, 0, 255))
    assert quality_of(cut).score == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cutter", "nonsense"], "--cutter nonsense: is none of border"),
        (["--cutter", "no-such-program {input} {output}"], "there is no program no-such-program"),
        (["--cutter", "border", "--cutter-weights", "/nowhere"], "--cutter-weights /nowhere: is no folder"),
        (["--fetch-workers", "0"], "--fetch-workers 0: is not from 1 to 256"),
    ],
)
def test_a_wrong_flag_is_one_sentence(folder, words, message, capsys):
    imported(folder, None, photo=photograph())
    assert main(["import-feed", str(folder / "feed" / "feed.csv"), str(folder / "shop"), *words]) == 1
    assert message in capsys.readouterr().err


def test_no_cutter_named_is_an_error_of_settings():
    with pytest.raises(SettingsError, match="no command with"):
        open_cutter("rm -rf /")
