"""The synthetic shop's catalog and people as arrays: products, users' tastes, their clicks and their pairs.

Product i and user i are functions of (seed, split, i). Which product a click lands on also depends on how many
products there are, by consistent hashing: a larger shop moves only the clicks that its new products attract.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from adgen.records import digest
from adgen.shop.synthetic.drawing.products import KINDS
from adgen.shop.synthetic.drawing.skins import COLOURS, PATTERNS
from adgen.shop.synthetic.draws import below, draw, jump, key_for, shuffled_blocks, unit
from adgen.shop.synthetic.grammar import BRANDS, LOCALES, TONES, Words, product_words
from adgen.shop.synthetic.open_words import open_words
from adgen.shop.synthetic.styles import TEN, StyleSet

KIND_NAMES, COLOUR_NAMES = tuple(KINDS), tuple(COLOURS)
MIN_CLICKS, MAX_CLICKS = 8, 24
IN_STYLE = (0.6, 0.9)  # share of a user's clicks that are in a favourite style
FIRST_FAVOURITE = 0.6  # of the clicks in style, when there are two favourites
CHINESE = 0.4
PHOTOGRAPHED = 0.4  # of the products of a shop that has drawn styles, too
OPEN_WORDS = {"shop": 0.0, "mixed": 0.5, "open": 1.0}
_STRIDES = np.array([2147483659, 2147483693, 2147483713, 2147483743, 2147483777, 2147483783, 2147483813, 2147483857])


@dataclass(frozen=True)
class Catalog:
    """Columns of numbers, one a product: indices into styles.names, KIND_NAMES, COLOUR_NAMES, PATTERNS, TONES."""

    style: np.ndarray
    kind: np.ndarray
    colour: np.ndarray
    pattern: np.ndarray
    tone: np.ndarray
    chinese: np.ndarray
    choices: np.ndarray  # (products, 6): material, a point of each tone, order of the points, brand
    photographed: np.ndarray
    """Number of the photographed cut-out; -1 for a drawn one."""
    speaks: np.ndarray
    """Seed of a product's open words; -1 for those of the grammar."""
    styles: StyleSet = TEN

    def __len__(self) -> int:
        return len(self.style)

    def style_name(self, product: int) -> str:
        return self.styles.names[self.style[product]]

    def words(self, product: int) -> Words:
        if self.speaks[product] >= 0:
            return open_words(self.styles.split, self.locale(product), np.random.default_rng(int(self.speaks[product])))
        material, first, second, third = (int(choice) for choice in self.choices[product, :4])
        return product_words(*self.look(product), self.locale(product), material, (first, second, third))

    def kind_name(self, product: int) -> str:
        if (number := self.photographed[product]) >= 0:
            return self.styles.cutouts[number][1]
        return KIND_NAMES[self.kind[product]]

    def look(self, product: int) -> tuple[str, str, str]:
        """(kind, colour, pattern) of a drawn product."""
        return KIND_NAMES[self.kind[product]], COLOUR_NAMES[self.colour[product]], PATTERNS[self.pattern[product]]

    def locale(self, product: int) -> str:
        return LOCALES[int(self.chinese[product])]

    def selling_points(self, product: int) -> list[str]:
        words, turn = self.words(product), int(self.choices[product, 4]) % len(TONES)
        turn = turn if words.joined_by is None else 0
        return [*words.points[turn:], *words.points[:turn]]

    def brand(self, product: int) -> str:
        return BRANDS[int(self.choices[product, 5]) % len(BRANDS)]


@dataclass(frozen=True)
class Tastes:
    """Columns of numbers, one a user; `second` equals `first` where there is one favourite style."""

    first: np.ndarray
    second: np.ndarray
    tone: np.ndarray
    num_clicks: np.ndarray
    share: np.ndarray
    names: tuple[str, ...]

    def styles(self, user: int) -> list[str]:
        return [self.names[style] for style in dict.fromkeys([self.first[user], self.second[user]])]


@lru_cache(maxsize=4)
def allowed_looks(split: str | None) -> tuple[np.ndarray, ...]:
    """For each kind the (colour, pattern) index pairs of `split`. A fifth of all is eval's, whatever the seed."""
    looks = []
    for kind in KIND_NAMES:
        pairs = [(c, p) for c in range(len(COLOUR_NAMES)) for p in range(len(PATTERNS))]
        held = [int(digest("look", kind, COLOUR_NAMES[c], PATTERNS[p])[:8], 16) % 5 == 0 for c, p in pairs]
        kept = [pair for pair, out in zip(pairs, held, strict=True) if split is None or out == (split == "eval")]
        looks.append(np.array(kept))
    return tuple(looks)


def make_catalog(seed: int, split: str | None, num_products: int, styles: StyleSet = TEN, words: str = "shop") -> Catalog:
    """The first `num_products` products of the shop (seed, split); words: one of OPEN_WORDS."""
    index = np.arange(num_products)
    kind = shuffled_blocks(key_for("kind", seed, split), len(KIND_NAMES), num_products)
    looks = allowed_looks(split)
    chosen = below(draw(key_for("look", seed, split), index), np.array([len(each) for each in looks])[kind])
    padded = np.zeros((len(looks), max(len(each) for each in looks), 2), np.int64)
    for row, each in enumerate(looks):
        padded[row, : len(each)] = each
    colour, pattern = padded[kind, chosen].T
    photographed = np.full(num_products, -1)
    if styles.cutouts:
        shown = unit(draw(key_for("photographed", seed, split), index)) < (PHOTOGRAPHED if styles.sets else 1.0)
        photographed = np.where(shown, below(draw(key_for("cutout", seed, split), index), len(styles.cutouts)), -1)
    speaks = draw(key_for("open words", seed, split), index)
    open_worded = (photographed >= 0) | (unit(draw(key_for("speaks", seed, split), index)) < OPEN_WORDS[words])
    return Catalog(
        style=_named(styles)[shuffled_blocks(key_for("style", seed, split), len(styles.slots), num_products)],
        kind=kind,
        colour=colour,
        pattern=pattern,
        tone=below(draw(key_for("tone", seed, split), index), len(TONES)),
        chinese=unit(draw(key_for("locale", seed, split), index)) < CHINESE,
        choices=below(draw(key_for("choices", seed, split), index[:, None], np.arange(6)[None, :]), 60),
        photographed=photographed,
        speaks=np.where(open_worded, (speaks >> np.uint64(2)).astype(np.int64), -1),
        styles=styles,
    )


def _named(styles: StyleSet) -> np.ndarray:
    """Of each slot, its style's place among the names."""
    place = {name: number for number, name in enumerate(styles.names)}
    return np.array([place[name] for name in styles.slots])


def make_tastes(
    seed: int,
    split: str | None,
    users: np.ndarray,
    num_products: int,
    of: StyleSet = TEN,
    clicks: tuple[int, int] = (MIN_CLICKS, MAX_CLICKS),
) -> Tastes:
    """The tastes of the users with these numbers; clicks: fewest and most of a user."""
    hashes = [draw(key_for("taste", seed, split, trait), users) for trait in range(6)]
    styles, named = len(of.names), _named(of)
    first = named[below(hashes[0], len(named))]
    other = (first + 1 + below(hashes[1], styles - 1)) % styles
    second = np.where(unit(hashes[2]) < 0.5, other, first)
    if num_products < styles:  # a shop too small for all styles: favourites are among those that it has
        order = named[shuffled_blocks(key_for("style", seed, split), len(named), len(named))]
        stocked = order[np.argsort(order, kind="stable")[np.searchsorted(np.sort(order), np.arange(styles))] % num_products]
        first, second = stocked[first], stocked[second]
    return Tastes(
        first=first,
        second=second,
        tone=below(hashes[3], len(TONES)),
        num_clicks=clicks[0] + below(hashes[4], clicks[1] - clicks[0] + 1),
        share=IN_STYLE[0] + (IN_STYLE[1] - IN_STYLE[0]) * unit(hashes[5]),
        names=of.names,
    )


def make_clicks(seed: int, split: str | None, users: np.ndarray, tastes: Tastes, catalog: Catalog) -> tuple[np.ndarray, np.ndarray]:
    """(products, valid), both (users, MAX_CLICKS): the clicked products, oldest first, in the first places of a row."""
    slot = np.arange(MAX_CLICKS)[None, :]
    count, user = tastes.num_clicks[:, None], users[:, None]
    valid = slot < count
    least = np.ceil(IN_STYLE[0] * count)
    wanted = np.clip(np.round(tastes.share[:, None] * count), least, np.maximum(least, np.floor(IN_STYLE[1] * count)))
    order = np.where(valid, unit(draw(key_for("order", seed, split), user, slot)), 2.0)
    in_style = np.argsort(np.argsort(order, axis=1), axis=1) < wanted
    choice = draw(key_for("click style", seed, split), user, slot)
    first, second = tastes.first[:, None], tastes.second[:, None]
    liked = np.where(unit(choice) < FIRST_FAVOURITE, first, second)
    style = np.where(in_style, liked, _other_style(choice, first, second, len(catalog.styles.names)))
    return _clicked(key_for("click", seed, split), user, slot, style, tastes.tone[:, None], catalog), valid


def _other_style(choice: np.ndarray, first: np.ndarray, second: np.ndarray, styles: int) -> np.ndarray:
    """A style that is neither favourite."""
    low, high = np.minimum(first, second), np.maximum(first, second)
    other = below(choice, styles - 1 - (low != high))
    other = other + (other >= low)
    return other + ((low != high) & (other >= high))


def _clicked(key: int, user: np.ndarray, slot: np.ndarray, style: np.ndarray, tone: np.ndarray, catalog: Catalog) -> np.ndarray:
    """A product of each `style`; of three looked at, the first in the user's tone is clicked, if there is one."""
    by_style = np.argsort(catalog.style, kind="stable")
    stock = np.bincount(catalog.style, minlength=len(catalog.styles.names))
    start = np.cumsum(stock) - stock
    everything = stock[style] == 0  # only in shops with fewer products than styles
    size, first = np.where(everything, len(catalog), stock[style]), np.where(everything, 0, start[style])
    looked = [by_style[first + jump(draw(key, user, slot, look), size)] for look in range(3)]
    clicked = looked[0]
    for product in reversed(looked):
        clicked = np.where(catalog.tone[product] == tone, product, clicked)
    return clicked


def paired_products(seed: int, split: str | None, users: np.ndarray, rounds: np.ndarray, num_products: int) -> np.ndarray:
    """The target product of each (user, round); a user's rounds below `num_products` never meet the same one twice."""
    start = below(draw(key_for("pair start", seed, split), users), num_products)
    stride = _STRIDES[below(draw(key_for("pair stride", seed, split), users), len(_STRIDES))]  # primes over 2**31
    return (start + rounds * (stride % num_products)) % num_products


def reference_styles(seed: int, split: str | None, users: np.ndarray, rounds: np.ndarray, tastes: Tastes) -> np.ndarray:
    """The favourite style that each (user, round)'s reference creative is set in; `tastes` has a row for each."""
    first = unit(draw(key_for("reference style", seed, split), users, rounds)) < FIRST_FAVOURITE
    return np.where(first, tastes.first, tastes.second)
