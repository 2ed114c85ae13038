"""Text that was written for a page: entities decoded, tags taken out."""

import html
import re

LONGEST = 20_000  # characters that are looked at; a page under a product's name says nothing more of the product
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_HIDDEN = re.compile(r"<(script|style)\b[^<>]*>[^<]*</\1\s*>|<!--[^<>]*-->", re.I)
_ITEM = re.compile(r"<li\b[^<>]*>", re.I)
_BREAK = re.compile(r"</?(?:br|p|div|li|ul|ol|tr|table|h[1-6]|section|article)\b[^<>]*>", re.I)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
BULLET = "\u2022"
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # white space is no part of it


def without_entities(text: str) -> str:
    """Without HTML entities, which titles copied from pages carry; "AT&T" and "cats & dogs" are none. Twice encoded ones, too."""
    for _ in range(2):
        text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    return text


def lines_of(text: str) -> list[str]:
    """The lines that a page would show, without tags and entities; those of a list begin with a bullet."""
    text = _CONTROLS.sub("", without_entities(text[:LONGEST]))
    if "<" in text:
        text = _ITEM.sub(f"\n{BULLET} ", _HIDDEN.sub(" ", text))
        text = _TAG.sub("", _BREAK.sub("\n", text))
    return [line for each in text.splitlines() if (line := " ".join(each.split())) and line != BULLET]


def plain_text(text: str) -> str:
    """The same as one line."""
    return " ".join(line.removeprefix(BULLET).strip() for line in lines_of(text)) if text else ""
