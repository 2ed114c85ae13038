"""Titles that are drawn again, held to their product's own words.

Guided decoding (Willard & Louf, "Efficient Guided Generation for Large Language Models", 2023) over a trie of tokens: a step may
go on with a word of the product's texts, and after a whole word begin another one, set a comma or a colon, or close the title.
A text without spaces is cut at its punctuation, so its pieces are said whole.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from adgen.generation.prompt import Prompter

_LETTERS = r"[^\s,;:!?()\[\]\"“”«»|，。：；！？、（）《》·]"
_WORD = re.compile(rf"\d+(?:[.,]\d+)*(?:{_LETTERS}+| +(?!\d){_LETTERS}+)?|{_LETTERS}+")
"""A number and what it counts are one word: 280 g/m² says nothing of 280 km."""
_BRACKETED = re.compile(r"[(\[\"“«《][^\s()\[\]\"“”«»《》]+[)\]\"”»》]")
_JOINERS = (",", ":", "，", "：", "、")


class _Node:
    """A place in the trie: the tokens that lead on, and, where something is spelled out, what may follow it."""

    __slots__ = ("following", "tokens")

    def __init__(self) -> None:
        self.tokens: dict[int, _Node] = {}
        self.following: list[_Node] = []

    def spell(self, ids: Iterable[int], then: "_Node") -> None:
        """A way from here over `ids` to `then`."""
        node = self
        for token in ids:
            node = node.tokens.setdefault(token, _Node())
        if node is not self and then not in node.following:
            node.following.append(then)


class OwnWords:
    """What a title of these texts may say next; it follows one title as it is written."""

    def __init__(self, prompter: Prompter, texts: Iterable[str]):
        """A product without a word leaves everything allowed. A word in brackets may keep or lose them."""
        found = [
            word for text in texts for word in (*(bare.strip(".-–'’") for bare in _WORD.findall(text)), *_BRACKETED.findall(text))
        ]
        words = {form for word in found for form in _forms(word)}
        first, next_word, next_piece, end = _Node(), _Node(), _Node(), _Node()
        for word in sorted(words):
            for places, spelled in (((first, next_piece), word), ((next_word, next_piece), f" {word}")):
                for place in places:
                    place.spell(prompter.text_ids(spelled), next_word)
                    for joiner in _JOINERS if not word[-1].isalnum() else ():  # marks in a row may be one token
                        place.spell(prompter.text_ids(spelled + joiner), next_piece)
        for joiner in _JOINERS:
            next_word.spell(prompter.text_ids(joiner), next_piece)
        next_word.spell(prompter.title_close_ids, end)
        self._at = [first] if first.tokens else []

    def read(self, token: int) -> None:
        """`token` was written."""
        self._at = _with_following(place.tokens[token] for place in self._at if token in place.tokens)

    def bias(self, size: int) -> Tensor:
        """(size,) fp32 to add to the logits of all tokens: 0 for those that are allowed, -inf for the others."""
        allowed = sorted({token for place in self._at for token in place.tokens})
        if not allowed:
            return torch.zeros(size)
        return torch.full((size,), -torch.inf).index_fill_(0, torch.tensor(allowed), 0.0)


def _with_following(places: Iterable[_Node]) -> list[_Node]:
    found = list(places)
    return found + [after for place in found for after in place.following]


def _forms(word: str) -> list[str]:
    """A word as it stands, and as it stands at a title's beginning or within it."""
    return [word, word[0].upper() + word[1:], word[0].lower() + word[1:]] if word else []
