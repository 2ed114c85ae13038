"""How like a creative's background is to the reference's, to those that its user clicked and to those that another clicked, as
each judge of backgrounds sees it: PBS, and a DINOv2 outside the product as a second opinion that nobody trained for it."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from adgen.errors import PairError
from adgen.evaluation.pictures.pbs import pbs_features
from adgen.evaluation.scoring.facts import CreativeFacts, Shown
from adgen.evaluation.scoring.other_users import Stranger, strangers_of
from adgen.evaluation.scoring.shop_pictures import Features, Seen, ShopPicture, ShopPictures, background_of

JUDGES = ("pbs", "background")
_NAMES = ("reference", "history", "stranger_history", "history_margin")
BACKGROUND_SCORES = tuple(f"{judge}_{name}" for judge in JUDGES for name in _NAMES)
"""Cosine of the picture's background to the reference's, its mean to the pictures that the user clicked, its mean to those that
another user clicked, and how much nearer the own ones are."""


class BackgroundScorer:
    """Scores backgrounds, with as many judges as there are."""

    def __init__(self, shop: ShopPictures, strangers: Sequence[Stranger]):
        """strangers: the run's panel; clicks are ShopPictures."""
        self.shop, self.judges, self.strangers = shop, shop.judges, strangers
        self._seat = cache(self._features_of_seat)

    def score(self, shown: Sequence[Shown]) -> None:
        """Adds scores, features and problems."""
        if not shown:
            return
        pbs = pbs_features(self.judges.pbs, [each.picture for each in shown]) if self.judges.pbs else [None] * len(shown)
        for each, mine, background in zip(shown, pbs, self._backgrounds(shown), strict=True):
            features = background | ({} if mine is None else {"pbs": mine})
            each.facts.features |= background
            stranger = self._stranger(each.facts) if features and each.history else []
            for judge, feature in features.items():
                _compare(judge, feature, each, stranger)

    def seen(self, pictures: Sequence[ShopPicture]) -> list[Seen]:
        """Those that can be read."""
        self.shop.look_at(pictures)
        found = []
        for picture in pictures:
            try:
                found.append(self.shop.seen(picture))
            except PairError:
                continue
        return found

    def _backgrounds(self, shown: Sequence[Shown]) -> list[Features]:
        known = [each for each in shown if each.product is not None] if self.judges.patches else []
        found = background_of(self.judges, [each.picture for each in known], [each.product for each in known]) if known else []
        by_row = {id(each): features for each, features in zip(known, found, strict=True)}
        for each, features in zip(known, found, strict=True):
            if not features:
                each.facts.lacks("no_background")
        return [by_row.get(id(each), {}) for each in shown]

    def _features_of_seat(self, seat: int) -> list[Features]:
        return [seen.features for seen in self.seen(self.strangers[seat].clicked)]  # kept for good, so without pixels

    def _stranger(self, facts: CreativeFacts) -> list[Features]:
        seats = strangers_of(facts.pair_id, facts.user_key, self.strangers)
        found = next((seen for seat in seats if (seen := self._seat(seat))), [])
        if not found:
            facts.lacks("no_stranger")
        return found


def _compare(judge: str, feature: Tensor, each: Shown, stranger: Sequence[Features]) -> None:
    facts = each.facts
    references = [each.reference.features] if each.reference is not None else []
    history = [seen.features for seen in each.history]
    near, own, other = (_mean_cosine(judge, feature, others) for others in (references, history, stranger))
    # A picture whose product cannot be told from its background has no feature of the background alone.
    for others, what in ((references, "unmasked_reference_picture"), (history, "unmasked_history_pictures")):
        if any(judge not in features for features in others):
            facts.lacks(what)
    if near is not None:
        facts.scores[f"{judge}_reference"] = near
    if own is not None:
        facts.scores[f"{judge}_history"] = own
    if own is not None and other is not None:
        facts.scores |= {f"{judge}_stranger_history": other, f"{judge}_history_margin": own - other}


def _mean_cosine(judge: str, feature: Tensor, others: Sequence[Features]) -> float | None:
    """Over those that have one; None where none has."""
    theirs = [each[judge] for each in others if judge in each]
    return float(F.cosine_similarity(feature[None], torch.stack(theirs)).mean()) if theirs else None
