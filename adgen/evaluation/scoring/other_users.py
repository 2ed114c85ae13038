"""Whose clicks a creative is held against to see whether it follows its own user: a fixed panel of the run's users.

A creative's other user is a function of its pair and the panel alone. Were it the next row of a batch, the same creative would
get another score with every other way of cutting rows into batches, and in every sample.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from adgen.records import digest, unit_interval

PANEL = 256  # users whose clicks are kept and encoded once by every worker: enough that no one of them decides a mean


class OtherUser(NamedTuple):
    """A seat of the panel."""

    user_key: str
    clicked: tuple[str | None, ...]
    """Products, or URIs of their pictures; empty where nothing is known to be clicked."""


def panel_digest(panel: Sequence[OtherUser]) -> str:
    """Of the clicks that a panel was asked for: scores that compare with other users can be compared where it is the same."""
    return digest(*("\0".join(click or "" for click in seat.clicked) for seat in panel))


def seats_of_others(pair_id: str, user_key: str, panel: Sequence[OtherUser]) -> Iterator[int]:
    """Seats of others who clicked something, from the one that the pair's id draws onwards: the first that can be seen is the
    pair's other user."""
    start = int(unit_interval("stranger", pair_id) * len(panel))
    for turn in range(len(panel)):
        seat = (start + turn) % len(panel)
        if panel[seat].clicked and panel[seat].user_key != user_key:
            yield seat
