"""What stands in where no attempt of the model passes: a title from the product's own texts, a plain background."""

import io

import numpy as np
import pytest
from PIL import Image

from adgen.config import FinishSettings
from adgen.errors import PairError
from adgen.finishing.fallbacks import plain_background, template_title
from adgen.finishing.finish import ProductFacts, finish
from adgen.finishing.gates import picture_complaint, title_complaint
from adgen.finishing.titles import display_width

SETTINGS = FinishSettings(width=64, height=64)
POINTS = ("keeps tea warm", "holds for years", "a gift with charm", "easy to clean")
CHINESE_POINTS = ("容量充足", "釉面光亮", "耐磕碰", "送礼佳选", "易于打理", "一年四季都好用")


def facts(title: str = "Plain red mug", points: tuple[str, ...] = POINTS, locale: str | None = "en-GB", **changes) -> ProductFacts:
    return ProductFacts(title, points, locale=locale, **changes)


def png(colour: tuple[int, ...], product: tuple[int, ...] = (200, 30, 30, 255)) -> bytes:
    picture = Image.new("RGBA", (80, 60), colour)
    picture.paste(product, (25, 15, 55, 45))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("locale", "title"),
    [
        ("en-GB", "Plain red mug: keeps tea warm, holds for years"),
        ("EN_us", "Plain red mug: keeps tea warm, holds for years"),
        ("sw-KE", "Plain red mug keeps tea warm holds for years easy to clean"),
        (None, "Plain red mug keeps tea warm holds for years easy to clean"),
    ],
)
def test_a_title_by_template_says_what_fits_in_the_words_of_its_locale(locale, title):
    """A locale without a template joins plainly; points that do not fit are left out."""
    settings = FinishSettings(title_good_width=60)
    made = template_title(facts(locale=locale), settings)
    assert made == title
    assert display_width(made) <= 60
    assert title_complaint(made, ("Plain red mug", *POINTS), locale, settings) is None


def test_a_chinese_title_counts_wide_characters():
    made = template_title(
        facts("红色茶杯", ("容量充足", "釉面光亮", "耐磕碰", "送礼佳选", "易于打理", "一年四季都好用"), "zh-CN"), SETTINGS
    )
    assert made.startswith("红色茶杯 容量充足 釉面光亮")
    assert display_width(made) <= 60


def test_points_that_gates_complain_of_or_that_the_title_says_are_left_out():
    assert template_title(facts(points=("best in the world", "plain red", "", "holds for years")), SETTINGS) == (
        "Plain red mug: holds for years"
    )


def test_a_product_of_few_words():
    assert template_title(facts(points=()), SETTINGS) == "Plain red mug"
    assert template_title(facts(title=" "), SETTINGS) == "keeps tea warm, holds for years, a gift with charm"
    assert template_title(facts(title="", points=()), SETTINGS) == ""
    made = finish(_noise(), "", facts(title="", points=(), cutout=png((0, 0, 0, 0))), SETTINGS)
    assert (made.verdict.status, made.verdict.reason) == ("rejected", "title_empty")


def test_a_title_that_is_forbidden_itself_is_rejected():
    product = facts(title="Cures cancer mug", points=(), cutout=png((0, 0, 0, 0)))
    settings = SETTINGS.model_copy(update={"forbidden_words": ("mug",)})
    made = finish(_noise(), template_title(product, settings), product, settings)
    assert (made.verdict.status, made.verdict.reason) == ("rejected", "forbidden_words")


def test_no_template_where_any_word_is_allowed_or_no_fallback_is_wanted():
    any_words = SETTINGS.model_copy(update={"gates": SETTINGS.gates.model_copy(update={"allowed_words": "off"})})
    assert template_title(facts(), any_words) is None
    assert template_title(facts(), SETTINGS.model_copy(update={"fallbacks": False})) is None


def test_a_check_tells_what_the_title_gates_tell_warnings_included():
    texts = ("Plain red mug", *POINTS)
    for title, gate in (("", "title_empty"), ("red mug 500 ml", "numbers_and_units"), ("red gold mug", "allowed_words")):
        assert title_complaint(title, texts, "en", SETTINGS).startswith(gate)
    long = "Plain red mug " * 5
    assert title_complaint(long, texts, "en", SETTINGS) is None, "how wide it is asks for no other draw"
    off = SETTINGS.model_copy(update={"gates": SETTINGS.gates.model_copy(update={"allowed_words": "off"})})
    assert title_complaint("red gold mug", texts, "en", off) is None


@pytest.mark.parametrize("colour", [(255, 255, 255, 255), (0, 0, 0, 255), (120, 180, 60, 255)])
def test_a_plain_background_has_the_colour_of_the_border_and_is_not_blank(colour):
    made = plain_background(facts(image=png(colour)), 48)
    assert (made.shape, made.dtype) == ((48, 48, 3), np.uint8)
    assert np.abs(made.mean((0, 1)) - colour[:3]).max() <= 19
    assert picture_complaint(made, SETTINGS) is None
    assert (np.diff(made[:, 0].astype(int), axis=0) <= 0).all()
    assert picture_complaint(np.full((48, 48, 3), 7, np.uint8), SETTINGS) is not None


def test_the_border_of_a_cut_out_is_its_products():
    made = plain_background(facts(cutout=png((9, 9, 9, 0))), 16)
    assert np.abs(made.mean((0, 1)) - (200, 30, 30)).max() <= 19


def test_a_background_of_no_picture_is_a_reason():
    with pytest.raises(PairError):
        plain_background(facts(image=b"no picture"), 16)


def _noise() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
