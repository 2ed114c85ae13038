"""Generated titles: made safe to print, cut to a width, and taken apart into the tokens that gates compare.

Two decisions. Spellings of the model's own special tokens are removed, because no seller writes them and a shopper must
not read them. Everything else that looks like markup ("<M>", "5 < 6", "<b>") stays as the plain text it is: a title is
text, and escaping belongs to whoever puts it into a page.
"""

import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import regex

from adgen.finishing.normalize import normalized
from adgen.finishing.numerals import decimal_of, spelled_in_digits
from adgen.finishing.units import UNITS, in_base

# -- cleaning --------------------------------------------------------------------------------------------------

# Invisible characters that mean something where they stand: joiners and colour selectors inside emoji, joiners between
# letters of scripts that shape with them, variants of Han characters, and the flags of England, Scotland and Wales.
_MEANT = r"""
    (?<=\p{Emoji}[\uFE0F\p{Emoji_Modifier}]?)\u200D(?=\p{Extended_Pictographic})
  | (?<=\p{Emoji})[\uFE0E\uFE0F]
  | (?<=\p{Han})[\U000E0100-\U000E01EF]
  | (?<=[\p{Arabic}\p{Devanagari}\p{Bengali}\p{Malayalam}\p{Sinhala}\p{Kannada}\p{Telugu}\p{Tamil}])[\u200C\u200D](?=\p{L})
  | (?<=\U0001F3F4)[\U000E0020-\U000E007E]+\U000E007F
"""
# All others of these: controls, bidi marks and overrides, zero-width characters, unassigned and private code points,
# lone surrogates, blank "letters" (U+2800), and the mark of a byte sequence that was no text (U+FFFD).
_JUNK = regex.compile(rf"(?:{_MEANT})(*SKIP)(*FAIL)|[\p{{C}}\p{{Default_Ignorable_Code_Point}}\uFFFD\u2800]", regex.X)
_SPECIAL_TOKEN = regex.compile(
    r"<[|｜][^<>|｜]{0,60}[|｜]>"
    r"|</?(?:prompt|grounding|box|ref|s|pad|unk|(?:image|title)_placeholder|(?:begin|end)_of_[a-z_]{1,40})>",
    regex.IGNORECASE,
)
_SPACES = regex.compile(r"[\s\p{Z}]+")
_TOO_MANY_MARKS = regex.compile(r"(\p{M}{4})\p{M}+")
_GRAPHEME = regex.compile(r"\X")
_DANGLING = " ,;:/&+-–—·、，；：（([【《「“‘"


class CleanTitle(NamedTuple):
    """A title fit to print. An empty `text` is possible; the gate title_empty says so."""

    text: str
    was_cut: bool
    """Whether the limit took something away."""


def clean_title(raw: str, max_width: int) -> CleanTitle:
    """`raw` as NFC on one line, without invisible characters and special tokens, at most `max_width` columns wide.

    Cleaning a clean title changes nothing. A cut falls between graphemes, and before a Latin word rather than in it.
    """
    text, before = raw, None
    while text != before:  # taking one thing out may put together another, as in "<pro<box>mpt>"
        before = text
        text = _SPACES.sub(" ", text)  # first, or the tab between two words would go as a control character
        text = _SPECIAL_TOKEN.sub("", _JUNK.sub("", text))
        text = _TOO_MANY_MARKS.sub(r"\1", unicodedata.normalize("NFC", text)).strip()
    if display_width(text) <= max_width:
        return CleanTitle(text, False)
    return CleanTitle(_cut(text, max_width), True)


def _cut(text: str, max_width: int) -> str:
    kept, width = 0, 0
    for grapheme in _GRAPHEME.findall(text):
        width += _grapheme_width(grapheme)
        if width > max_width:
            break
        kept += len(grapheme)
    head = text[:kept]
    if regex.match(r"[\p{Latin}\d]", text[kept:]):
        whole_words = regex.sub(r"(?:[\p{Latin}\d]\p{M}*|['’.-])+$", "", head)
        head = whole_words if len(whole_words) > len(head) // 2 else head  # one endless word is cut where it must
    return head.rstrip(_DANGLING)


def display_width(text: str) -> int:
    """Columns that `text` takes in a fixed-width font: 2 for a wide character or an emoji, 1 for any other grapheme."""
    return sum(map(_grapheme_width, _GRAPHEME.findall(text)))


@lru_cache(maxsize=8192)
def _grapheme_width(grapheme: str) -> int:
    if regex.match(r"\p{Emoji_Presentation}", grapheme) or "\ufe0f" in grapheme:
        return 2
    return max(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in grapheme)


# -- tokens ----------------------------------------------------------------------------------------------------


_MOST_DIGITS = 100


class Number(NamedTuple):
    """A number in a title; `unit` is canonical ("毫升" and "mL" are "ml"), empty when there is none."""

    value: str
    unit: str

    @property
    def base(self) -> tuple[Fraction | str, str]:
        """(value, unit) in the unit that all of its kind are compared in: 1.5 l and 1500 ml are equal."""
        is_number = self.value.count(".") < 2 and len(self.value) <= _MOST_DIGITS  # no version, no serial number
        return in_base(Fraction(self.value), self.unit) if is_number else (self.value, self.unit)

    def __str__(self) -> str:
        return self.value + self.unit


class Words(NamedTuple):
    """The tokens of a text, in order of their kind. All are NFKC and casefolded."""

    words: tuple[str, ...]
    """Words of scripts that put spaces between them; "T-shirt" is "t" and "shirt", "A4" is one word."""
    numbers: tuple[Number, ...]
    runs: tuple[str, ...]
    """Maximal runs of scripts without spaces: Chinese, Japanese kana, Thai, Lao, Khmer, Burmese."""


_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNIT_NAMES = "|".join(
    regex.escape(name) + ("(?![a-z\\d])" if name[-1].isascii() and name[-1].isalpha() else "")
    for name in sorted(UNITS, key=len, reverse=True)
)
_VALUE = r"(?P<value>\d+(?:[.,]\d+)*|(?<![\p{L}\d])[.,]\d+)"
_SIGN = r"(?P<sign>(?<![\p{L}\p{M}\d%\s][\s]?|\d\s)[-−](?=[\d.]))?"
_TOKEN = regex.compile(
    rf"""
    {_SIGN}(?<![\p{{L}}\p{{M}}\d.]){_VALUE}
        (?:\s?(?P<off>%\s?off)(?![a-z])|[\s-]?(?P<unit>{_UNIT_NAMES})|(?P<suffix>\p{{Latin}}+)(?!\d))?
  | (?<=[{_UNSPACED}]){_SIGN}{_VALUE}(?:[\s-]?(?P<unit>{_UNIT_NAMES}))?
  | (?P<run>[{_UNSPACED}](?:[{_UNSPACED}\p{{M}}])*)
  | (?P<word>(?:[\p{{L}}--[{_UNSPACED}]][\p{{M}}\d]*)+(?:['’](?:[\p{{L}}--[{_UNSPACED}]])+)?)
  | (?P<value>\d+(?:[.,]\d+)*)
    """,
    regex.X | regex.V1,
)
_RANGE = regex.compile(rf"(?<!\d|\d[.,])(\d+(?:[.,]\d+)*)\s?(?:[-–—~～−至到]|to)\s?(?=-?\d+(?:[.,]\d+)*\s?({_UNIT_NAMES}))")


def words(text: str) -> Words:
    """The tokens of `text` that gates compare; punctuation, symbols and emoji are none.

    No dictionary is used: a run of Chinese stays whole, and `gates.uncovered` decides whether allowed phrases cover it.
    """
    text = _RANGE.sub(r"\1\2 ", spelled_in_digits(normalized(text)))  # 10-20cm: 10cm and 20cm
    text = regex.sub(r"(?<=\d[\s-]in[\s-])one(?!\p{L})", "1", text)
    text = regex.sub(r"(?<=\d)[\s-]?(?:[x×*✕]|in)[\s-]?(?=\d)", " × ", text)  # 10x20cm, 2-in-1: two numbers each
    found, numbers, runs = [], [], []
    for match in _TOKEN.finditer(text):
        if match["value"]:
            unit = "% off" if match["off"] else UNITS[match["unit"]] if match["unit"] else match["suffix"] or ""
            numbers.append(Number(_value(match["sign"], match["value"]), unit))
        elif match["run"]:
            runs.append(match["run"])
        else:
            found.append(regex.sub(r"['’]s?$", "", match["word"]))
    return Words(tuple(found), tuple(numbers), tuple(runs))


def _value(sign: str | None, digits: str) -> str:
    value = decimal_of(digits)
    return f"-{value}" if sign and value != "0" else value
