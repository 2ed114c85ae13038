"""Numbers that are written in words or in other signs, as the digits that `words` of titles.py reads.

Chinese numerals count only before a unit of measure or in tens, hundreds and more, and 一 alone only
before a measure of size or weight: 一次性, 一双, 三明治 and 千层 claim no number. "One" is left as well: "one size", "no one".
"""

from fractions import Fraction

import regex

from adgen.finishing.units import MEASURES, UNITS

_DIGITS = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "俩": 2}
_TENS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_HAN_UNITS = "|".join(sorted((name for name in UNITS if regex.match(r"\p{Han}", name)), key=len, reverse=True))

_MEASURE = regex.compile("|".join(name for name, unit in UNITS.items() if unit in MEASURES and name in _HAN_UNITS.split("|")))

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS_IN_WORDS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: value for value, word in enumerate(_ONES, 1)} | {word: 10 * ten for ten, word in enumerate(_TENS_IN_WORDS, 2)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_ONE_WORD = "|".join(sorted((*_WORDS, *_SCALES), key=len, reverse=True))
_DECIMAL = r"\d{1,30}(?:[.,]\d{1,30})*"

_HAN_PART = r"\d{1,3}|[一二两三四五六七八九十百]{1,5}"
_PART_OF = regex.compile(rf"(?<![\d第])({_HAN_PART})分之({_HAN_PART})")
_HALF = regex.compile(rf"(?<![\d一二两三四五六七八九十])半(?={_MEASURE.pattern})")
_LATIN_MEASURES = "|".join(
    sorted((n for n, unit in UNITS.items() if unit in MEASURES and n.isascii() and n.isalpha()), key=len, reverse=True)
)
_HALF_A = regex.compile(rf"(?<![\p{{L}}\d])half(?:\s+an?\s+|[\s-]+)(?=(?:{_LATIN_MEASURES})(?!\p{{L}}))")
_HALF_PRICE = regex.compile(r"对折(?=优惠|促销|特价|特卖|大促|起|价|抢)")
_APOSTROPHES = regex.compile(r"(?<![\d.,'’])\d{1,3}(?:['’]\d{3})+(?![\d'’])")
_MIXED = regex.compile(r"(?<![\d.,])(\d{1,9})万(\d)千(?!\d)")
_PERCENT = regex.compile(r"百分之(\d[\d.]{0,29}|[零〇一二两三四五六七八九十百]{1,30})")
_HAN = regex.compile(
    r"(?<![第唯统之单每\d])(?:[一二两三四五六七八九][十百千万亿零〇一二两三四五六七八九]{0,30}+|十[一二三四五六七八九]?+)"
    rf"(?P<unit>(?=\s?(?:{_HAN_UNITS})))?"
)
_ENGLISH = regex.compile(rf"(?<![\p{{L}}\d])(?:{_ONE_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{_ONE_WORD}))*(?![\p{{L}}\d])")
_SCALED = regex.compile(rf"(?<![\d.,])({_DECIMAL})\s?(?:(万亿|万|亿)|(thousand|million|billion)(?![\p{{L}}\d]))")
_DOZEN = regex.compile(r"(?<![\p{L}\d])(?:(\d{1,9})\s|a\s)?dozen(?![\p{L}\d])")
_FRACTION = regex.compile(r"(?<![\d/⁄.,])(?:(\d{1,9})\s+)?(\d{1,2})[/⁄](\d{1,2})(?![\d/⁄.,])")
_BELOW_ZERO = regex.compile(r"(?:零下|(?<![\p{L}\d])minus)\s?(?=\d)")


def spelled_in_digits(text: str) -> str:
    """`text`, which is normalized, with its numbers in digits: 三件 is 3件, 3万 is 30000, "two hundred" is 200, ½ is 0.5."""
    text = _APOSTROPHES.sub(lambda match: regex.sub("['’]", "", match[0]), text)
    text = _HALF_A.sub("0.5 ", _HALF_PRICE.sub("5折", text))
    text = _PERCENT.sub(lambda match: f"{_han_or_digits(match[1])}%", text)
    text = _PART_OF.sub(lambda match: f"{_han_or_digits(match[2])}/{_han_or_digits(match[1])}", text)
    text = _HAN.sub(_of_han, _HALF.sub("0.5", text))
    text = _MIXED.sub(lambda match: str(int(match[1]) * 10**4 + int(match[2]) * 1000), text)
    text = _SCALED.sub(_of_scaled, text)  # before words: 120 million is one number
    text = _ENGLISH.sub(_of_english, text)
    text = _DOZEN.sub(lambda match: str(12 * int(match[1] or 1)), text)
    text = _FRACTION.sub(_of_fraction, text)
    return _BELOW_ZERO.sub("-", text)


def decimal_of(digits: str) -> str:
    """Plain digits of digits with grouping: 1,000 is a thousand, 1,5 one and a half, 1.000.000 a million, .5 and 0.50 a half."""
    if regex.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}", digits):
        digits = digits.replace(".", "")
    digits = regex.sub(r"(?<=\d),(?=(?:\d{2},)*\d{3}(?!\d)|\d{3},)", "", digits).replace(",", ".")
    whole, _, decimals = digits.partition(".")
    decimals = decimals if "." in decimals else decimals.rstrip("0")  # 1.2.3 is a version: it stays as it is
    return (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")


def _of_scaled(match: regex.Match) -> str:
    value = decimal_of(match[1])
    if value.count(".") > 1:
        return match[0]
    scale = {"万": 10**4, "亿": 10**8, "万亿": 10**12}[match[2]] if match[2] else _SCALES[match[3]]
    return _shown(Fraction(value) * scale)


def _shown(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.6f}".rstrip("0")


def _of_han(match: regex.Match) -> str:
    has_unit = match["unit"] is not None
    if match[0] == "一" and not _MEASURE.match(match.string, match.end()):
        return match[0]
    if not has_unit and (match[0][0] == "十" or not set(match[0]) & {*_TENS, *_MYRIADS}):
        return match[0]
    return str(_read_han(match[0]))


def _han_or_digits(text: str) -> str:
    return text if regex.fullmatch(r"[\d.]+", text) else str(_read_han(text))


def _read_han(text: str) -> int:
    """一百二十 is 120, 三万五千 is 35000, 二〇二四 is 2024, 十二 is 12."""
    if not set(text) & {*_TENS, *_MYRIADS}:
        return int("".join(str(_DIGITS[sign]) for sign in text))
    total = section = digit = 0
    for sign in text:
        if sign in _DIGITS:
            digit = _DIGITS[sign]
        elif sign in _TENS:
            section, digit = section + (digit or 1) * _TENS[sign], 0
        else:
            total, section, digit = (total + section + digit) * _MYRIADS[sign], 0, 0
    return total + section + digit


def _of_english(match: regex.Match) -> str:
    found = [word for word in regex.split(r"[\s-]+", match[0]) if word != "and"]
    if found == ["one"]:
        return match[0]
    parts, total, section = [], 0, 0
    for word in found:
        if word == "hundred":
            section = (section or 1) * 100
        elif word in _SCALES:
            total, section = total + (section or 1) * _SCALES[word], 0
        elif section % 100 == 0 or (section % 100 >= 20 and section % 10 == 0 and _WORDS[word] < 10):
            section += _WORDS[word]
        else:  # "two three": two numbers
            parts, total, section = [*parts, total + section], 0, _WORDS[word]
    return " ".join(map(str, [*parts, total + section]))


def _of_fraction(match: regex.Match) -> str:
    whole, over, under = int(match[1] or 0), int(match[2]), int(match[3])
    if not 0 < over < under <= 16:
        return match[0]
    return _shown(whole + Fraction(over, under))
