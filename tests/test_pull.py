"""Consumers: verify finds what is wrong, pull fetches what is new, clean-up takes only what nobody names."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import (
    CAMPAIGN,
    Crash,
    CrashingStorage,
    begin,
    commit_plan,
    make_rows,
    pair_ids,
    refresh,
)

from adgen.creatives import layout
from adgen.creatives.folder import FolderStorage
from adgen.creatives.objects import put_object
from adgen.creatives.publish import finish
from adgen.creatives.pull import pull
from adgen.creatives.reading import open_published
from adgen.creatives.storage import Storage
from adgen.creatives.verify import verify
from adgen.errors import ConsumerError
from adgen.records import MANIFEST

DAYS = 86_400.0


def first_ok(store: Storage) -> dict:
    return next(row for row in open_published(store, CAMPAIGN).rows() if row["status"] == "ok")


def numbers(found) -> tuple[int, ...]:
    return found.rows, found.ok, found.missing, found.mismatched, found.rejected, found.failed


def refresh_with(store: Storage, rows: pa.Table) -> None:
    """Publish exactly these rows."""
    run = begin(store)
    journal = commit_plan(run, rows["pair_id"].to_pylist(), 100)
    journal.commit_part(journal.unfinished()[0], rows)
    finish(run)


def with_column(rows: pa.Table, name: str, values: list) -> pa.Table:
    field = MANIFEST.field(name)
    return rows.set_column(rows.column_names.index(name), field, pa.array(values, field.type))


# -- verify ----------------------------------------------------------------------------------------------------


def test_verify_of_a_good_run_counts_its_rows(store: Storage):
    refresh(store, pair_ids(10))
    found = verify(store, CAMPAIGN)
    assert (numbers(found), found.problems) == ((10, 6, 0, 0, 3, 1), [])


def test_verify_finds_missing_and_changed_objects(store: Storage):
    refresh(store, pair_ids(10))
    gone, changed, cut = [row["uri"] for row in open_published(store, CAMPAIGN).rows() if row["uri"]][:3]
    store.delete(gone)
    store.put(changed, b"x" * store.head(changed).size)
    store.put(cut, b"")
    found = verify(store, CAMPAIGN)
    assert numbers(found) == (10, 3, 1, 2, 3, 1)
    assert sum(f"{gone} is missing" in problem for problem in found.problems) == 1
    assert sum("is mismatched" in problem for problem in found.problems) == 2


def test_verify_finds_a_manifest_file_that_is_gone(store: Storage):
    run = refresh(store, pair_ids(10), rows_per_file=5)
    store.delete(run.document.manifest[0].key)
    found = verify(store, CAMPAIGN)
    assert found.rows == 5
    assert any("is gone" in problem for problem in found.problems)
    assert "run.json counts 10 rows, the manifest has 5" in found.problems


@pytest.mark.parametrize("uri", ["../../outside", "objects/00/short.webp", "private/campaigns/x", "/etc/passwd"])
def test_verify_reads_nothing_that_is_not_an_object(store: Storage, uri: str):
    rows = make_rows(store, pair_ids(2))
    refresh_with(store, with_column(rows, "uri", [uri, rows["uri"][1].as_py()]))
    found = verify(store, CAMPAIGN)
    assert (found.ok, found.mismatched) == (1, 1)


def test_verify_looks_at_renditions_and_at_rows_without_a_picture(store: Storage):
    rows = make_rows(store, pair_ids(3))
    wide = put_object(store, b"wide", "webp")
    one = {"ratio": "2:1", "uri": wide.uri, "sha256": wide.sha256, "bytes": wide.bytes}
    rows = with_column(rows, "renditions", [[one], [one | {"bytes": 5}], None])
    refresh_with(store, with_column(rows, "uri", [*rows["uri"].to_pylist()[:2], None]))
    assert numbers(verify(store, CAMPAIGN)) == (3, 1, 0, 2, 0, 0)
    store.delete(wide.uri)
    assert numbers(verify(store, CAMPAIGN)) == (3, 0, 2, 1, 0, 0)


# -- pull ------------------------------------------------------------------------------------------------------


def test_pull_makes_a_folder_that_verifies_like_the_store(store: Storage, tmp_path: Path):
    run = refresh(store, pair_ids(10))
    done = pull(store, CAMPAIGN, tmp_path / "pulled")
    assert (done.run_id, done.rows, done.changed_rows, done.fetched, done.present) == (run.run_id, 10, 6, 6, 0)
    local = FolderStorage(tmp_path / "pulled")
    found = verify(local, CAMPAIGN)
    assert (numbers(found), found.problems) == ((10, 6, 0, 0, 3, 1), [])
    assert not (tmp_path / "pulled" / "private").exists()
    shown = json.loads((tmp_path / "pulled" / "campaigns" / CAMPAIGN / "latest.json").read_text())
    assert shown["run_id"] == run.run_id


def test_pull_fetches_only_what_is_not_there_and_right(store: Storage, tmp_path: Path):
    refresh(store, pair_ids(10))
    pull(store, CAMPAIGN, tmp_path)
    uris = [row["uri"] for row in open_published(store, CAMPAIGN).rows() if row["uri"]]
    (tmp_path / uris[0]).unlink()
    (tmp_path / uris[1]).write_bytes(b"damaged")
    done = pull(store, CAMPAIGN, tmp_path)
    assert (done.fetched, done.present) == (2, 4)
    refresh(store, pair_ids(14))
    done = pull(store, CAMPAIGN, tmp_path)
    assert done.changed_rows == sum(row["status"] == "ok" for row in open_published(store, CAMPAIGN).rows())
    assert 0 < done.fetched < done.changed_rows
    assert verify(FolderStorage(tmp_path), CAMPAIGN).problems == []


def test_pull_since_a_run_fetches_what_that_run_lacks(store: Storage, tmp_path: Path):
    before = refresh(store, pair_ids(8))
    refresh(store, pair_ids(12))
    done = pull(store, CAMPAIGN, tmp_path, since=before.run_id)
    assert (done.rows, done.changed_rows, done.fetched) == (12, 3, 3)
    with pytest.raises(ConsumerError, match="no such run"):
        pull(store, CAMPAIGN, tmp_path, since=layout.new_run_id())


def test_a_pull_that_dies_anywhere_goes_on_where_it_stopped(tmp_path: Path):
    store = FolderStorage(tmp_path / "store")
    refresh(store, pair_ids(6))
    at, fetched_before = 0, -1
    while True:
        dest = tmp_path / str(at)
        try:
            pull(CrashingStorage(store, at), CAMPAIGN, dest, threads=1)
            break
        except Crash:
            assert FolderStorage(dest).get(layout.pointer(CAMPAIGN)) is None
        done = pull(store, CAMPAIGN, dest)
        assert done.fetched + done.present == 3
        assert done.present >= fetched_before
        fetched_before = done.present
        assert verify(FolderStorage(dest), CAMPAIGN).problems == []
        at += 1
    assert fetched_before == 2


def test_a_pull_of_a_damaged_store_keeps_the_old_run_visible(store: Storage, tmp_path: Path):
    before = refresh(store, pair_ids(4), "old")
    pull(store, CAMPAIGN, tmp_path)
    refresh(store, pair_ids(4), "new")
    uri = first_ok(store)["uri"]
    data = store.read(uri)
    store.put(uri, b"damaged")
    with pytest.raises(ConsumerError, match=f"1 objects cannot be pulled, first: {uri} is not what its row says"):
        pull(store, CAMPAIGN, tmp_path)
    assert open_published(FolderStorage(tmp_path), CAMPAIGN).run.run_id == before.run_id
    store.put(uri, data)
    done = pull(store, CAMPAIGN, tmp_path)
    assert (done.fetched, done.present) == (1, 2)


@pytest.mark.parametrize("uri", ["../../outside.webp", "objects/../../outside.webp", "/tmp/outside.webp", "latest.json"])
def test_a_pull_never_writes_outside_its_folder(store: Storage, tmp_path: Path, uri: str):
    rows = make_rows(store, pair_ids(2))
    refresh_with(store, with_column(rows, "uri", [uri, rows["uri"][1].as_py()]))
    with pytest.raises(ConsumerError, match="is not the key of an object"):
        pull(store, CAMPAIGN, tmp_path / "a" / "b")
    outside = [path for path in (tmp_path / "a").iterdir() if path.name != "b"]
    assert (outside, list(tmp_path.glob("outside*"))) == ([], [])


def test_a_store_is_no_destination(tmp_path: Path):
    store = FolderStorage(tmp_path)
    refresh(store, pair_ids(2))
    with pytest.raises(ConsumerError, match="pull into another folder"):
        pull(store, CAMPAIGN, tmp_path)
