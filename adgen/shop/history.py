"""Coarse preference understanding: which clicked products a prompt may hold. No torch, no storage.

Two ways. `draw` is ours: keyed, so that one click more or less never changes another click's chance. `published_draw` is
the published numpy order (docs/design.md 6.12), for models that were converted from a release.

A prompt shows none or all of its items: fewer clicks are repeated (`filled`), in training as in a refresh.
"""

import math
import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from adgen.records import unit_intervals

_SIMILARITY_STEP = 1e-3
_SHIFT = 1e-6

Item = TypeVar("Item")


def filled(drawn: Sequence[Item], items: int) -> list[Item]:
    """The drawn clicks, again and again in the order of the draw until there are `items`; no clicks stay none, and more
    than `items` stay as they are. Depends on the draw alone, so a fingerprint needs to hold the drawn clicks only."""
    return [drawn[place % len(drawn)] for place in range(max(items, len(drawn)))] if drawn else []


def draw(
    pair_id: str,
    clicked: Sequence[str],
    similarities: Sequence[float],
    k: int,
    target: str | None = None,
    target_title: str | None = None,
    titles: Sequence[str] | None = None,
) -> list[int]:
    """Indices of up to k clicks, drawn by weight without replacement, in the order of the draw.

    A click's key is -log(u)/w with u = hash(pair_id, clicked product) and w its similarity to the target, rounded to
    1e-3 (Efraimidis & Spirakis 2006); the k smallest win. So the draw is a function of the pair and the set of clicks:
    what is not drawn changes nothing. A product that was clicked twice counts once, at its newest place. The target is
    never drawn, nor a click that carries `target_title`. Fewer than k candidates: all of them; none: none.

    Raises ValueError when the lists differ in length or k is negative.
    """
    if len(clicked) != len(similarities) or (titles is not None and len(titles) != len(clicked)):
        raise ValueError(f"{len(clicked)} clicks, {len(similarities)} similarities")
    if k < 0:
        raise ValueError(f"k is {k}")
    newest = {product: index for index, product in enumerate(clicked) if product != target}
    if titles is not None and target_title is not None:
        newest = {product: index for product, index in newest.items() if titles[index] != target_title}
    draws = zip(newest.values(), unit_intervals([pair_id], newest), strict=True)
    keys = {index: -math.log(drawn) / selection_weight(similarities[index]) for index, drawn in draws}
    return sorted(keys, key=lambda index: (keys[index], clicked[index]))[:k]


def selection_weight(similarity: float) -> float:
    """The weight of a click: its similarity rounded to 1e-3, at least half a step, so that every click has a chance.

    A weight depends on its own click alone; the published shift by the smallest similarity would let one click change
    all others. NaN counts as no similarity.
    """
    if math.isnan(similarity):
        similarity = 0.0
    return max(round(similarity / _SIMILARITY_STEP), 0.5) * _SIMILARITY_STEP


def published_weights(similarities: Sequence[float]) -> np.ndarray:
    """docs/design.md 6.12: shifted by |min| + 1e-6 if any is not positive, divided by their sum."""
    weights = np.asarray(similarities, dtype=np.float64)
    if weights.min() <= 0:
        weights = weights + abs(weights.min()) + _SHIFT
    return weights / weights.sum()


def published_order(
    titles: Sequence[str], similarities: Sequence[float], k: int, target_title: str | None = None, seed: int = 42
) -> list[int]:
    """The published draw, quirks included: both generators seeded anew, fewer than k topped up with repeats, a click that
    carries the target's title replaced where a substitute is left. Raises ValueError when k is more than twice the clicks.
    """
    size = min(len(titles), len(similarities))
    numpy_random, python_random = np.random.RandomState(seed), random.Random(seed)
    if size == 0:
        return []
    weights = published_weights(similarities[:size])
    if size >= k:
        selected = numpy_random.choice(size, k, replace=False, p=weights).tolist()
    else:
        selected = list(range(size)) + numpy_random.choice(size, k - size, replace=False, p=weights).tolist()
    if target_title is not None:
        _replace_leaks(selected, titles[:size], target_title, python_random)
    return selected


def published_draw(titles: Sequence[str], similarities: Sequence[float], k: int, target_title: str | None = None) -> list[int]:
    """`published_order`; where it raises, since k is more than twice the clicks, all clicks in their order, repeated to k."""
    size = min(len(titles), len(similarities))
    if k > 2 * size:
        return filled(range(size), k)
    return published_order(titles, similarities, k, target_title)


def _replace_leaks(selected: list[int], titles: Sequence[str], target_title: str, generator: random.Random) -> None:
    leaks = [slot for slot, index in enumerate(selected) if titles[index] == target_title]
    if len(selected) == len(titles):
        survivors = [index for index in selected if titles[index] != target_title]
        for slot in leaks if survivors else ():
            selected[slot] = generator.choice(survivors)
        return
    unused = [i for i in range(len(titles)) if i not in set(selected) and titles[i] != target_title]
    for slot in leaks:
        if not unused:
            return
        selected[slot] = generator.choice(unused)
        unused.remove(selected[slot])
