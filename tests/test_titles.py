"""adgen/finishing/titles.py: titles safe to print, cut between graphemes, and their tokens."""

import random
import unicodedata

import pytest
import regex

from adgen.finishing.titles import Number, clean_title, display_width, words


def cleaned(text: str, width: int = 150) -> str:
    return clean_title(text, width).text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  Grey\t t-shirt \n printed\u3000", "Grey t-shirt printed"),
        ("cafe\u0301", "café"),
        ("a\u202egnirts\u202c b\u2066c\u2069", "agnirts bc"),
        ("zero\u200bwidth\u00ad\ufeff\u2060", "zerowidth"),
        ("bell\x07 nul\x00 esc\x1b[0m", "bell nul esc[0m"),
        ("broken \ud83d\ufffd end", "broken end"),
        ("\u3164\u2800 blank letters \u115f", "blank letters"),
        ("Z\u0300\u0301\u0302\u0303\u0304\u0305\u0306", unicodedata.normalize("NFC", "Z\u0300\u0301\u0302\u0303")),
        ("hidden\U000e0041\U000e0042 tags", "hidden tags"),
        ("مرحبا بالعالم", "مرحبا بالعالم"),
        ("", ""),
        ("\u200b\u202e\x00 ", ""),
    ],
)
def test_cleaning(raw, expected):
    assert cleaned(raw) == expected


FAMILY = "👨‍👩‍👧‍👦"
ENGLAND = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


@pytest.mark.parametrize("meant", [FAMILY, "👍🏽", "❤️", ENGLAND, "1️⃣", "می‌خواهم", "क्‍ष", "葛\U000e0100"])
def test_invisible_characters_that_mean_something_stay(meant):
    assert cleaned(f"x {meant} y") == f"x {meant} y"


@pytest.mark.parametrize(
    "raw",
    [
        "<prompt>Grey shirt</prompt>",
        "<｜begin▁of▁sentence｜>Grey <|im_end|>shirt<｜end▁of▁sentence｜>",
        "<pro<box>mpt>Grey shirt<image_placeholder></end_of_image><begin_of_history_title>",
        "<pro\u200bmpt>Grey shirt",
    ],
)
def test_special_tokens_spelled_in_a_title_are_removed(raw):
    assert cleaned(raw) == "Grey shirt"


@pytest.mark.parametrize("text", ["size <M>, 5 < 6", "<b>Sale</b> & more", "a|b", "<|", "a <3 b"])
def test_other_markup_is_plain_text(text):
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("raw", "width", "expected"),
    [
        ("Grey t-shirt with pure cotton", 20, "Grey t-shirt with"),
        ("Grey t-shirt, printed", 14, "Grey t-shirt"),
        ("红色纯棉短袖", 7, "红色纯"),
        ("x" * 50, 10, "x" * 10),
        ("👨‍👩‍👧‍👦" * 5, 5, "👨‍👩‍👧‍👦" * 2),
        ("e\u0323\u0302" * 5, 3, unicodedata.normalize("NFC", "e\u0323\u0302") * 3),
        ("红色（纯棉）", 6, "红色"),
    ],
)
def test_cut_at_the_width_and_between_graphemes(raw, width, expected):
    assert clean_title(raw, width) == (expected, True)


def test_short_title_is_not_cut():
    assert clean_title("短袖", 4) == ("短袖", False)


def test_properties_of_any_text():
    """Whatever comes in: cleaning again changes nothing, the width holds, and no grapheme is halved."""
    alphabet = "ab 红é\u0301\u200d\u200c\u200b\u202e\ufe0f👩👧🏽🇫🇷<>|prompt/\t\x00\U000e0067\U000e007f\u3164्क"
    source = random.Random(5)
    for _ in range(2000):
        raw = "".join(source.choices(alphabet, k=source.randint(0, 40)))
        whole, cut = cleaned(raw, 1000), cleaned(raw, 9)
        assert cleaned(whole, 1000) == whole
        assert display_width(cut) <= 9
        assert not regex.search(r"[\p{Cc}\p{Cs}\p{Bidi_Control}]", whole)
        graphemes = regex.findall(r"\X", cut)
        assert graphemes == regex.findall(r"\X", whole)[: len(graphemes)]


def test_ten_thousand_characters_are_cut_in_no_time():
    assert display_width(cleaned("纯棉 cotton " * 1000)) <= 150
    assert display_width(cleaned("a\u0301<" * 4000)) <= 150


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("红色T恤", 7), ("ｆｕｌｌ", 8), ("👨‍👩‍👧‍👦", 2), ("é", 1), ("e\u0301", 1), ("한글", 4), ("🇫🇷", 2)],
)
def test_display_width(text, width):
    assert display_width(text) == width


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500ml", ("500", "ml")),
        ("500 mL", ("500", "ml")),
        ("５００毫升", ("500", "ml")),
        ("12 V", ("12", "v")),
        ("1,000 g", ("1000", "g")),
        ("3.50kg", ("3.5", "kg")),
        ("1,5 l", ("1.5", "l")),
        ("100%纯棉", ("100", "%")),
        ("50%off", ("50", "% off")),
        ("买2送", ("2", "")),
        ("3件套", ("3", "pcs")),
        ('15.6"', ("15.6", "in")),
        ("25℃", ("25", "°c")),
        ("1080p", ("1080", "p")),
        ("¥99", ("99", "")),
    ],
)
def test_numbers_and_their_units(text, number):
    assert words(text).numbers == (Number(*number),)


def test_tokens_of_a_mixed_title():
    tokens = words("Men's T-shirt A4 红色T恤 10x20cm カメラ")
    assert tokens.words == ("men", "t", "shirt", "a4", "t")
    assert tokens.runs == ("红色", "恤", "カメラ")
    assert [str(number) for number in tokens.numbers] == ["10", "20cm"]
    assert words("2-in-1").numbers == words("2 in 1").numbers


def test_emoji_and_punctuation_are_no_tokens():
    assert words("🎉!!! ，。—") == ((), (), ())
