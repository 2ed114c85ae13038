"""One spelling of a text for comparing claims: compatibility forms, case, and traditional characters folded."""

import unicodedata
from functools import cache
from importlib.resources import files

import regex

_VULGAR = regex.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
_THIN_GROUPS = regex.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")


def normalized(text: str) -> str:
    """`text` as NFKC, casefolded, with simplified characters: 國 is 国, Ａ is a, 1½ is 1 1⁄2, 1 000 with a thin space is 1000, a
    hyphen that does not break is one that does."""
    text = _VULGAR.sub(" ", _THIN_GROUPS.sub("", text))
    return unicodedata.normalize("NFKC", text).replace("\u2010", "-").casefold().translate(_simplified())


@cache
def _simplified() -> dict[int, str]:
    """Character by character, from OpenCC's table; of several simplified forms the first."""
    table = (files("opencc") / "dictionary" / "TSCharacters.txt").read_text(encoding="utf-8")
    pairs = (line.split("\t") for line in table.splitlines() if "\t" in line)
    return {ord(old): new.split()[0] for old, new in pairs if len(old) == 1 and len(new.split()[0]) == 1}
