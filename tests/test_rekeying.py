"""Manifests of version 0.1 told what users clicked: the first refresh writes them again, killed anywhere."""

import shutil
from pathlib import Path

import pytest
from support.runs import CAMPAIGN, Crash, CrashingStorage, begin, commit_plan, do_shards, pair_ids, refresh

from adgen.creatives import layout
from adgen.creatives.erasure import forget
from adgen.creatives.folder import FolderStorage
from adgen.creatives.publish import finish, rollback
from adgen.creatives.reading import open_published, open_run
from adgen.creatives.rekeying import rewrite_old_manifests
from adgen.creatives.runs import list_runs, read_run
from adgen.creatives.storage import Storage
from adgen.creatives.tombstones import Tombstones
from adgen.creatives.verify import verify
from adgen.records import bound_key, key_id, public_fingerprint, public_resume_key

KEY = b"a campaign key, long enough"
PAIRS = pair_ids(12)


def lengths(store: Storage, run_id: str) -> set[int]:
    return {len(row["fingerprint"]) for row in open_run(store, CAMPAIGN, run_id).rows()}


def night(store: Storage, look: str):
    """A refresh of this version."""
    run = begin(store, key_ids={"campaign_key": key_id(KEY)})
    do_shards(commit_plan(run, PAIRS, key=KEY), look)
    finish(run, tombstones=Tombstones(store, KEY))
    return run


def test_a_run_that_is_sealed_with_the_key_publishes_keyed_fingerprints_whatever_was_planned(store: Storage):
    run = night(store, "new")
    assert lengths(store, run.run_id) == {32}
    assert read_run(store, CAMPAIGN, run.run_id).keyed_fingerprints


@pytest.mark.slow
def test_earlier_runs_are_written_again_and_can_still_be_published(store: Storage):
    plain_key = "e" * 64
    old = refresh(store, PAIRS, "old", resume_key=plain_key)
    before = {row["pair_id"]: row for row in open_run(store, CAMPAIGN, old.run_id).rows()}
    pair = PAIRS[0]
    store.put(layout.unpasted_picture(CAMPAIGN, pair, before[pair]["fingerprint"]), b"painted")
    assert rewrite_old_manifests(store, CAMPAIGN, KEY) == 0  # it is published: readers may hold its file list
    night(store, "new")
    assert rewrite_old_manifests(store, CAMPAIGN, KEY) == 1
    after = {row["pair_id"]: row for row in open_run(store, CAMPAIGN, old.run_id).rows()}
    for name, row in before.items():
        new = public_fingerprint(bound_key(KEY, CAMPAIGN), row["fingerprint"])
        assert after[name] == row | {"fingerprint": new}
    assert store.get(layout.unpasted_picture(CAMPAIGN, pair, after[pair]["fingerprint"])).data == b"painted"
    plain = [row["fingerprint"].encode() for row in before.values()]
    assert not any(value in store.read(entry.key) for entry in store.entries(layout.CAMPAIGNS) for value in plain)
    assert read_run(store, CAMPAIGN, old.run_id).resume_key == public_resume_key(bound_key(KEY, CAMPAIGN), plain_key)
    assert verify(store, CAMPAIGN, old.run_id).problems == []
    rollback(store, CAMPAIGN, old.run_id)
    assert verify(store, CAMPAIGN).problems == []
    assert rewrite_old_manifests(store, CAMPAIGN, KEY) == 0


def test_killed_anywhere_the_next_one_leaves_nothing_of_the_old(tmp_path: Path):
    before, at = FolderStorage(tmp_path / "before"), 0
    old = refresh(before, PAIRS, "old")
    night(before, "new")
    while True:
        store = FolderStorage(tmp_path / str(at))
        shutil.copytree(before.root, store.root)
        try:
            rewrite_old_manifests(CrashingStorage(store, at), CAMPAIGN, KEY)
            break
        except Crash:
            assert rewrite_old_manifests(store, CAMPAIGN, KEY) == 1 or read_run(store, CAMPAIGN, old.run_id).keyed_fingerprints
            listed = {file.key for run in list_runs(store, CAMPAIGN) for file in run.manifest}
            there = {entry.key for entry in store.entries(layout.CAMPAIGNS) if "/manifest/" in entry.key}
            assert there == listed
            assert lengths(store, old.run_id) == {32}
        at += 1
    assert at > 8


def test_forgetting_in_an_old_store_publishes_no_plain_fingerprint_again(folder_store: Storage):
    run = begin(folder_store, key_ids={"campaign_key": key_id(KEY)})
    do_shards(commit_plan(run, PAIRS))
    finish(run)
    assert {len(row["fingerprint"]) for row in open_published(folder_store, CAMPAIGN).rows()} == {64}
    forget(folder_store, KEY, [f"user-{PAIRS[0][0]}"], patience_seconds=0.0)
    assert {len(row["fingerprint"]) for row in open_published(folder_store, CAMPAIGN).rows()} == {32}
