"""The synthetic shop's titles and selling points, English and Chinese, made from `words.toml`."""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

TONES = ("comfort", "lasting", "charming")
LOCALES = ("en", "zh")
BRANDS = ("Norvik", "Kesa", "Maolin", "Tavola", "Hupo", "Oriel", "Pinna", "Qingshan", "Ruva", "Solde")


@dataclass(frozen=True)
class Words:
    """One product's words. `points` are its selling points; the grammar gives one of each tone, in the order of TONES."""

    locale: str
    head: str
    points: tuple[str, ...]
    joined_by: str | None = None
    """What stands between head and point in the shop's own title. None: a comma. Empty: it says no point."""

    @property
    def _marks(self) -> tuple[str, str]:
        return ("，", "：") if self.locale == "zh" else (", ", ": ")

    def title(self, tone: int) -> str:
        """The shop's own title: what the product is, and its selling point of one tone."""
        comma = self._marks[0] if self.joined_by is None else self.joined_by
        return self.head + comma + self.points[tone % len(self.points)] if comma and self.points else self.head

    def creative_titles(self, favourite: int) -> list[str]:
        """Advertising titles for a user who likes the tone `favourite`: it comes first. Only the product's words. Products of open
        words have points of no tone: they keep their order."""
        comma, colon = self._marks
        if not self.points:
            return [self.head]
        if self.joined_by is not None:
            return [self.head + colon + comma.join(self.points)]
        first, *others = self.points[favourite:] + self.points[:favourite]
        return [self.head + colon + comma.join([first, *order]) for order in (others, others[::-1])]


def product_words(kind: str, colour: str, pattern: str, locale: str, material: int, points: tuple[int, int, int]) -> Words:
    """The words of a product; `material` and `points` choose among the kind's own."""
    words = _words()
    entry, at = words["kinds"][kind], LOCALES.index(locale)
    noun, stuff = entry["noun"][at], entry["materials"][material % len(entry["materials"])][at]
    if locale == "zh":
        head = words["colours"][colour] + words["patterns"][pattern] + stuff + noun
    else:
        head = f"{pattern.capitalize()} {colour} {stuff} {noun}"
    chosen = [entry[tone][point % len(entry[tone])][at] for tone, point in zip(TONES, points, strict=True)]
    return Words(locale, head, tuple(chosen))


def listed_words() -> list[str]:
    """Every English word of `words.toml`."""
    words = _words()
    phrases = [*words["colours"], *words["patterns"]]
    for entry in words["kinds"].values():
        phrases += [entry["noun"][0], *(pair[0] for name in ("materials", *TONES) for pair in entry[name])]
    return [word for phrase in phrases for word in phrase.lower().split()]


@lru_cache(maxsize=1)
def _words() -> dict:
    return tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
