"""The coarse step for many pairs at once: whose clicks may be drawn, how similar each is, and the draw itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adgen.shop.catalog.catalog import Catalog
from adgen.shop.history import draw, published_draw
from adgen.shop.similarity import cosines


@dataclass(frozen=True)
class Drawn:
    """A pair's drawn clicks, in the order of the draw."""

    ids: list[str]
    hashes: list[str]


class Histories:
    """The clicks of some users, with what the catalog says of the clicked products.

    A click counts if its product's picture has codes in the catalog; others cannot be shown to the model. A user with
    several rows has the one with the most clicks.
    """

    def __init__(self, rows: pa.Table, catalog: Catalog):
        self._clicks = _clicks_by_user(rows)
        clicked = sorted({product for clicks in self._clicks.values() for product in clicks})
        facts = catalog.facts(clicked)
        self._titles = dict(zip(clicked, facts["title"].to_pylist(), strict=True))
        hashes = zip(clicked, facts["click_hash"].to_pylist(), strict=True)
        self._hashes = {product: click_hash for product, click_hash in hashes if click_hash is not None}
        self._catalog = catalog

    def draw(
        self, pairs: Sequence[tuple[str, str, str, str]], k: int, order: Literal["keyed", "published"] = "keyed"
    ) -> list[Drawn]:
        """For each (pair_id, user_id, product_id, product title) up to k clicks: `adgen.shop.history.draw`, or as the published
        flow draws them, from all clicks but the product itself."""
        candidates = [self._candidates(user) for _, user, _, _ in pairs]
        similarities = self._similarities([product for _, _, product, _ in pairs], candidates)
        drawn = []
        for (pair, _, product, title), clicked, close in zip(pairs, candidates, similarities, strict=True):
            titles = [self._titles[click] or "" for click in clicked]
            if order == "keyed":
                places = draw(pair, clicked, close, k, product, title or None, titles)
            else:
                others = [place for place, click in enumerate(clicked) if click != product]
                there = [titles[place] for place in others], [close[place] for place in others]
                places = [others[place] for place in published_draw(*there, k, title or None)]
            chosen = [clicked[place] for place in places]
            drawn.append(Drawn(chosen, [self._hashes[click] for click in chosen]))
        return drawn

    def _candidates(self, user: str) -> list[str]:
        return [product for product in self._clicks.get(user, ()) if product in self._hashes]

    def _similarities(self, targets: list[str], candidates: list[list[str]]) -> list[list[float]]:
        products = sorted({*targets, *(product for clicked in candidates for product in clicked)})
        number = {product: index for index, product in enumerate(products)}
        embeddings = self._catalog.embeddings(products)
        sizes = np.array([len(clicked) for clicked in candidates], np.int64)
        left = np.repeat(np.array([number[target] for target in targets], np.int64), sizes)
        right = np.array([number[product] for clicked in candidates for product in clicked], np.int64)
        close = cosines(embeddings, left, right)
        ends = np.cumsum(sizes)
        return [close[end - size : end].tolist() for end, size in zip(ends, sizes, strict=True)]


def _clicked(clicks: pa.ChunkedArray) -> Iterator[list[str | None]]:
    """Each row's product ids, without the rest of its clicks as Python objects; a row that is null has none."""
    for chunk in clicks.chunks:
        products = pc.struct_field(chunk.values, "product_id").to_pylist()  # of a null struct it is null
        starts, ends = chunk.offsets.to_pylist()[:-1], chunk.offsets.to_pylist()[1:]
        there = chunk.is_valid().to_pylist()
        yield from (products[start:end] if valid else [] for start, end, valid in zip(starts, ends, there, strict=True))


def _clicks_by_user(rows: pa.Table) -> dict[str, list[str]]:
    """Each user's clicked products, oldest first, each once at its newest place; nulls are nobody's click."""
    found: dict[str, list[str]] = {}
    for user, clicked in zip(rows["user_id"].to_pylist(), _clicked(rows["clicks"]), strict=True):
        products = [product for product in clicked if product is not None]
        distinct = list(dict.fromkeys(reversed(products)))[::-1]
        before = found.get(user)
        if user is not None and (before is None or (len(distinct), distinct) > (len(before), before)):
            found[user] = distinct
    return found
