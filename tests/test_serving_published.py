"""What the service knows of a published run after it read some of it."""

from collections.abc import Callable

import pytest
from support.runs import CAMPAIGN, make_rows, pair_ids, publish_rows, with_values

from adgen.creatives import compaction
from adgen.creatives.parts import ManifestParts
from adgen.on_ray.serving import published as module
from adgen.on_ray.serving.api import ServiceError
from adgen.on_ray.serving.published import Published

USERS = [f"{number:032x}" for number in range(30)]
ROWS_A_USER = 4


@pytest.fixture
def found(folder_store, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Pairs of a user, of a run whose row groups end amid a user."""
    monkeypatch.setattr(compaction, "_ROWS_PER_GROUP", 50)
    rows = make_rows(folder_store, pair_ids(len(USERS) * ROWS_A_USER))
    products = [f"p{number}" for number in range(len(rows))]
    rows = with_values(rows, user_key=[user for user in USERS for _ in range(ROWS_A_USER)], product_id=products)
    publish_rows(folder_store, rows, rows_per_file=80)
    reader = Published(folder_store, bytes(32), follow_seconds=3600)
    asked = [(row["user_key"], row["product_id"]) for row in rows.to_pylist()]

    def of(user: str, find: str = "find") -> list[str]:
        wanted = sorted(product for key, product in asked if key == user)
        answers = [getattr(reader, find)(CAMPAIGN, product, user, None, None) for product in wanted]
        return [answer and answer[0]["uri"] for answer in answers]

    of.reader, of.rows = reader, rows.to_pylist()
    return of


def test_each_user_is_found_whichever_was_read_before(found):
    for user in (*USERS[::3], *USERS):
        expected = {row["product_id"]: row["uri"] for row in found.rows if row["user_key"] == user}
        assert found(user) == [expected[product] for product in sorted(expected)]


def test_who_stands_beside_one_who_was_read_is_known(found, monkeypatch: pytest.MonkeyPatch):
    found(USERS[4])
    monkeypatch.setattr(ManifestParts, "tables", lambda *_: pytest.fail("the store is read"))
    assert found(USERS[5]) == found(USERS[5], "find_known") != []
    with pytest.raises(ServiceError) as missing:
        found.reader.find_known(CAMPAIGN, "p", USERS[4] + "0", None, None)
    assert missing.value.status == 404


def test_a_reader_keeps_a_bounded_number_of_bytes(found, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 20_000)
    for user in USERS:
        found(user)
        assert sum(group.rows.nbytes for group in found.reader._groups.values()) <= 20_000
