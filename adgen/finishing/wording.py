"""Comparing a title's words with what it may and must not say. What is found here is judged by the gates `forbidden_words`,
`allowed_words` and `numbers_and_units` of finishing/gates.py; forbidden terms are data, in finishing/rules/.

Allowed words need no dictionary. A word of a spaced script is allowed when a product text has it, but for its plural s.
A run of Chinese is allowed as far as it can be covered by pieces of the product's texts: pieces of at least two
characters, whole runs of one character, and stop words. Two is the least that keeps meaning: 纯 and 棉 alone could be
rearranged to anything, 纯棉 cannot; and phrases may be joined in any order, as a title does with selling points.

What a text only denies is not said: "not waterproof" allows "not waterproof" and no more, 不防水 allows 不防水 and not 防水.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import NamedTuple, Self

import regex

from adgen.finishing.normalize import normalized
from adgen.finishing.rules import RulePack, rule_packs
from adgen.finishing.segmentation import is_of_other_words
from adgen.finishing.titles import Number, words

MIN_PIECE = 2


class Wording(NamedTuple):
    """What a product's texts and the stop words allow a title to say."""

    words: frozenset[str]
    numbers: frozenset[Number]
    text: str
    """All runs of unspaced scripts, one a line."""
    whole: frozenset[str]
    """Pieces that are allowed whatever their length: whole runs and stop words."""
    denied: frozenset[str] = frozenset()
    """Words that stand nowhere but after a negation."""
    denied_at: frozenset[int] = frozenset()
    """Places in `text` that follow a negation: no piece begins there."""

    @classmethod
    def of(cls, texts: Sequence[str], stop_words: Iterable[str]) -> Self:
        """What `texts` allow, with `stop_words` of any language."""
        tokens = [words(_with_negations_closed(text)) for text in texts]
        stops = [words(stop) for stop in stop_words]
        runs = [run for token in tokens for run in token.runs]
        said = Counter(word for token in tokens for word in token.words)
        denied = Counter(word for each in texts for word in denied_words(each))
        text = "\n".join(runs)
        return cls(
            frozenset(word for token in (*tokens, *stops) for word in token.words),
            frozenset(number for token in tokens for number in token.numbers),
            text,
            frozenset(runs).union(run for stop in stops for run in stop.runs),
            frozenset(word for word, times in denied.items() if times >= said[word]),
            frozenset(place for match in _unspaced_negation().finditer(text, overlapped=True) for place in match.ends("to")),
        )

    def coverage(self, title: str) -> tuple[float, list[str]]:
        """(share of the title's words and run characters that is allowed, what is not); numbers have their own gate."""
        tokens = words(_with_negations_closed(title))
        denied = set(denied_words(title))
        unknown = [word for word in tokens.words if not self._knows(word) or (word not in denied and self._only_denies(word))]
        missing = len(unknown)
        for run in tokens.runs:
            pieces = self.uncovered(run)
            unknown += pieces
            missing += sum(map(len, pieces))
        total = len(tokens.words) + sum(map(len, tokens.runs))
        return (1 - missing / total if total else 1.0), unknown

    def unstated(self, numbers: Iterable[Number]) -> list[Number]:
        """Those of `numbers` that the texts do not state.

        A number that lost its unit is vague, not false; one that changed or gained a unit is a claim nobody made.
        """
        stated = {number.base for number in self.numbers}
        values = {number.value for number in self.numbers}
        return [n for n in numbers if n.base not in stated and not (n.unit == "" and n.value in values)]

    def _knows(self, word: str) -> bool:
        return any(form in self.words for form in _forms(word))

    def _only_denies(self, word: str) -> bool:
        return all(form in self.denied for form in _forms(word) if form in self.words)

    def _says(self, piece: str) -> bool:
        """Whether a text has `piece` where no negation stands before it."""
        at = self.text.find(piece)
        while at in self.denied_at:
            at = self.text.find(piece, at + 1)
        return at >= 0

    def uncovered(self, run: str) -> list[str]:
        """The parts of `run` that no allowed pieces cover, when as many of its characters as possible are covered."""
        longest = max(map(len, self.whole), default=0)
        # best[i] = (uncovered characters of run[:i], where its last piece starts, whether that piece is allowed)
        best = [(0, 0, True)] + [(len(run) + 1, 0, False)] * len(run)
        for start in range(len(run)):
            cost = best[start][0]
            best[start + 1] = min(best[start + 1], (cost + 1, start, False))
            for end in range(start + 1, len(run) + 1):
                piece = run[start:end]
                in_text = piece in self.text
                if piece in self.whole or (in_text and len(piece) >= MIN_PIECE and self._says(piece)):
                    best[end] = min(best[end], (cost, start, True))
                elif not in_text and len(piece) > longest:
                    break
        return _joined_gaps(run, best)


def _forms(word: str) -> tuple[str, ...]:
    singular = word.removesuffix("s")
    return word, singular, singular.removesuffix("e"), word + "s", word + "es"


def denied_words(text: str) -> list[str]:
    """The words of spaced scripts that a negation before them denies, as often as it does."""
    found = [word for match in _spaced_negation().finditer(normalized(text)) for word in words(match["denied"]).words]
    return [word for word in found if word not in ("or", "nor")]


@cache
def _spaced_negation() -> regex.Pattern:
    negations, through = (_alternatives(field, spaced=True) for field in ("negations", "negated_through"))
    word = r"\p{L}[\p{L}\p{M}'’]*"
    before = rf"(?:{negations})(?:[\s-]+(?:{through}))*[\s-]+(?P<denied>{word}(?:\s+n?or\s+{word})*)"
    return regex.compile(rf"(?<![\p{{L}}\d])(?:{before}|(?P<denied>{word})-free(?!\p{{L}}))")


def _with_negations_closed(text: str) -> str:
    """The text with a Chinese negation drawn to what follows it after a space: 不 防水 is 不防水."""
    negations = _alternatives("negations", spaced=False)
    return regex.sub(rf"((?:{negations}))\s+(?=\p{{Han}})", r"\1", normalized(text))


@cache
def _unspaced_negation() -> regex.Pattern:
    negations, through = (_alternatives(field, spaced=False) for field in ("negations", "negated_through"))
    return regex.compile(rf"(?:{negations})(?P<to>)(?:(?:{through})(?P<to>))*")


def _alternatives(field: str, spaced: bool) -> str:
    """The packs' words of a field, of spaced or of unspaced scripts, longest first."""
    found = {normalized(word) for pack in rule_packs().values() for word in getattr(pack, field)}
    chosen = sorted((word for word in found if bool(regex.search(r"\p{Han}", word)) != spaced), key=len, reverse=True)
    return "|".join(map(regex.escape, chosen))


def _joined_gaps(run: str, best: Sequence[tuple[int, int, bool]]) -> list[str]:
    gaps, end = [], len(run)
    gap_end = None
    while end > 0:
        _, start, allowed = best[end]
        if allowed and gap_end is not None:
            gaps.append(run[end:gap_end])
            gap_end = None
        elif not allowed and gap_end is None:
            gap_end = end
        end = start
    if gap_end is not None:
        gaps.append(run[:gap_end])
    return gaps[::-1]


@lru_cache(maxsize=1024)
def product_wording(texts: tuple[str, ...]) -> Wording:
    """What a product's `texts` and the stop words of every language allow.

    Titles mix languages whatever their locale says, and a stop word of another language claims nothing either.
    """
    return Wording.of(texts, stop_words())


def stop_words() -> list[str]:
    """Words of any language that add no claim."""
    return [word for pack in rule_packs().values() for word in pack.stop_words]


# -- forbidden words -------------------------------------------------------------------------------------------


class Hit(NamedTuple):
    """A forbidden term in a title."""

    term: str
    rule: str
    severity: str


def forbidden_hits(
    title: str, packs: Sequence[RulePack], more_terms: tuple[str, ...] = (), more_exceptions: tuple[str, ...] = ()
) -> list[Hit]:
    """Every forbidden term of `title` that no exception phrase and no longer idiom holds; those that may reject come first."""
    title = _compact(title)
    rules = [(rule.id, rule.severity, rule.terms, rule.exceptions) for pack in packs for rule in pack.rules]
    rules.append(("campaign", "reject", more_terms, ()))
    rules.sort(key=lambda rule: rule[1] == "warn")  # where two rules name a term, the strict one has it
    hits, taken, apart = [], [], _spans(title, tuple(idiom for pack in packs for idiom in pack.idioms))
    for rule, severity, terms, exceptions in rules:
        excused = _spans(title, exceptions + more_exceptions)
        for start, end in _spans(title, terms):
            held = any(a <= start and end <= b for a, b in excused + taken)
            held = held or any(a <= start and end <= b and b - a > end - start for a, b in apart)
            if not held and not is_of_other_words(title, start, end):
                hits.append(Hit(title[start:end], rule, severity))
                taken.append((start, end))
    return hits


def _compact(text: str) -> str:
    """Normalized, and without the signs that are put between Chinese characters to slip past a list: 最*佳, 最🔥佳."""
    return regex.sub(r"(?<=\p{Han})[\s*·・._~\-|/\p{So}\ufe0f]+(?=\p{Han})", "", normalized(text))


def _spans(text: str, terms: tuple[str, ...]) -> list[tuple[int, int]]:
    return [match.span() for match in _any_of(terms).finditer(text, overlapped=True)] if terms else []


@lru_cache(maxsize=256)
def _any_of(terms: tuple[str, ...]) -> regex.Pattern:
    # An end that is a letter or digit of a spaced script matches whole words only: no "cure" in "secure".
    parts = []
    for term in sorted(map(_compact, terms), key=len, reverse=True):
        head = rf"(?<!{_SPACED})" if regex.match(_SPACED, term[0], regex.V1) else ""
        tail = rf"(?!{_SPACED}|[.,]\d)" if regex.match(_SPACED, term[-1], regex.V1) else ""
        parts.append(head + regex.escape(term) + tail)
    return regex.compile("|".join(parts), regex.V1)


_SPACED = r"[[\p{L}\d]--[\p{Han}]]"
