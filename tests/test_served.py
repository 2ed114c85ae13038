"""Creatives made on demand, in the store: committed once, counted by clean-up, found by erasure."""

import time

from support.shops import CAMPAIGN, small_shop, vars_of

from adgen.creatives import layout
from adgen.creatives.cleanup import clean_up
from adgen.creatives.erasure import find_users, forget
from adgen.creatives.served import commit_served, read_served, remember_request, served_hashes

KEY = b"the campaign key"
DAY = 24 * 3600.0


def row_of(storage, user: str, number: int = 0) -> dict:
    """A served row whose picture and rendition are in the store."""
    fingerprint = f"{number:032x}"
    identity = {"pair_id": f"{number:032x}", "variant": 0, "user_id": user, "user_key": "k" + user, "product_id": "p", "seed": 1}
    base = {
        "schema_version": 1,
        "status": "ok",
        "stale": False,
        "fingerprint": fingerprint,
        "title": "a mug",
        "gates": [],
        "scores": [],
    }
    return base | identity | vars_of(storage, base)


def test_the_first_commit_of_a_fingerprint_stands(store):
    row = row_of(store, "u1")
    assert read_served(store, CAMPAIGN, row["fingerprint"]) is None
    assert commit_served(store, CAMPAIGN, row)["title"] == "a mug"
    assert commit_served(store, CAMPAIGN, row | {"title": "another"})["title"] == "a mug"
    found = read_served(store, CAMPAIGN, row["fingerprint"])
    assert (found["user_id"], found["uri"], len(found["renditions"])) == ("u1", row["uri"], 1)


def test_clean_up_counts_what_was_served_as_named_until_its_days_are_over(folder_store):
    row = row_of(folder_store, "u1")
    commit_served(folder_store, CAMPAIGN, row, keep_days=40)
    now = time.time()
    for day in (10, 20, 39):
        clean_up(folder_store, CAMPAIGN, now=now + day * DAY)
    assert folder_store.head(row["uri"])
    for day in (41, 50, 60):  # the file goes, then the objects in the second clean-up that finds them
        clean_up(folder_store, CAMPAIGN, now=now + day * DAY)
    assert read_served(folder_store, CAMPAIGN, row["fingerprint"]) is None
    assert folder_store.head(row["uri"]) is None


def test_forget_removes_what_was_served_to_a_user_with_its_objects(folder_store, tmp_path):
    small_shop(tmp_path / "shop").night(folder_store)
    theirs, others = row_of(folder_store, "u1", 1), row_of(folder_store, "u2", 2)
    shared = row_of(folder_store, "u1", 3) | {name: others[name] for name in ("uri", "sha256", "bytes", "renditions")}
    for row in (theirs, others, shared):
        commit_served(folder_store, CAMPAIGN, row)
    receipt = forget(folder_store, KEY, ["u1"], patience_seconds=0)
    assert receipt.objects == 2  # picture and rendition of theirs alone
    assert not find_users(folder_store, ["u1"]).files
    assert [folder_store.head(row["uri"]) is not None for row in (theirs, others)] == [False, True]
    assert read_served(folder_store, CAMPAIGN, theirs["fingerprint"]) is None
    assert read_served(folder_store, CAMPAIGN, others["fingerprint"])["user_id"] == "u2"
    assert others["sha256"] in set(served_hashes(folder_store))


def test_a_clients_key_stands_for_one_request(store):
    assert remember_request(store, CAMPAIGN, "a" * 32, "one")
    assert remember_request(store, CAMPAIGN, "a" * 32, "one")
    assert not remember_request(store, CAMPAIGN, "a" * 32, "two")
    assert layout.served(CAMPAIGN, "key-" + "a" * 32).endswith("/served/key-" + "a" * 32 + ".parquet")
