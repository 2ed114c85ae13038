"""How like a creative's background is to the reference's, to those that its user clicked and to those that another clicked, as
each background network sees it: PBS, and a DINOv2 outside the product as a second opinion that nobody trained for it."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from adgen.errors import PairError
from adgen.evaluation.pictures.pbs_features import pbs_features
from adgen.evaluation.scoring.facts import CreativeFacts, Shown
from adgen.evaluation.scoring.other_users import OtherUser, seats_of_others
from adgen.evaluation.scoring.shop_pictures import Features, Seen, ShopPicture, ShopPictures, background_of
from adgen.model.pbs import pbs


class BackgroundScorer:
    """Scores backgrounds, with as many networks as there are."""

    def __init__(self, shop: ShopPictures, other_users: Sequence[OtherUser]):
        """other_users: the run's panel; clicks are ShopPictures."""
        self.shop, self.networks, self.other_users = shop, shop.networks, other_users
        self._seat = cache(self._features_of_seat)

    def score(self, shown: Sequence[Shown]) -> None:
        """Adds scores, features and problems."""
        if not shown:
            return
        pbs = pbs_features(self.networks.pbs, [each.picture for each in shown]) if self.networks.pbs else [None] * len(shown)
        for each, mine, background in zip(shown, pbs, self._backgrounds(shown), strict=True):
            features = background | ({} if mine is None else {"pbs": mine})
            each.facts.features |= background
            other_user = self._other_user(each.facts) if features and each.history else []
            for network, feature in features.items():
                _compare(network, feature, each, other_user)

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
        known = [each for each in shown if each.product is not None] if self.networks.patches else []
        found = background_of(self.networks, [each.picture for each in known], [each.product for each in known]) if known else []
        by_row = {id(each): features for each, features in zip(known, found, strict=True)}
        for each, features in zip(known, found, strict=True):
            if not features:
                each.facts.lacks("no_background")
        return [by_row.get(id(each), {}) for each in shown]

    def _features_of_seat(self, seat: int) -> list[Features]:
        return [seen.features for seen in self.seen(self.other_users[seat].clicked)]  # kept for good, so without pixels

    def _other_user(self, facts: CreativeFacts) -> list[Features]:
        seats = seats_of_others(facts.pair_id, facts.user_key, self.other_users)
        found = next((seen for seat in seats if (seen := self._seat(seat))), [])
        if not found:
            facts.lacks("no_other_user")
        return found


def _compare(network: str, feature: Tensor, each: Shown, other_user: Sequence[Features]) -> None:
    facts = each.facts
    references = [each.reference.features] if each.reference is not None else []
    history = [seen.features for seen in each.history]
    near, own, other = (_mean_cosine(network, feature, others) for others in (references, history, other_user))
    # A picture whose product cannot be separated from its background has no feature of the background alone.
    for others, what in ((references, "unmasked_reference_picture"), (history, "unmasked_history_pictures")):
        if any(network not in features for features in others):
            facts.lacks(what)
    if near is not None:
        facts.scores[f"{network}_reference"] = near
    if own is not None:
        facts.scores[f"{network}_history"] = own
    if own is not None and other is not None:
        facts.scores |= {f"{network}_other_user_history": other, f"{network}_history_margin": own - other}


def _mean_cosine(network: str, feature: Tensor, others: Sequence[Features]) -> float | None:
    """Over those that have one; None where none has."""
    theirs = [each[network] for each in others if network in each]
    return float(pbs(feature[None], torch.stack(theirs)).mean()) if theirs else None
