"""Titles that are drawn again, held to their product's own words.

Guided decoding (Willard & Louf, "Efficient Guided Generation for Large Language Models", 2023) over a trie of tokens: a step may
go on with a word of the product's texts, and after a whole word begin another one, set a comma or a colon, or close the title.
No word is said more often than the texts say it, so a title that would go in circles ends. A text without spaces is cut at its
punctuation, and its pieces are said whole.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from adgen.generation.prompt import Prompter

_LETTERS = r"[^\s,;:!?()\[\]\"“”«»|，。：；！？、（）《》·]"
_WORD = re.compile(rf"\d+(?:[.,]\d+)*(?:{_LETTERS}+| +(?!\d){_LETTERS}+)?|{_LETTERS}+")
"""A number and what it counts are one word: 280 g/m² says nothing of 280 km."""
_BRACKETED = re.compile(r"[(\[\"“«《]([^\s()\[\]\"“”«»《》]+)[)\]\"”»》]")
_JOINERS = (",", ":", "，", "：", "、")


class _Node:
    """A place in the trie."""

    __slots__ = ("joins", "tokens", "word")

    def __init__(self) -> None:
        self.tokens: dict[int, _Node] = {}
        self.word: str | None = None
        """The word that is whole here; another one may begin."""
        self.joins = False
        """A comma or colon is whole here, before which a word was."""

    def spell(self, ids: Iterable[int], word: str | None = None, joins: bool = False) -> None:
        node = self
        for token in ids:
            node = node.tokens.setdefault(token, _Node())
        node.word, node.joins = word or node.word, joins or node.joins


class _Roots(NamedTuple):
    """Where a word may begin: at the title's start, after a word, after a comma or colon."""

    first: _Node
    after_word: _Node
    after_joiner: _Node


class OwnWords:
    """What a title of these texts may say next; it follows one title as it is written."""

    def __init__(self, prompter: Prompter, texts: Iterable[str]):
        """A product without a word leaves everything allowed. A word in brackets may keep or lose them."""
        self._close, self._ids = prompter.title_close_ids, cache(prompter.text_ids)
        self._left: Counter[str] = Counter()
        self._spellings: dict[str, set[str]] = {}
        for text in texts:
            for found in _WORD.findall(text):
                if bare := found.strip(".-–'’"):
                    self._left[bare.casefold()] += 1
                    self._spellings.setdefault(bare.casefold(), set()).update(_forms(bare))
            for match in _BRACKETED.finditer(text):
                self._spellings.get(match[1].casefold(), set()).add(match[0])
        self._roots: dict[frozenset[str], _Roots] = {}
        self._at = [self._without(frozenset()).first] if self._left else []

    def bias(self, size: int) -> Tensor:
        """(size,) fp32 to add to the logits of all tokens: 0 for those that are allowed, -inf for the others."""
        if not self._at:
            return torch.zeros(size)
        allowed = {token for place in (*self._at, *self._beginnings()) for token in place.tokens}
        return torch.full((size,), -torch.inf).index_fill_(0, torch.tensor(sorted(allowed)), 0.0)

    def read(self, token: int) -> None:
        """`token` was written."""
        goes_on = [place.tokens[token] for place in self._at if token in place.tokens]
        begun = [place.tokens[token] for place in self._beginnings() if token in place.tokens]
        if not goes_on:
            self._left.subtract(self._said())
        self._at = goes_on + begun

    def _said(self) -> set[str]:
        return {place.word for place in self._at if place.word is not None}

    def _beginnings(self) -> list[_Node]:
        """The roots that may follow what is whole now."""
        said = self._said()
        roots = self._without(frozenset(word for word, left in self._left.items() if left - (word in said) <= 0))
        return [roots.after_word] * bool(said) + [roots.after_joiner] * any(place.joins for place in self._at)

    def _without(self, used_up: frozenset[str]) -> _Roots:
        """The trie of the words that are left."""
        if used_up not in self._roots:
            self._roots[used_up] = self._spelled({word: self._spellings[word] for word in self._left if word not in used_up})
        return self._roots[used_up]

    def _spelled(self, words: dict[str, set[str]]) -> _Roots:
        roots, ids_of = _Roots(_Node(), _Node(), _Node()), self._ids
        for word, form in ((word, form) for word, forms in words.items() for form in sorted(forms)):
            for places, spelled in ((roots[::2], form), (roots[1:], f" {form}")):
                for place in places:
                    place.spell(ids_of(spelled), word)
                    for joiner in _JOINERS if len(words) > 1 and not form[-1].isalnum() else ():  # marks in a row may be one token
                        place.spell(ids_of(spelled + joiner), joins=True)
        for joiner in _JOINERS if words else ():
            roots.after_word.spell(ids_of(joiner), joins=True)
        roots.after_word.spell(self._close)
        return roots


def _forms(word: str) -> tuple[str, ...]:
    """A word as it stands, and as it stands at a title's beginning or within it."""
    return word, word[0].upper() + word[1:], word[0].lower() + word[1:]
