"""Selling points by rule: what a feed lists (product_highlight, bullet points), else the description's list or sentences.

A sentence is taken where it is short and speaks of the product: not of prices, deliveries or pages, and not the title again.
"""

import re
from collections.abc import Sequence

from adgen.shop.inputs.html_text import BULLET, lines_of, plain_text

MAX_POINTS = 10
MAX_SENTENCES = 5
LONGEST = 150  # characters, the limit of a product_highlight
LONGEST_SENTENCE = 80
_SEPARATORS = re.compile(r"\s*(?:\||\n|;|；)\s*")
_BULLET = re.compile(rf"^(?:{BULLET}|[-*·‣▪●✓✔]|\d{{1,2}}[.)])\s*(?=\S)")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])")
_NO_CLAIM = re.compile(
    r"https?:|www\.|@|[$€£¥￥]|"
    r"\b(?:usd|eur|gbp|price|discount|coupon|shipping|delivery|returns?|click|visit|order now|buy now|sale)\b",
    re.I,
)


def selling_points(listed: Sequence[str], description: str, title: str) -> list[str]:
    """Short claims, in the order of the feed, each once."""
    points = [point for value in listed for point in _SEPARATORS.split(value)]
    if not points:
        lines = lines_of(description)
        points = [line for line in lines if _BULLET.match(line)]
        if not points:
            points = [each for line in lines for each in _SENTENCE.split(line) if _is_claim(each)][:MAX_SENTENCES]
    cleaned = (_BULLET.sub("", plain_text(point)).strip().rstrip(".。;；,，").strip() for point in points)
    kept = dict.fromkeys(point for point in cleaned if 2 <= len(point) <= LONGEST and point.casefold() != title.casefold())
    return list(kept)[:MAX_POINTS]


def _is_claim(sentence: str) -> bool:
    return 4 <= len(sentence) <= LONGEST_SENTENCE and not _NO_CLAIM.search(sentence) and "?" not in sentence
