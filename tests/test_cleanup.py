"""Clean-up: takes what no kept run names and nothing else, beside running refreshes, and goes on after a crash."""

import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import (
    CAMPAIGN,
    Crash,
    CrashingStorage,
    WrappedStorage,
    begin,
    commit_plan,
    make_older,
    make_rows,
    pair_ids,
    refresh,
)

from adgen.creatives import layout
from adgen.creatives.cleanup import CleanedUp, clean_up
from adgen.creatives.folder import FolderStorage
from adgen.creatives.journal import Journal
from adgen.creatives.names import campaigns, is_our_folder, is_ours
from adgen.creatives.objects import put_object
from adgen.creatives.probe import probe
from adgen.creatives.publish import read_pointer, rollback
from adgen.creatives.runs import list_runs, read_run
from adgen.creatives.storage import Storage
from adgen.creatives.verify import verify
from adgen.errors import ConsumerError, SettingsError, StoreError

DAYS = 86_400.0
FOREIGN = (".DS_Store", "Thumbs.db", "notes.txt", "00000000.parquet.bak")


def clean_up_twice(storage: Storage, campaign: str = CAMPAIGN, keep_runs: int = 7, days: float = 10) -> CleanedUp:
    """What tonight's clean-up found and tomorrow's removed, `days` from now."""
    first = clean_up(storage, campaign, keep_runs, now=time.time() + days * DAYS)
    assert (first.objects, first.object_bytes) == (0, 0)
    second = clean_up(storage, campaign, keep_runs, now=time.time() + (days + 1) * DAYS)
    return CleanedUp(first.runs + second.runs, second.objects, second.object_bytes)


@pytest.mark.slow
def test_clean_up_keeps_the_newest_runs_and_all_they_name(store: Storage):
    made = [refresh(store, pair_ids(4), f"look {night}") for night in range(5)]
    done = clean_up_twice(store, keep_runs=2)
    assert [run.run_id for run in list_runs(store, CAMPAIGN)] == [made[4].run_id, made[3].run_id]
    assert (done.runs, done.objects) == (3, 9)
    assert len(list(store.entries(layout.OBJECTS))) == 6
    assert verify(store, CAMPAIGN).problems == []
    assert rollback(store, CAMPAIGN, made[3].run_id).generation == 6
    assert verify(store, CAMPAIGN).problems == []
    left = [entry.key for entry in store.entries("") if made[0].run_id in entry.key]
    assert left == []


@pytest.mark.slow
def test_clean_up_spares_young_objects(store: Storage):
    refresh(store, pair_ids(4), "old")
    for night in range(2):
        refresh(store, pair_ids(4), f"look {night}")
    uri = put_object(store, b"a run is about to name it", "webp").uri
    assert clean_up_twice(store, keep_runs=2, days=0.9).objects == 0
    assert clean_up_twice(store, keep_runs=2, days=2.1).objects == 4
    assert store.get(uri) is None


def test_clean_up_goes_by_the_longest_run(folder_store: Storage):
    run = refresh(folder_store, pair_ids(4))
    put_object(folder_store, b"unnamed", "webp")
    long = read_run(folder_store, CAMPAIGN, run.run_id)
    long = long.model_copy(update={"created_at": long.updated_at - timedelta(days=3)})
    key = layout.run_document(CAMPAIGN, run.run_id)
    folder_store.swap(key, long.to_bytes(), folder_store.get(key).etag)
    assert clean_up_twice(folder_store, days=4.9).objects == 0
    assert clean_up_twice(folder_store, days=6.1).objects == 1


@pytest.mark.slow
def test_clean_up_keeps_unfinished_runs_their_base_and_their_objects(store: Storage):
    base = refresh(store, pair_ids(4), "base")
    newer = [refresh(store, pair_ids(4), f"look {night}", resume_key="other") for night in range(3)]
    rollback(store, CAMPAIGN, base.run_id)
    unfinished = begin(store, "interrupted")
    journal = commit_plan(unfinished, pair_ids(8))
    pairs = journal.read_plan_part(journal.unfinished()[0])["pair_id"].to_pylist()
    journal.commit_part(journal.unfinished()[0], make_rows(store, pairs, "half done"))
    rollback(store, CAMPAIGN, newer[2].run_id)
    clean_up(store, CAMPAIGN, keep_runs=2, now=time.time() + 10 * DAYS)
    left = {run.run_id for run in list_runs(store, CAMPAIGN)}
    assert left == {base.run_id, unfinished.run_id, newer[1].run_id, newer[2].run_id}
    for row in Journal(store, CAMPAIGN, unfinished.run_id).read_part(0).to_pylist():
        assert store.head(row["uri"])
    assert begin(store, "interrupted").run_id == unfinished.run_id


def test_clean_up_keeps_the_published_run_however_old(folder_store: Storage):
    old = refresh(folder_store, pair_ids(4), "old")
    for night in range(3):
        refresh(folder_store, pair_ids(4), f"look {night}")
    rollback(folder_store, CAMPAIGN, old.run_id)
    clean_up(folder_store, CAMPAIGN, keep_runs=2, now=time.time() + 10 * DAYS)
    assert verify(folder_store, CAMPAIGN).problems == []
    assert read_pointer(folder_store, CAMPAIGN)[0].run_id == old.run_id


def test_clean_up_of_one_campaign_spares_the_objects_of_another(folder_store: Storage):
    refresh(folder_store, pair_ids(4))
    clean_up(folder_store, "another", now=time.time() + 10 * DAYS)
    assert verify(folder_store, CAMPAIGN).problems == []


def test_a_clean_up_that_dies_anywhere_is_finished_by_the_next(tmp_path: Path):
    at, before, now = 0, FolderStorage(tmp_path / "before"), time.time() + 10 * DAYS
    run_ids = [refresh(before, pair_ids(2) if night == 0 else []).run_id for night in range(3)]
    put_object(before, b"found by an earlier clean-up", "webp")
    before_that = now - 0.6 * DAYS
    clean_up(before, CAMPAIGN, keep_runs=3, now=before_that)
    while True:
        store = FolderStorage(tmp_path / str(at))
        shutil.copytree(before.root, store.root)
        try:
            clean_up(CrashingStorage(store, at), CAMPAIGN, keep_runs=2, now=now)
            break
        except Crash:
            clean_up(store, CAMPAIGN, keep_runs=2, now=now)
        clean_up(store, CAMPAIGN, keep_runs=2, now=now + DAYS)
        assert len(list_runs(store, CAMPAIGN)) == 2
        assert list(store.entries(layout.OBJECTS)) == []
        assert not [entry for entry in store.entries("") if run_ids[0] in entry.key]
        assert verify(store, CAMPAIGN).problems == []
        at += 1
    assert at > 15


def test_a_run_that_is_rolled_back_to_at_that_moment_is_spared(folder_store: Storage):
    class RolledBackMeanwhile(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "swap" and arguments[0] == layout.run_document(CAMPAIGN, old.run_id) and not moved:
                moved.append(rollback(folder_store, CAMPAIGN, old.run_id))
            return super().act(name, *arguments)

    moved: list = []
    old = refresh(folder_store, pair_ids(4), "old")
    for night in range(2):
        refresh(folder_store, pair_ids(4), f"look {night}")
    clean_up(RolledBackMeanwhile(folder_store), CAMPAIGN, keep_runs=2, now=time.time() + 10 * DAYS)
    assert read_pointer(folder_store, CAMPAIGN)[0].run_id == old.run_id
    assert read_run(folder_store, CAMPAIGN, old.run_id).state == "COMPLETE"
    assert folder_store.head(old.document.manifest[0].key)


def test_an_object_refreshed_after_it_was_listed_is_spared(tmp_path: Path):
    class Refreshed(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "head" and arguments[0] == uri:
                put_object(store, b"wanted again", "webp", refresh_after_seconds=0)
            return super().act(name, *arguments)

    store = FolderStorage(tmp_path)
    refresh(store, pair_ids(2))
    uri = put_object(store, b"wanted again", "webp").uri
    make_older(store.uri, uri, 10 * DAYS)
    clean_up(store, CAMPAIGN, now=time.time() - DAYS)
    assert clean_up(Refreshed(store), CAMPAIGN).objects == 0
    assert store.head(uri)


def test_an_object_written_again_between_two_clean_ups_is_spared(store: Storage):
    """It was found unnamed; then a run made the same picture. However old it is by now, the second clean-up begins anew."""
    refresh(store, pair_ids(2))
    uri = put_object(store, b"wanted again", "webp").uri
    assert clean_up(store, CAMPAIGN, now=time.time() + 3 * DAYS).objects == 0
    time.sleep(1.1 - time.time() % 1)  # a store counts in seconds
    put_object(store, b"wanted again", "webp", refresh_after_seconds=0)
    assert clean_up(store, CAMPAIGN, now=time.time() + 4 * DAYS).objects == 0
    assert clean_up(store, CAMPAIGN, now=time.time() + 4.4 * DAYS).objects == 0  # within the grace time
    assert store.head(uri)
    assert clean_up(store, CAMPAIGN, now=time.time() + 5 * DAYS).objects == 1
    assert list(store.entries(layout.CANDIDATES)) == []


def test_keep_runs_counts_published_runs_and_the_one_before_always_stays(folder_store: Storage):
    made = [refresh(folder_store, pair_ids(2), f"look {night}") for night in range(4)]
    for night in range(3):
        held = begin(folder_store, f"held {night}")
        commit_plan(held, pair_ids(2))
        held.end("HELD", "its gate")
    clean_up(folder_store, CAMPAIGN, keep_runs=2)
    left = [run.run_id for run in list_runs(folder_store, CAMPAIGN)]
    assert [run.run_id for run in (made[3], made[2])] == left[2:]
    assert len(left) == 4  # and as many that were not published

    rollback(folder_store, CAMPAIGN, made[2].run_id)  # consumers may still be reading made[3]
    newer = [run.run_id for run in list_runs(folder_store, CAMPAIGN)][:2]
    assert read_pointer(folder_store, CAMPAIGN)[0].previous_run_id == made[3].run_id
    clean_up(folder_store, CAMPAIGN, keep_runs=2)
    assert [run.run_id for run in list_runs(folder_store, CAMPAIGN)] == [*newer, made[3].run_id, made[2].run_id]


@pytest.mark.slow
def test_foreign_things_are_not_seen_and_not_removed(store: Storage, tmp_path: Path):
    """Folder markers of consoles, files of desktops and network storage, other people's files, empty folders."""
    old = refresh(store, pair_ids(4), "old")
    left = dict.fromkeys(add_foreign_things(store, tmp_path), b"theirs")
    for night in range(2):
        refresh(store, pair_ids(4), f"look {night}")
    assert campaigns(store) == [CAMPAIGN]
    assert len(list_runs(store, CAMPAIGN)) == 3
    journal = Journal(store, CAMPAIGN, old.run_id)
    assert (journal.done(), journal.unfinished()) == ({0}, [])
    done = clean_up_twice(store, keep_runs=2)
    assert (done.runs, done.objects) == (1, 3)
    assert verify(store, CAMPAIGN).problems == []
    assert {key: read_foreign(store, key) for key in left} == left
    theirs = [entry.key for entry in store.entries("") if old.run_id in entry.key]
    assert theirs
    assert not [key for key in theirs if is_ours(key)]
    assert put_object(store, b"written into a folder of theirs", "webp")


def add_foreign_things(store: Storage, tmp_path: Path) -> list[str]:
    """Beside and among all that the store holds; their keys."""
    folders = sorted({entry.key.rpartition("/")[0] for entry in store.entries("")})
    folders = sorted({"/".join(folder.split("/")[:depth]) for folder in folders for depth in range(1, folder.count("/") + 2)})
    keys = [f"{folder}/{name}" for folder in folders for name in FOREIGN] + ["Thumbs.db", "theirs/.tmp-of-theirs"]
    if isinstance(store, FolderStorage):
        keys += [f"{folder}/@eaDir/latest.json" for folder in folders] + ["theirs/.tmp-0123456789abcdef0123456789abcdef"]
        for folder in (*folders, "theirs"):
            (store.root / folder / "their empty folder").mkdir(parents=True)
        for key in keys:
            (store.root / key).parent.mkdir(parents=True, exist_ok=True)
            (store.root / key).write_bytes(b"theirs")
            make_older(store.uri, key, 30 * DAYS)
        return keys
    keys += [f"{folder}/" for folder in folders] + ["", "campaigns//runs/x"]
    for key in keys:
        store._client.put_object(Bucket=store.bucket, Key=store._prefix + key, Body=b"theirs")
    return keys


def read_foreign(store: Storage, key: str) -> bytes:
    if isinstance(store, FolderStorage):
        return (store.root / key).read_bytes()
    return store._client.get_object(Bucket=store.bucket, Key=store._prefix + key)["Body"].read()


def test_every_key_that_a_refresh_writes_is_known_as_ours(store: Storage):
    """Else clean-up and erasure would leave it."""
    probe(store)
    refresh(store, pair_ids(4))
    clean_up(store, CAMPAIGN, now=time.time() + 10 * DAYS)
    assert [entry.key for entry in store.entries("") if not is_ours(entry.key)] == []
    assert {folder for folder in folders_of(store) if not is_our_folder(folder)} == set()


def folders_of(store: Storage) -> set[str]:
    keys = [entry.key.split("/") for entry in store.entries("")]
    return {"/".join(key[:depth]) for key in keys for depth in range(1, len(key))}


def test_our_empty_folders_and_half_written_files_go_and_theirs_stay(folder_store: FolderStorage):
    root = folder_store.root
    refresh(folder_store, pair_ids(2))
    half = f"objects/ab/.tmp-{'0' * 32}"
    for name in ("objects/ab", "objects/cd", "theirs", "objects/holiday", "@eaDir"):
        (root / name).mkdir(parents=True, exist_ok=True)
        make_older(folder_store.uri, name, 30 * DAYS)
    for name in (half, f"theirs/.tmp-{'0' * 32}", "objects/ab/.tmp-draft"):
        (root / name).write_bytes(b"x")
        make_older(folder_store.uri, name, 30 * DAYS)
    clean_up(folder_store, CAMPAIGN)
    assert not (root / half).exists()
    assert not (root / "objects/cd").exists()
    for name in ("objects/ab/.tmp-draft", f"theirs/.tmp-{'0' * 32}", "objects/holiday", "@eaDir"):
        assert (root / name).exists()


def test_probe_keys_that_a_killed_job_left_go_when_old(store: Storage):
    store.put(f"{layout.PROBES}{'0' * 32}.txt", b"first")
    clean_up(store, CAMPAIGN)
    assert list(store.entries(layout.PROBES))
    clean_up(store, CAMPAIGN, now=time.time() + 10 * DAYS)
    assert list(store.entries(layout.PROBES)) == []


def test_few_file_handles_are_enough(folder_store: Storage):
    """As under `ulimit -n 256`, here with less."""
    refresh(folder_store, pair_ids(8))
    put_object(folder_store, b"unnamed", "webp")
    script = """if True:
        import resource, sys, time
        resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
        from adgen.creatives.cleanup import clean_up
        from adgen.creatives.folder import FolderStorage
        for days in (10, 11):
            print(clean_up(FolderStorage(sys.argv[1]), "autumn", now=time.time() + days * 86400).objects)
    """
    done = subprocess.run([sys.executable, "-c", script, folder_store.uri], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["0", "1"]), done.stderr


def test_files_of_a_zombie_under_a_removed_run_go_when_old(folder_store: Storage):
    run_id = layout.new_run_id()
    Journal(folder_store, CAMPAIGN, run_id).write_plan_part(0, pa.table({"pair_id": ["a"]}))
    refresh(folder_store, pair_ids(2))
    clean_up(folder_store, CAMPAIGN)
    assert [entry for entry in folder_store.entries("private/") if run_id in entry.key]
    clean_up(folder_store, CAMPAIGN, now=time.time() + 10 * DAYS)
    assert not [entry for entry in folder_store.entries("private/") if run_id in entry.key]


def test_clean_up_refuses_to_keep_less_than_two_runs_or_to_guess(folder_store: Storage):
    with pytest.raises(SettingsError, match="keep 2 or more"):
        clean_up(folder_store, CAMPAIGN, keep_runs=1)
    run = refresh(folder_store, pair_ids(4))
    folder_store.delete(run.document.manifest[0].key)
    with pytest.raises(ConsumerError, match="is gone"):
        clean_up(folder_store, CAMPAIGN, now=time.time() + 10 * DAYS)
    assert len(list(folder_store.entries(layout.OBJECTS))) == 3
    key = layout.run_document(CAMPAIGN, run.run_id)
    folder_store.swap(key, b"not JSON", folder_store.get(key).etag)
    with pytest.raises(StoreError, match="not a RunDocument"):
        clean_up(folder_store, CAMPAIGN, now=time.time() + 10 * DAYS)
