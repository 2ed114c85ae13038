"""Readers: complete runs only, whatever is published meanwhile; no listing; nothing but what was published."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import (
    CAMPAIGN,
    WrappedStorage,
    pair_ids,
    refresh,
)

from adgen.creatives import layout
from adgen.creatives.documents import Pointer
from adgen.creatives.folder import FolderStorage
from adgen.creatives.publish import read_pointer, rollback
from adgen.creatives.reading import open_published
from adgen.creatives.runs import read_run
from adgen.creatives.storage import Storage, Taken
from adgen.errors import ConsumerError, StoreError


def published_rows(store: Storage) -> pa.Table:
    return pa.concat_tables(open_published(store, CAMPAIGN).tables())


@pytest.mark.slow
def test_a_reader_during_refreshes_and_a_rollback_sees_complete_runs_only(store: Storage):
    """Each time it reads everything: pointer, run.json, manifest, and that all rows are of one run."""
    first = refresh(store, pair_ids(8), "look 0")
    seen, generations, stop = set(), [], threading.Event()

    def read_again_and_again() -> None:
        while not stop.is_set():
            found = open_published(store, CAMPAIGN)
            assert found.run.state == "COMPLETE"
            rows = pa.concat_tables(found.tables())
            looks = set(rows["title"].drop_null().to_pylist())
            assert (rows.num_rows, len(looks)) == (8, 1)
            seen.update(looks)
            generations.append(found.pointer.generation)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read_again_and_again) for _ in range(2)]
        try:
            refresh(store, pair_ids(8), "look 1")
            refresh(store, pair_ids(8), "look 2")
            rollback(store, CAMPAIGN, first.run_id)
            last = len(generations)
            while len(generations) < last + 3 and not any(reader.done() for reader in readers):
                time.sleep(0.01)
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert {"look 0"} <= seen <= {"look 0", "look 1", "look 2"}
    assert generations[-1] == 4


def test_the_plain_pointer_file_of_a_folder_is_always_whole_and_never_goes_back(tmp_path: Path):
    """What `cat latest.json` shows while eight writers swap."""
    store, stop, shown = FolderStorage(tmp_path), threading.Event(), []
    store.swap("latest.json", b'{"generation": 0}', None)

    def swap_often(_: int) -> None:
        for _ in range(20):
            stored = store.get("latest.json")
            number = json.loads(stored.data)["generation"] + 1
            with suppress(Taken):
                store.swap("latest.json", b'{"generation": %d}' % number, stored.etag)

    def read_often() -> None:
        while not stop.is_set():
            shown.append(json.loads((tmp_path / "latest.json").read_bytes())["generation"])

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(read_often)
        list(pool.map(swap_often, range(8)))
        stop.set()
        reader.result()
    assert json.loads((tmp_path / "latest.json").read_bytes()) == json.loads(store.get("latest.json").data)


def test_readers_find_a_pair_and_a_user_and_never_list(store: Storage):
    class NoListing(WrappedStorage):
        def act(self, name: str, *arguments):
            assert name in ("get", "head"), f"a consumer called {name}"
            return super().act(name, *arguments)

    refresh(store, pair_ids(40), rows_per_file=10)
    published = open_published(NoListing(store), CAMPAIGN)
    pair = pair_ids(40)[17]
    (row,) = published.find(pair)
    assert (row["pair_id"], store.read(row["uri"])) == (pair, f"{pair} plain".encode())
    of_user = published.of_user(row["user_key"])
    assert row in of_user
    assert {found["pair_id"] for found in of_user} == {p for p in pair_ids(40) if p[0] == pair[0]}
    assert len(list(published.rows())) == 40
    assert published.find("nobody") == []


def test_a_reader_refuses_what_differs_from_what_was_published(store: Storage):
    with pytest.raises(ConsumerError, match="has nothing published"):
        open_published(store, CAMPAIGN)
    run = refresh(store, pair_ids(4))
    file = run.document.manifest[0]
    data = store.read(file.key)
    store.put(file.key, data[:-1] + b"x")
    with pytest.raises(ConsumerError, match=r"differs from what run\.json says"):
        published_rows(store)
    store.put(file.key, data)
    published_rows(store)
    key = layout.run_document(CAMPAIGN, run.run_id)
    changed = read_run(store, CAMPAIGN, run.run_id).model_copy(update={"manifest": ()})
    store.swap(key, changed.to_bytes(), store.get(key).etag)
    with pytest.raises(ConsumerError, match="not the one that was published"):
        open_published(store, CAMPAIGN)


def test_documents_of_a_newer_version_are_read_and_garbage_is_named(store: Storage):
    refresh(store, pair_ids(4))
    key = layout.pointer(CAMPAIGN)
    pointer, etag = read_pointer(store, CAMPAIGN)
    newer = json.loads(pointer.to_bytes()) | {"added_later": 1}
    etag = store.swap(key, json.dumps(newer).encode(), etag)
    assert isinstance(open_published(store, CAMPAIGN).pointer, Pointer)
    store.swap(key, b'{"generation": "many"}', etag)
    with pytest.raises(StoreError, match=r"latest\.json: not a Pointer: generation"):
        open_published(store, CAMPAIGN)
