"""Titles and selling points of any words: for a model that copies what it is shown, and knows no list by heart.

Words come from lists that lie on every machine (the Chinese dictionary of jieba, the English of Python's own manual, this shop's
words), and from random syllables, characters, numbers with units and codes. A fifth of each list is the split `eval`'s alone,
but none of the shop's words: its grammar shows all of them in training.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from adgen.records import digest
from adgen.shop.synthetic.grammar import Words, listed_words

CHINESE = 0.4
MIXED = 0.12
"""Of Chinese titles: those with an English word, too."""
_CONSONANTS = tuple(
    "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kn ll nn ph pl pr sh sk sl sp st str th tr tt wh".split()  # noqa: SIM905
)
_VOWELS = tuple("a e i o u a e i o ai au ea ee ie oa oo ou y é ü ø á".split())  # noqa: SIM905
_UNITS = tuple("g kg mg ml l cm mm m W V Hz GB TB mAh h min °C inch oz lb g/m² dpi km L Wh rpm".split())  # noqa: SIM905
_CHINESE_UNITS = [
    "克",
    "千克",
    "毫升",
    "升",
    "厘米",
    "毫米",
    "米",
    "瓦",
    "小时",
    "件套",
    "片",
    "支",
    "斤",
    "寸",
    "度",
    "倍",
    "层",
    "码",
]
_MEASURED = [
    "UPF {n}+",
    "{n}-in-1",
    "{n} pack",
    "Set of {n}",
    "Size {n}",
    "No. {n}",
    "{n} pcs",
    "IP{n}",
    "{n}x{m} cm",
    "{n}%",
    "MK{n}",
]
_CHINESE_MEASURED = ["{n}件装", "第{n}代", "{n}合1", "{n}%", "{n}支装", "{n}号"]


def open_words(split: str | None, locale: str, rng: np.random.Generator) -> Words:
    """One product's words, a function of the generator alone."""
    count = int(rng.choice(6, p=[0.07, 0.12, 0.24, 0.31, 0.16, 0.10]))
    speaker = _Speaker(split, locale, rng)
    head = speaker.head()
    points = list(dict.fromkeys(speaker.point() for _ in range(count)))
    return Words(locale, head, tuple(point for point in points if point not in head), speaker.joined_by())


class _Speaker:
    """Draws phrases in one language."""

    def __init__(self, split: str | None, locale: str, rng: np.random.Generator):
        self.rng, self.chinese, self.split = rng, locale == "zh", split
        self.case = str(rng.choice(["lower", "first", "each", "upper"], p=[0.3, 0.4, 0.25, 0.05]))
        self.invented = rng.choice([0.1, 0.35, 0.9], p=[0.5, 0.35, 0.15])
        """Share of words that no list has."""

    def head(self) -> str:
        """What the product is called: brand, words, a code or a measure."""
        rng = self.rng
        parts = [self.word() for _ in range(int(rng.integers(1, 5)))]
        if rng.random() < 0.35:
            parts.insert(0, self.name())
        if rng.random() < 0.2:
            parts.insert(int(rng.integers(1, len(parts) + 1)), self.code())
        if rng.random() < 0.25:
            parts.append(self.measure())
        if rng.random() < 0.08:
            parts[-1] = f"（{parts[-1]}）" if self.chinese else f"({parts[-1]})"
        return self.spoken(parts, self.case)

    def point(self) -> str:
        """A selling point: one to four words, or a measure."""
        rng = self.rng
        parts = [self.word() for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.2, 0.45, 0.25, 0.1])))]
        if rng.random() < 0.2:
            parts.insert(int(rng.integers(0, 2)) * len(parts), self.measure())
        elif rng.random() < 0.1 and not self.chinese and len(parts) > 1:
            parts = [f"{parts[0]}-{parts[1]}", *parts[2:]]
        return self.spoken(parts, "lower" if rng.random() < 0.8 else self.case)

    def spoken(self, parts: list[str], case: str) -> str:
        """Words as a phrase. Names, codes and measures keep their own letters."""
        if self.chinese:  # only words of letters need a space between them
            return "".join(
                f" {part}" if at and part.isascii() and parts[at - 1].isascii() else part for at, part in enumerate(parts)
            )
        changed = {"upper": str.upper, "each": lambda part: part.capitalize() if part.islower() else part}.get(case, str)
        shown = [changed(part) for part in parts]
        text = " ".join(shown)
        return text[0].upper() + text[1:] if case == "first" else text

    def word(self) -> str:
        """A word of a list, or one that nobody has seen."""
        rng, lists = self.rng, _lists(self.split)
        if self.chinese and rng.random() >= MIXED / 3:
            if rng.random() < self.invented:
                return "".join(_pick(rng, lists["characters"]) for _ in range(int(rng.integers(1, 4))))
            return _pick(rng, lists["chinese"])
        if rng.random() < self.invented:
            return self.syllables()
        return _pick(rng, (lists["shop"] if rng.random() < 0.35 else ()) or lists["english"])

    def syllables(self) -> str:
        """A word that can be pronounced."""
        count = int(self.rng.choice([1, 2, 3, 4], p=[0.2, 0.45, 0.25, 0.1]))
        made = "".join(_pick(self.rng, _CONSONANTS) + _pick(self.rng, _VOWELS) for _ in range(count))
        return made + (_pick(self.rng, _CONSONANTS[:18]) if self.rng.random() < 0.5 else "")

    def name(self) -> str:
        """A brand."""
        if self.chinese and self.rng.random() < 0.6:
            return "".join(_pick(self.rng, _lists(self.split)["characters"]) for _ in range(int(self.rng.integers(2, 4))))
        made = self.syllables().capitalize()
        return made.upper() if self.rng.random() < 0.2 else made

    def code(self) -> str:
        """Pax-7, X300, B-12."""
        number = _number(self.rng)
        letters = [_pick(self.rng, "ABCDEFGHKLMNPRSTVXZ") for _ in range(int(self.rng.integers(1, 4)))]
        front = self.name() if self.rng.random() < 0.4 else "".join(letters)
        return f"{front}{_pick(self.rng, ['-', '', '-', ' '])}{number}" if front.isascii() else f"{front}{number}"

    def measure(self) -> str:
        """A number with its unit."""
        rng, number = self.rng, _number(self.rng)
        if rng.random() < 0.3:
            form = _pick(rng, _CHINESE_MEASURED if self.chinese else _MEASURED)
            return form.format(n=number, m=_number(rng))
        if self.chinese and rng.random() < 0.7:
            return number + _pick(rng, _CHINESE_UNITS)
        return number + _pick(rng, [" ", ""]) + _pick(rng, _UNITS)

    def joined_by(self) -> str:
        """What stands between the name and a selling point in the shop's own title; empty where it says none."""
        marks = ["，", " ", "", "-", "|"] if self.chinese else [", ", " ", "", " - ", " | "]
        return str(self.rng.choice(marks, p=[0.3, 0.25, 0.3, 0.1, 0.05]))


def _number(rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.5:
        return str(int(rng.integers(1, 100)))
    if kind < 0.75:
        return str(int(rng.integers(1, 60)) * int(_pick(rng, [5, 10, 50, 100])))
    if kind < 0.9:
        return f"{rng.integers(0, 30)}.{rng.integers(1, 10)}"
    return str(int(rng.integers(100, 10_000)))


def _pick(rng: np.random.Generator, options: list | tuple | str):
    return options[int(rng.integers(len(options)))]


@lru_cache(maxsize=4)
def _lists(split: str | None) -> dict[str, tuple[str, ...]]:
    """Words and characters of one split, sorted."""
    return {name: tuple(sorted(word for word in words if _belongs(word, split))) for name, words in _all_words().items()}


def _belongs(word: str, split: str | None) -> bool:
    is_evals = word not in _all_words()["shop"] and int(digest("open word", word)[:8], 16) % 5 == 0
    return split in (None, "eval" if is_evals else "train")


@lru_cache(maxsize=1)
def _all_words() -> dict[str, set[str]]:
    from pydoc_data import topics

    import jieba

    chinese, characters = set(), set()
    for line in (Path(jieba.__file__).parent / "dict.txt").read_text(encoding="utf-8").splitlines():
        word, often, kind = line.split(" ")
        if kind[0] not in "nav" or kind in ("nr", "ns", "nt") or not re.fullmatch(r"[\u4e00-\u9fff]{1,4}", word):
            continue
        if int(often) >= 60:
            characters.update(word)
        if int(often) >= 200 and len(word) > 1:
            chinese.add(word)
    english = set(re.findall(r"\b[a-z]{3,14}\b", " ".join(topics.topics.values())))
    return {"chinese": chinese, "characters": characters, "english": english, "shop": set(listed_words())}
