"""Published creatives by user and product, following each campaign's pointer. Reads key ranges and row groups, and holds little."""

import bisect
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from adgen.creatives.campaign import Campaign
from adgen.creatives.reading import PublishedRun, read_published
from adgen.creatives.secrets import user_key_of
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError, StoreError
from adgen.on_ray.rows import Row
from adgen.on_ray.serving.api import CreativeAnswer, not_found
from adgen.records import MANIFEST, OK

_COLUMNS = [name for name in MANIFEST.names if name in {*CreativeAnswer.model_fields, "rank", "uri"}]
_MOST_USERS = 4096
_MOST_CAMPAIGNS = 256
_MOST_BYTES = 2**26
"""Of row groups that were read; a group has some thousand rows, so who comes next is often in one of them."""


@dataclass(frozen=True)
class _Neighbours:
    """Rows of neighbouring users, ordered by user_key. The first user may have further rows before them, the last one after."""

    rows: pa.Table

    @cached_property
    def _ends(self) -> tuple[str, str]:
        keys = self.rows["user_key"]
        return keys[0].as_py(), keys[-1].as_py()

    def knows_all_of(self, user_key: str) -> bool:
        """Whether all of a user's rows are here, though they may be none."""
        first, last = self._ends
        return first < user_key < last

    def of(self, user_key: str) -> list[Row]:
        """The user's rows here."""
        keys = self.rows["user_key"]
        first = bisect.bisect_left(range(len(keys)), user_key, key=lambda place: keys[place].as_py())
        last = bisect.bisect_right(range(len(keys)), user_key, lo=first, key=lambda place: keys[place].as_py())
        return self.rows.select(_COLUMNS).slice(first, last - first).to_pylist()


class Published:
    """Reader of a store's campaigns. Threads may share it."""

    def __init__(self, storage: Storage, secret: bytes, follow_seconds: float):
        self._storage, self._secret, self._follow = storage, secret, follow_seconds
        self._runs: OrderedDict[str, tuple[PublishedRun, float]] = OrderedDict()
        self._users: OrderedDict[tuple[str, str, str], list[Row]] = OrderedDict()
        self._groups: OrderedDict[tuple[str, str, str], _Neighbours] = OrderedDict()
        self._lock = threading.Lock()

    def find(
        self, campaign: str, product_id: str, user_key: str | None, user_id: str | None, variant: int | None
    ) -> tuple[Row, str]:
        """The ok row of the best rank, or of that variant, and the run that published it. ServiceError: there is none."""
        run = self._run(campaign)
        return _best(self._of_user(campaign, run, self._key(run, user_key, user_id)), product_id, variant), run.run.run_id

    def find_known(
        self, campaign: str, product_id: str, user_key: str | None, user_id: str | None, variant: int | None
    ) -> tuple[Row, str] | None:
        """The same of a user who was asked for before, or None: the store must be read, which `find` does."""
        with self._lock:
            run, looked = self._runs.get(campaign, (None, 0.0))
            if run is None or time.monotonic() - looked >= self._follow:
                return None
            rows = self._known(campaign, run, self._key(run, user_key, user_id))
        return None if rows is None else (_best(rows, product_id, variant), run.run.run_id)

    def _known(self, campaign: str, run: PublishedRun, key: str) -> list[Row] | None:
        """A user's rows, where nothing need be read for them."""
        if (rows := self._users.get(name := (campaign, run.run.run_id, key))) is not None:
            self._users.move_to_end(name)
            return rows
        for name, group in self._groups.items():
            if name[:2] == (campaign, run.run.run_id) and group.knows_all_of(key):
                self._groups.move_to_end(name)
                return group.of(key)
        return None

    def _key(self, run: PublishedRun, user_key: str | None, user_id: str | None) -> str:
        try:
            return user_key or user_key_of(run.run, self._secret, user_id)
        except ConsumerError:  # made with another secret: we know nobody of it
            raise not_found() from None

    def _of_user(self, campaign: str, run: PublishedRun, key: str) -> list[Row]:
        with self._lock:
            if (rows := self._known(campaign, run, key)) is not None:
                return rows
        group = _Neighbours(run.around(key, ["user_key", *_COLUMNS]))
        rows = group.of(key)
        with self._lock:
            self._users[campaign, run.run.run_id, key] = rows
            while len(self._users) > _MOST_USERS:
                self._users.popitem(last=False)
            if len(group.rows):
                self._groups[campaign, run.run.run_id, key] = group
            while sum(each.rows.nbytes for each in self._groups.values()) > _MOST_BYTES:
                self._groups.popitem(last=False)
        return rows

    def _run(self, campaign: str) -> PublishedRun:
        """What is published, as of some seconds ago. Where the store is away, what was published last goes on."""
        with self._lock:
            run, looked = self._runs.get(campaign, (None, 0.0))
        now = time.monotonic()
        if run is not None and now - looked < self._follow:
            return run
        try:
            if run is None or read_published(self._storage, campaign) != run.pointer:
                run = Campaign(self._storage, campaign).published()
        except StoreError:
            if run is None:
                raise
        except ConsumerError:
            raise not_found() from None
        with self._lock:
            self._runs[campaign] = run, now
            while len(self._runs) > _MOST_CAMPAIGNS:
                self._runs.popitem(last=False)
        return run


def _best(rows: list[Row], product_id: str, variant: int | None) -> Row:
    good = [row for row in rows if row["product_id"] == product_id and row["status"] == OK and variant in (None, row["variant"])]
    if not good:
        raise not_found()
    return min(good, key=lambda row: (row["rank"] or 0, row["variant"]))
