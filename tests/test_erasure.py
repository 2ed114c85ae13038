"""Forgetting a user: nothing of them is left, everything of the others is, at any crash."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.runs import (
    CAMPAIGN,
    Crash,
    CrashingStorage,
    begin,
    commit_parts,
    commit_plan,
    do_shards,
    make_lineage,
    make_rows,
    pair_ids,
    planned_pairs,
    refresh,
    write_plan,
)

from adgen.creatives import layout
from adgen.creatives.cleanup import clean_up, mark_for_removal, remove_run
from adgen.creatives.erasure import find_users, finish_erasures, forget, keys_not_given, pending_elsewhere
from adgen.creatives.folder import FolderStorage
from adgen.creatives.journal import Journal, from_parquet, to_parquet
from adgen.creatives.publish import finish, read_pointer
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs
from adgen.creatives.storage import Storage
from adgen.creatives.tombstones import Tombstones, is_forgotten, mark_of, set_tombstones, user_hash
from adgen.creatives.verify import verify
from adgen.errors import OwnedElsewhere, StoreError
from adgen.records import key_id

pytestmark = pytest.mark.slow

KEY = b"a key that never rotates"
PAIRS = pair_ids(12)
USER = f"user-{PAIRS[0][0]}"  # small_runs: the first digit of a pair is its user
OTHERS = sorted(pair for pair in PAIRS if f"user-{pair[0]}" != USER)


def tombstones_of(store: Storage) -> Tombstones:
    return Tombstones(store, KEY)


def sweep(store: Storage) -> None:
    """Clean-ups of later days: pictures that no run names any more are theirs to remove, by age."""
    for days in (10, 20):
        clean_up(store, CAMPAIGN, keep_runs=2, now=time.time() + days * 86_400.0)


def receipts(store: Storage) -> list[str]:
    return [entry.key for entry in store.entries("private/forgotten/") if entry.key.endswith(".receipt.json")]


def forget_user(store: Storage):
    return forget(store, KEY, [USER], patience_seconds=0.0)


def assert_forgotten(store: Storage) -> None:
    published = open_published(store, CAMPAIGN)
    assert sorted(row["pair_id"] for row in published.rows()) == OTHERS
    assert verify(store, CAMPAIGN).problems == []
    assert (find_users(store, [USER]).pairs, find_users(store, [USER]).files) == ({}, [])
    theirs = [pair.encode() for pair in PAIRS if pair not in OTHERS]
    for entry in store.entries(""):
        data = store.read(entry.key)
        assert not any(pair in data for pair in theirs), entry.key
        assert f'"{USER}"'.encode() not in data, entry.key
    for run in list_runs(store, CAMPAIGN):
        journal = Journal(store, CAMPAIGN, run.run_id)
        for part in journal.read_plan().parts:
            assert USER not in journal.read_lineage(part.index)["user_id"].to_pylist()
            assert set(journal.read_part(part.index)["pair_id"].to_pylist()) <= set(OTHERS)


def test_a_forgotten_user_is_gone_from_every_run_and_object(store: Storage):
    refresh(store, PAIRS, "old")
    refresh(store, PAIRS, "new")
    num_objects = len(list(store.entries("objects/")))
    receipt = forget_user(store)
    assert_forgotten(store)
    assert receipt.runs == 2
    assert receipt.objects >= 1
    assert len(list(store.entries("objects/"))) == num_objects - receipt.objects
    assert read_pointer(store, CAMPAIGN)[0].generation == 3
    assert is_forgotten(store, KEY, USER)
    assert not is_forgotten(store, KEY, "user-x")
    assert Tombstones(store, KEY).hashes() == {user_hash(KEY, USER)}


def test_pictures_that_an_evaluation_kept_are_forgotten_too(store: Storage):
    refresh(store, PAIRS)
    for pair in PAIRS:
        store.put(layout.unpasted_picture(CAMPAIGN, pair, "0" * 64), b"painted")
    forget_user(store)
    assert_forgotten(store)
    kept = {entry.key for entry in store.entries("private/campaigns/") if "/unpasted/" in entry.key}
    assert kept == {layout.unpasted_picture(CAMPAIGN, pair, "0" * 64) for pair in OTHERS}


def test_forgetting_twice_or_nobody_publishes_nothing_new(folder_store: Storage):
    refresh(folder_store, PAIRS)
    forget_user(folder_store)
    again = forget_user(folder_store)
    assert (again.runs, again.objects) == (0, 0)
    assert forget(folder_store, KEY, ["user-x"]).runs == 0
    assert read_pointer(folder_store, CAMPAIGN)[0].generation == 2
    assert_forgotten(folder_store)


def test_an_object_that_another_row_names_stays(folder_store: Storage):
    """Two campaigns may show one picture; here the same rows are in both, and the user is another person's in one."""
    refresh(folder_store, PAIRS)
    shared = next(row["uri"] for row in open_published(folder_store, CAMPAIGN).rows() if row["pair_id"] == PAIRS[0])
    assert folder_store.head(shared)
    run = begin(folder_store)
    journal = commit_plan(run, PAIRS, whose="somebody-else-")
    part = journal.unfinished()[0]
    rows = Journal(folder_store, CAMPAIGN, list_runs(folder_store, CAMPAIGN)[1].run_id).read_part(0)
    journal.commit_part(part, rows.replace_schema_metadata(None))
    run.release()
    forget_user(folder_store)
    assert folder_store.head(shared)


def test_beside_a_running_refresh_the_user_is_unpublished_at_once_and_the_receipt_waits(store: Storage):
    refresh(store, PAIRS)
    run = begin(store, "next")
    journal = commit_plan(run, PAIRS, key=KEY)
    do_shards(journal, "new", but_last=True)
    with run.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere, match=run.owner):
        forget(store, KEY, [USER], patience_seconds=5.0)
    assert is_forgotten(store, KEY, USER)
    assert not receipts(store)
    published = open_published(store, CAMPAIGN)
    assert (published.pointer.generation, sorted(row["pair_id"] for row in published.rows())) == (2, OTHERS)
    do_shards(journal, "new")
    finish(run, tombstones=tombstones_of(store))
    published = open_published(store, CAMPAIGN)
    assert (published.run.run_id, published.pointer.generation) == (run.run_id, 3)
    assert sorted(row["pair_id"] for row in published.rows()) == OTHERS
    assert finish_erasures(store, KEY, patience_seconds=0.0).runs >= 1
    assert receipts(store)
    assert_forgotten(store)


# -- a receipt was given, and the user was published afterwards: four interleavings ------------------------------------


def test_a_planner_that_runs_while_a_user_is_forgotten_leaves_them_out(store: Storage):
    """They are new tonight: no published run holds them."""
    refresh(store, OTHERS)
    run = begin(store, "next")
    journal = Journal(store, CAMPAIGN, run.run_id, tombstones_of(store))
    parts = write_plan(journal, PAIRS)
    with run.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere, match=run.owner):
        forget(store, KEY, [USER], patience_seconds=5.0)
    assert not receipts(store)
    commit_parts(journal, parts)
    do_shards(journal)
    finish(run, tombstones=tombstones_of(store))
    assert finish_erasures(store, KEY, patience_seconds=0.0).runs == 0
    assert_forgotten(store)


def test_a_part_that_holds_only_forgotten_users_is_not_left_empty(folder_store: Storage):
    run = begin(folder_store, "next")
    journal = Journal(folder_store, CAMPAIGN, run.run_id, tombstones_of(folder_store))
    theirs = [pair for pair in PAIRS if pair not in OTHERS]
    parts = write_plan(journal, theirs + OTHERS, len(theirs))
    forget_user_beside(folder_store, run)
    commit_parts(journal, parts)
    assert [(part.index, part.rows > 0) for part in journal.read_plan().parts] == [(i, True) for i in range(len(parts) - 1)]
    do_shards(journal)
    finish(run, tombstones=tombstones_of(folder_store))
    assert_forgotten(folder_store)


def forget_user_beside(store: Storage, run) -> None:
    with run.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere):
        forget(store, KEY, [USER], patience_seconds=5.0)


@pytest.mark.parametrize("reads_tombstones", [True, False], ids=["before the last question", "after it"])
def test_a_planner_thought_dead_that_goes_on_publishes_nobody(store: Storage, reads_tombstones: bool):
    refresh(store, OTHERS)
    run = begin(store, "next")
    journal = Journal(store, CAMPAIGN, run.run_id, tombstones_of(store) if reads_tombstones else None)
    parts = write_plan(journal, PAIRS)
    forget_user(store)
    assert receipts(store)
    assert run.run_id not in {found.run_id for found in list_runs(store, CAMPAIGN)}
    with suppress(StoreError):
        commit_parts(journal, parts)
    with pytest.raises(StoreError):
        journal.read_plan_part(parts[0])
    with pytest.raises(OwnedElsewhere):
        run.update(note="still here")
    assert_forgotten(store)


@pytest.mark.parametrize("reads_tombstones", [True, False], ids=["before the last question", "after it"])
def test_a_worker_that_still_generates_publishes_nobody(store: Storage, reads_tombstones: bool):
    """Its driver was killed. What it writes after its last question about tombstones, the next refresh finds."""
    refresh(store, OTHERS)
    journal = commit_plan(begin(store, "next"), PAIRS, key=KEY if reads_tombstones else None)
    do_shards(journal, "new", but_last=True)
    last = journal.unfinished()[0]
    journal.read_plan_part(last)
    forget_user(store)
    assert receipts(store)
    pairs = journal.read_plan_part(last)["pair_id"].to_pylist()
    assert journal.commit_part(last, make_rows(store, pairs, "late"), make_lineage(pairs))
    resumed = begin(store, "next")
    assert resumed.resumed
    goes_on = Journal(store, CAMPAIGN, resumed.run_id, tombstones_of(store))
    assert len(goes_on.unfinished()) == 1
    do_shards(goes_on, "new")
    finish(resumed, tombstones=tombstones_of(store))
    assert sorted(row["pair_id"] for row in open_published(store, CAMPAIGN).rows()) == OTHERS
    finish_erasures(store, KEY, patience_seconds=0.0)
    assert_forgotten(store)
    assert finish_erasures(store, KEY) is None or not reads_tombstones


def test_after_a_clean_up_that_was_killed_anywhere_nothing_of_the_user_is_left(store: Storage):
    for night in range(3):
        refresh(store, PAIRS, f"look {night}")
    at, step = 0, 5
    while at < 60:  # each goes a little further than the one before
        with suppress(Crash):
            clean_up(CrashingStorage(store, at), CAMPAIGN, keep_runs=2)
        at += step
    forget_user(store)
    sweep(store)
    assert_forgotten(store)


def test_what_was_written_after_its_run_was_removed_is_found(folder_store: Storage):
    first = refresh(folder_store, PAIRS, "old")
    journal = Journal(folder_store, CAMPAIGN, first.run_id)
    part = journal.read_plan().parts[0]
    kept = journal.read_plan_part(part)
    refresh(folder_store, PAIRS, "new")
    mark_for_removal(folder_store, list_runs(folder_store, CAMPAIGN)[1])
    remove_run(folder_store, list_runs(folder_store, CAMPAIGN)[1])
    journal.write_plan_part(0, kept)
    forget_user(folder_store)
    sweep(folder_store)
    assert_forgotten(folder_store)


# -- keys ----------------------------------------------------------------------------------------------------------------


def test_a_pending_erasure_of_another_key_is_named_and_gets_no_receipt(store: Storage):
    refresh(store, PAIRS)
    other = b"the key of another shop"
    set_tombstones(store, [mark_of(other, "user-of-another-shop")])
    assert finish_erasures(store, KEY) is None
    assert pending_elsewhere(store, KEY) == {key_id(other): 1}
    assert not receipts(store)
    assert Tombstones(store, KEY).hashes() == frozenset()
    assert Tombstones(store, other).among(["user-of-another-shop", USER]) == {"user-of-another-shop"}


def test_campaigns_whose_key_is_not_given_are_named(folder_store: Storage):
    finish(_planned_with(folder_store, b"the key of another shop"))
    assert keys_not_given(folder_store, [KEY]) == {CAMPAIGN: key_id(b"the key of another shop")}
    assert keys_not_given(folder_store, [KEY, b"the key of another shop"]) == {}


def _planned_with(store: Storage, key: bytes):
    run = begin(store, key_ids={"campaign_key": key_id(key)})
    do_shards(commit_plan(run, PAIRS))
    return run


def test_tombstones_of_version_0_1_hold_and_are_finished(folder_store: Storage):
    """They stand under no key id."""
    refresh(folder_store, PAIRS)
    name = user_hash(KEY, USER)
    folder_store.create(f"private/forgotten/{name[:2]}/{name}.json", b'{"forgotten_at": "2026-01-01T00:00:00Z"}')
    assert Tombstones(folder_store, KEY).among([USER, "user-x"]) == {USER}
    assert finish_erasures(folder_store, KEY, patience_seconds=0.0).runs == 1
    assert_forgotten(folder_store)
    assert finish_erasures(folder_store, KEY, patience_seconds=0.0) is None  # the second look
    assert finish_erasures(folder_store, KEY) is None


def test_files_of_other_people_among_the_tombstones_are_not_seen(folder_store: Storage):
    refresh(folder_store, PAIRS)
    forget_user(folder_store)
    for name in (".DS_Store", "note.json", "ab/Thumbs.db", f"{key_id(KEY)}/@eaDir/x.json"):
        path = folder_store.root / "private/forgotten" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"theirs")
    assert Tombstones(folder_store, KEY).hashes() == {user_hash(KEY, USER)}
    assert finish_erasures(folder_store, KEY) is None
    assert pending_elsewhere(folder_store, KEY) == {}


def test_private_tables_of_no_run_lose_the_user(folder_store: Storage):
    refresh(folder_store, PAIRS)
    key = f"private/campaigns/{CAMPAIGN}/served/00000000.parquet"
    folder_store.put(key, to_parquet(planned_pairs(PAIRS)))
    forget_user(folder_store)
    assert sorted(from_parquet(folder_store.read(key))["pair_id"].to_pylist()) == OTHERS
    assert_forgotten(folder_store)


def test_a_plan_that_was_never_committed_is_forgotten_too(folder_store: Storage):
    refresh(folder_store, PAIRS)
    left = begin(folder_store, "next")
    Journal(folder_store, CAMPAIGN, left.run_id).write_plan_part(0, planned_pairs(PAIRS))
    forget_user(folder_store)
    assert left.run_id not in {run.run_id for run in list_runs(folder_store, CAMPAIGN)}
    assert_forgotten(folder_store)


def test_an_erasure_that_dies_anywhere_is_finished_by_the_next(tmp_path: Path):
    before, at = FolderStorage(tmp_path / "before"), 0
    refresh(before, PAIRS, "old")
    refresh(before, PAIRS, "new")
    do_shards(commit_plan(begin(before, "interrupted"), PAIRS), "half done")
    while True:
        store = FolderStorage(tmp_path / str(at))
        shutil.copytree(before.root, store.root)
        try:
            forget(CrashingStorage(store, at), KEY, [USER], patience_seconds=0.0)
            break
        except Crash:
            rows = {row["pair_id"] for row in open_published(store, CAMPAIGN).rows()}
            assert rows in (set(OTHERS), set(PAIRS))
            if at % 2:  # by whoever asks for it again, or by the next refresh, which does not know the user
                finish_erasures(store, KEY, patience_seconds=0.0)
            if not at % 2 or not is_forgotten(store, KEY, USER):
                forget_user(store)
        assert_forgotten(store)
        at += 13  # every part of it is met; each single act would take a minute
    assert at > 100


def test_an_erasure_that_a_running_refresh_kept_back_is_finished_later(store: Storage):
    refresh(store, PAIRS)
    assert finish_erasures(store, KEY) is None
    run = begin(store, "next")
    with run.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere):
        forget(store, KEY, [USER, "user-who-was-never-here"], patience_seconds=5.0)
    run.release()
    assert finish_erasures(store, KEY, patience_seconds=0.0).runs == 1  # the published one went at once
    assert_forgotten(store)
    assert finish_erasures(store, KEY) is None


def test_tombstones_name_nobody(folder_store: Storage):
    refresh(folder_store, PAIRS)
    forget_user(folder_store)
    for entry in folder_store.entries("private/forgotten/"):
        assert USER not in entry.key
        assert USER.encode() not in folder_store.read(entry.key)
    with pytest.raises(ValueError, match="empty key"):
        user_hash(b"", USER)
