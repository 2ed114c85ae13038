"""Tombstones: that a user was forgotten, and since when. Each stands under the id of the campaign key that made its name.

Planners, plan commits and part commits ask for them anew each time: whoever is between two questions when a tombstone is
written meets it at the next one. Those that version 0.1 wrote stand under no key id.
"""

import hmac
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple

from adgen.creatives import layout
from adgen.creatives.documents import Document, utc_now
from adgen.creatives.storage import Storage, Taken
from adgen.records import canonical_bytes, digest, key_id

_NAME = re.compile(layout.FORGOTTEN + r"(?:([0-9a-f]{8})/)?[0-9a-f]{2}/([0-9a-f]{64})\.(receipt\.|scanned\.)?json")


class Tombstone(Document):
    """That a user was forgotten, and since when; the name of the file is the keyed hash of the user."""

    forgotten_at: datetime


class Receipt(Document):
    """What an erasure removed; written when a scan of the store found nothing of the user."""

    completed_at: datetime
    runs: int
    objects: int


class Mark(NamedTuple):
    """A user as the store names one: the key's id (none: version 0.1 wrote it), and the keyed hash."""

    key_id: str | None
    user_hash: str


@dataclass(frozen=True)
class Tombstones:
    """The tombstones of one campaign key. Pickles, the key included: keep it out of the store."""

    storage: Storage
    key: bytes = field(repr=False)

    def hashes(self) -> frozenset[str]:
        """The `user_hash` of every user who is forgotten now, by listing. Those without a key id are among them: a hash that
        another key made is nobody's under this one."""
        mine = {key_id(self.key), None}
        return frozenset(mark.user_hash for mark in _listed(self.storage, mine) if not mark.kind)

    def among(self, user_ids: Iterable[str]) -> set[str]:
        """Which of the users are forgotten now."""
        hashes = self.hashes()
        return {user for user in user_ids if user is not None and user_hash(self.key, user) in hashes} if hashes else set()


class _Listed(NamedTuple):
    key_id: str | None
    user_hash: str
    kind: str


def user_hash(key: bytes, user_id: str) -> str:
    """The user's name among the tombstones, 64 hex digits; `key` must never rotate."""
    if not key:
        raise ValueError("an empty key would make names that anyone can compute")
    return hmac.new(key, canonical_bytes(["forgotten", user_id]), sha256).hexdigest()


def mark_of(key: bytes, user_id: str) -> Mark:
    """The user under that key."""
    return Mark(key_id(key), user_hash(key, user_id))


def is_forgotten(storage: Storage, key: bytes, user_id: str) -> bool:
    """Whether the user has a tombstone. One request; planners of many users ask `Tombstones` once."""
    return storage.head(layout.tombstone(*mark_of(key, user_id))) is not None


def set_tombstones(storage: Storage, marks: Iterable[Mark]) -> None:
    """Write those that are not there yet."""
    for mark in marks:
        with suppress(Taken):
            storage.create(layout.tombstone(*mark), Tombstone(forgotten_at=utc_now()).to_bytes())


def write_receipts(storage: Storage, marks: Iterable[Mark], receipt: Receipt) -> None:
    """The receipt of each; the next refresh looks once more whether it is true."""
    for mark in marks:
        storage.delete(layout.scanned(*mark))
        storage.put(layout.receipt(*mark), receipt.to_bytes())


def write_scanned(storage: Storage, marks: Iterable[Mark]) -> None:
    """That a later scan found the receipts true."""
    for mark in marks:
        storage.put(layout.scanned(*mark), b"{}")


@dataclass(frozen=True)
class Standing:
    """Tombstones by what is still to be done for them."""

    pending: frozenset[Mark]
    """Without a receipt."""
    unscanned: frozenset[Mark]
    """With a receipt that no later scan confirmed."""

    def of(self, key_ids: Collection[str | None]) -> "Standing":
        """Those under some key ids."""
        return Standing(*(frozenset(mark for mark in some if mark.key_id in key_ids) for some in (self.pending, self.unscanned)))


def standing(storage: Storage) -> Standing:
    """By listing. A user under no key id and again under one, with the same hash, is one user."""
    found: dict[str, set[Mark]] = {"": set(), "receipt.": set(), "scanned.": set()}
    for listed in _listed(storage, None):
        found[listed.kind].add(Mark(listed.key_id, listed.user_hash))
    received = {mark.user_hash for mark in found["receipt."]}
    pending = frozenset(mark for mark in found[""] if mark.user_hash not in received)
    return Standing(pending, frozenset(found["receipt."] - found["scanned."]))


def hashes_digest(hashes: Collection[str]) -> str:
    """What tells one set of tombstones from another."""
    return digest("tombstones", *sorted(hashes))


def _listed(storage: Storage, key_ids: set[str | None] | None) -> Iterator[_Listed]:
    """Every name of ours; other people's are not seen. key_ids: only those; None is version 0.1's."""
    for folder in storage.children(layout.FORGOTTEN):
        if key_ids is not None and (folder if len(folder) == 8 else None) not in key_ids:
            continue
        for entry in storage.entries(f"{layout.FORGOTTEN}{folder}/"):
            if match := _NAME.fullmatch(entry.key):
                yield _Listed(match.group(1), match.group(2), match.group(3) or "")
