"""The acts of a store: same meaning on a folder and on S3, and every race has one winner."""

import errno
import io
import mmap
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.runs import make_older

from adgen.creatives import folder as folder_module
from adgen.creatives import layout
from adgen.creatives.folder import FolderStorage
from adgen.creatives.storage import Storage, Taken
from adgen.creatives.stores import open_storage
from adgen.errors import StoreError


def test_an_object_is_written_once(store: Storage):
    assert store.get("objects/a.webp") is None
    assert store.head("objects/a.webp") is None
    store.create("objects/a.webp", b"first")
    with pytest.raises(Taken):
        store.create("objects/a.webp", b"second")
    assert store.read("objects/a.webp") == b"first"
    head = store.head("objects/a.webp")
    assert (head.key, head.size) == ("objects/a.webp", 5)
    assert abs(head.modified - time.time()) < 60


def test_put_delete_and_listing(store: Storage):
    for key in ("a/b/2.txt", "a/b/1.txt", "a/c/3.txt", "d.txt"):
        store.put(key, b"old")
    store.put("d.txt", b"new")
    assert store.read("d.txt") == b"new"
    assert sorted(entry.key for entry in store.entries("a/")) == ["a/b/1.txt", "a/b/2.txt", "a/c/3.txt"]
    assert len(list(store.entries(""))) == 4
    assert list(store.entries("nothing/")) == []
    assert store.children("a/") == ["b", "c"]
    assert store.children("nothing/") == []
    store.delete("d.txt")
    store.delete("d.txt")
    assert store.get("d.txt") is None
    with pytest.raises(StoreError, match=r"d\.txt: not there"):
        store.read("d.txt")


def test_a_document_changes_only_from_the_version_that_was_read(store: Storage):
    first = store.swap("c/latest.json", b"1", None)
    assert (store.get("c/latest.json").data, store.get("c/latest.json").etag) == (b"1", first)
    with pytest.raises(Taken):
        store.swap("c/latest.json", b"again the first", None)
    second = store.swap("c/latest.json", b"2", first)
    with pytest.raises(Taken):
        store.swap("c/latest.json", b"late", first)
    assert store.get("c/latest.json").data == b"2"
    assert store.get("c/latest.json").etag == second
    store.drop("c/latest.json")
    assert store.get("c/latest.json") is None
    assert list(store.entries("c/")) == []
    with pytest.raises(Taken):
        store.swap("c/latest.json", b"3", second)


def test_a_race_to_create_has_one_winner(store: Storage):
    def attempt(number: int) -> bool:
        start.wait()
        try:
            store.create("race", b"writer %d" % number)
        except Taken:
            return False
        return True

    start = threading.Barrier(12)
    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(attempt, range(12)))
    assert won.count(True) == 1
    assert store.read("race") == b"writer %d" % won.index(True)


def test_a_race_to_swap_has_one_winner_a_round(store: Storage):
    def attempt(number: int) -> bool:
        start.wait()
        try:
            store.swap("race.json", b"round %d writer %d" % (turn, number), etag)
        except Taken:
            return False
        return True

    etag, start = None, threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        for turn in range(6):
            won = list(pool.map(attempt, range(8)))
            assert won.count(True) == 1
            stored = store.get("race.json")
            assert stored.data == b"round %d writer %d" % (turn, won.index(True))
            etag = stored.etag


def _count_up(root: str, times: int) -> None:
    store = FolderStorage(root)
    for _ in range(times):
        while True:
            stored = store.get("count.json")
            try:
                store.swap("count.json", b"%d" % (int(stored.data) + 1), stored.etag)
                break
            except Taken:
                continue


@pytest.mark.slow
def test_processes_that_count_together_lose_no_step(tmp_path: Path):
    """Also over more generations than a folder keeps."""
    store = FolderStorage(tmp_path)
    store.swap("count.json", b"0", None)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_up, args=(str(tmp_path), 60)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert store.get("count.json").data == b"180"
    assert (tmp_path / "count.json").read_bytes() == b"180"
    assert len(list((tmp_path / "count").iterdir())) <= folder_module.KEPT_GENERATIONS + 1


def test_a_writer_that_slept_through_all_kept_generations_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FolderStorage(tmp_path)
    etag = store.swap("run.json", b"0", None)
    real_link = FolderStorage._link

    def sleepy_link(self, path, data):
        monkeypatch.setattr(FolderStorage, "_link", real_link)
        _swap_times(store, folder_module.KEPT_GENERATIONS + 5)
        assert not path.exists()  # so the link itself will succeed
        real_link(self, path, data)

    monkeypatch.setattr(FolderStorage, "_link", sleepy_link)
    with pytest.raises(Taken):
        store.swap("run.json", b"from long ago", etag)
    assert store.get("run.json").data == b"swap 68"
    assert (tmp_path / "run.json").read_bytes() == b"swap 68"


def _swap_times(store: Storage, times: int) -> None:
    for number in range(times):
        store.swap("run.json", b"swap %d" % number, store.get("run.json").etag)


_WRITER = """
import sys
from adgen.creatives.folder import FolderStorage
store = FolderStorage(sys.argv[1])
for number in range(10**9):
    stored = store.get("latest.json")
    store.swap("latest.json", b"%d;" % (int((stored.data if stored else b"0;")[:-1]) + 1) , stored.etag if stored else None)
    store.create(f"objects/{number}-{sys.argv[2]}", b"x" * 100_000)
    if not number:
        print("ready", flush=True)
"""


@pytest.mark.kill
def test_sigkill_at_any_moment_leaves_whole_files(tmp_path: Path):
    """A writer is killed again and again: every object is whole, the document goes on from its newest version."""
    store, last = FolderStorage(tmp_path), 0
    for life in range(5):
        command = [sys.executable, "-c", _WRITER, str(tmp_path), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.05 + 0.013 * life)
            os.kill(writer.pid, signal.SIGKILL)
        now = int(store.get("latest.json").data[:-1])
        assert now >= last
        copy = int((tmp_path / "latest.json").read_bytes()[:-1])
        assert now - 1 <= copy <= now
        assert {entry.size for entry in store.entries("objects/")} <= {100_000}
        last = now
    assert last > 5
    store.swap("latest.json", b"0;", store.get("latest.json").etag)
    assert (tmp_path / "latest.json").read_bytes() == b"0;"


def test_half_written_files_are_not_listed_and_are_swept_when_old(tmp_path: Path):
    store = FolderStorage(tmp_path)
    store.put("a/whole.txt", b"whole")
    (tmp_path / "a" / f".tmp-{'0' * 32}").write_bytes(b"ha")
    assert [entry.key for entry in store.entries("")] == ["a/whole.txt"]
    assert store.sweep(3600, lambda folder: True) == 0
    make_older(str(tmp_path), f"a/.tmp-{'0' * 32}", 7200)
    (tmp_path / "b" / "c").mkdir(parents=True)
    make_older(str(tmp_path), "b/c", 7200)
    assert store.sweep(3600, lambda folder: True) == 1
    assert not (tmp_path / "b" / "c").exists()
    assert store.read("a/whole.txt") == b"whole"


@pytest.mark.parametrize(
    "key", ["../up", "a/../b", "/etc/passwd", "a//b", "", ".hidden", "a/.b", "a\\b", "a b", "a/", "ü", "a\n", "x" * 901]
)
def test_no_key_leaves_the_root(store: Storage, key: str):
    for act in (store.get, store.head, store.delete, store.drop):
        with pytest.raises(StoreError):
            act(key)
    with pytest.raises(StoreError):
        store.create(key, b"")
    assert list(store.entries("")) == []


@pytest.mark.parametrize("campaign", ["", "..", "a/b", "a b", "-a", "x" * 65, "a\n", "a.b"])
def test_campaign_names_are_strict(campaign: str):
    with pytest.raises(StoreError, match="campaign"):
        layout.pointer(campaign)


@pytest.mark.parametrize("run_id", ["", "..", "latest", "20261124000000-123456-ABCDEF01", "20261124000000-123456-abcdef0"])
def test_run_ids_are_strict(run_id: str):
    with pytest.raises(StoreError, match="run"):
        layout.run("autumn", run_id)


def test_run_ids_sort_by_time_and_are_unique():
    ids = [layout.new_run_id() for _ in range(500)]
    assert len(set(ids)) == 500
    assert [run_id[:21] for run_id in ids] == sorted(run_id[:21] for run_id in ids)
    assert all(layout.checked_run_id(run_id) == run_id for run_id in ids)


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "S4://x", "s3://", "s3://bucket/../x", "file://host/x"])
def test_an_unusable_uri_is_named(uri: str):
    with pytest.raises(StoreError, match=r"not supported|not a "):
        open_storage(uri)


def test_a_file_uri_is_the_folder(tmp_path: Path):
    open_storage((tmp_path / "a b").as_uri()).put("x", b"1")
    assert open_storage(tmp_path / "a b").read("x") == b"1"


def test_storage_is_picklable(store: Storage):
    store.put("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"


@pytest.mark.parametrize("uri", ["s3:/bucket/store", "s3:bucket/store", "S3:/bucket", "gs:/bucket", "file:/tmp/store"])
def test_a_scheme_with_one_slash_is_no_folder(uri: str):
    with pytest.raises(StoreError, match="write s3://bucket/prefix"):
        open_storage(uri)
    assert open_storage(f"./{uri}").uri.endswith(uri)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_knows_no_fsync_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def unknown(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", unknown)
    store = FolderStorage(tmp_path)
    store.create("objects/a", b"1")
    assert store.swap("a.json", b"1", None)


def test_a_disk_that_fails_to_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreError, match="Input/output error"):
        FolderStorage(tmp_path).create("objects/a", b"1")


def test_a_mapped_file_that_does_not_fit_on_the_disk_is_an_error_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And no other: a view of it that were left would keep it from being closed, and hide what went wrong."""

    class Small(io.FileIO):
        def write(self, data) -> int:
            if self.tell() >= 8:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data[:8])

    monkeypatch.setattr(folder_module, "open", lambda path, mode, buffering, opener: Small(path, "x", opener=opener), raising=False)
    with open(tmp_path / "large", "w+b") as file:
        file.write(b"0123456789abcdef")
        file.flush()
        with pytest.raises(StoreError, match="No space left"), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            FolderStorage(tmp_path / "store").put("objects/a", data)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_what_the_system_writes_in_parts_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Slow(io.FileIO):
        def write(self, data) -> int:
            return super().write(data[:3])

    monkeypatch.setattr(folder_module, "open", lambda path, mode, buffering, opener: Slow(path, "x", opener=opener), raising=False)
    FolderStorage(tmp_path).put("objects/a", b"0123456789")
    assert (tmp_path / "objects" / "a").read_bytes() == b"0123456789"
