"""Consumers: verify finds what is wrong, pull fetches what is new, clean-up takes only what nobody names."""

import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from support.runs import (
    CAMPAIGN,
    SECRET,
    Crash,
    CrashingStorage,
    WrappedStorage,
    begin,
    commit_plan,
    make_rows,
    pair_ids,
    publish_rows,
    refresh,
    with_values,
)

from adgen.creatives import layout
from adgen.creatives.cleanup import remove_run
from adgen.creatives.erasure import forget
from adgen.creatives.folder import FolderStorage
from adgen.creatives.objects import put_object
from adgen.creatives.publish import finish, read_pointer
from adgen.creatives.pull import pull
from adgen.creatives.reading import open_published
from adgen.creatives.storage import Storage
from adgen.creatives.verify import verify
from adgen.errors import ConsumerError, StoreError
from adgen.records import digest, user_key

DAYS = 86_400.0


def first_ok(store: Storage) -> dict:
    return next(row for row in open_published(store, CAMPAIGN).rows() if row["status"] == "ok")


def numbers(found) -> tuple[int, ...]:
    return found.rows, found.ok, found.missing, found.mismatched, found.rejected, found.failed


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
    publish_rows(store, with_values(rows, uri=[uri, rows["uri"][1].as_py()]))
    found = verify(store, CAMPAIGN)
    assert (found.ok, found.mismatched) == (1, 1)


def test_verify_looks_at_renditions_and_at_rows_without_a_picture(store: Storage):
    rows = make_rows(store, pair_ids(3))
    wide = put_object(store, b"wide", "webp")
    one = {"ratio": "2:1", "uri": wide.uri, "sha256": wide.sha256, "bytes": wide.bytes}
    rows = with_values(rows, renditions=[[one], [one | {"bytes": 5}], None])
    publish_rows(store, with_values(rows, uri=[*rows["uri"].to_pylist()[:2], None]))
    assert numbers(verify(store, CAMPAIGN)) == (3, 1, 0, 2, 0, 0)
    store.delete(wide.uri)
    assert numbers(verify(store, CAMPAIGN)) == (3, 0, 2, 1, 0, 0)


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "webp")
    return file.getvalue()


def test_verify_finds_a_picture_of_another_size_than_its_row_says(store: Storage):
    rows = make_rows(store, pair_ids(4))
    right, wide = put_object(store, picture(30, 20), "webp"), put_object(store, picture(40, 20), "webp")
    text = put_object(store, b"no picture", "webp")
    made = [right, wide, text, right]
    for name in ("uri", "sha256", "bytes"):
        rows = with_values(rows, **{name: [getattr(each, name) for each in made]})
    rows = with_values(rows, width=[30, 30, 30, None], height=[20, 20, 20, None])
    publish_rows(store, rows)
    found = verify(store, CAMPAIGN)
    assert numbers(found) == (4, 2, 0, 2, 0, 0)
    assert any(f"{wide.uri} is 40 x 20 pixels, its row says 30 x 20" in problem for problem in found.problems)
    assert any(f"{text.uri} is no picture" in problem for problem in found.problems)
    one = {"ratio": "2:1", "uri": wide.uri, "sha256": wide.sha256, "bytes": wide.bytes, "width": 20, "height": 20}
    publish_rows(store, with_values(rows.slice(0, 1), renditions=[[one]]))
    assert numbers(verify(store, CAMPAIGN)) == (1, 0, 0, 1, 0, 0)


@pytest.mark.parametrize("title", [None, ""])
def test_verify_finds_ok_rows_without_a_title_unless_they_were_asked_for(store: Storage, title):
    rows = make_rows(store, pair_ids(2))
    publish_rows(store, with_values(rows, title=[title, "plain"]))
    assert [problem.partition(": ")[2] for problem in verify(store, CAMPAIGN).problems] == ["is ok and has no title"]
    settings = {"finish": {"gates": {"title_empty": "warn"}}}
    change_run(store, settings=settings)
    assert verify(store, CAMPAIGN).problems == []


def test_verify_finds_a_pair_under_two_user_keys(store: Storage):
    rows = make_rows(store, pair_ids(6))
    pairs = [*pair_ids(5), pair_ids(1)[0]]
    users = rows["user_key"].to_pylist()
    rows = with_values(rows, pair_id=pairs, user_key=users)
    run = begin(store)
    journal = commit_plan(run, pairs, 100)
    journal.commit_part(journal.unfinished()[0], rows)
    finish(run)
    (problem,) = verify(store, CAMPAIGN).problems
    assert problem == f"pair {pairs[0]}: lies under 2 user keys: {', '.join(sorted((users[0], users[5])))}"


def change_run(store: Storage, **changes) -> None:
    run = open_published(store, CAMPAIGN).run
    key = layout.run_document(CAMPAIGN, run.run_id)
    store.swap(key, run.model_copy(update=changes).to_bytes(), store.get(key).etag)


def test_verify_finds_every_wrong_count(store: Storage):
    counts = refresh(store, pair_ids(10)).document.counts
    for name in ("rows", "ok", "rejected", "failed", "carried", "generated", "stale"):
        change_run(store, counts=counts.model_copy(update={name: getattr(counts, name) + 1}))
        problem = f"run.json counts {getattr(counts, name) + 1} {name}, the manifest has {getattr(counts, name)}"
        assert verify(store, CAMPAIGN).problems == [problem]
    change_run(store, counts=counts.model_copy(update={"reasons": {"forbidden_word": 3, "no_cutout": 1}}))
    found = verify(store, CAMPAIGN).problems
    assert found == [
        "run.json counts 1 reason no_cutout, the manifest has 0",
        "run.json counts 0 reason unreadable, the manifest has 1",
    ]


@pytest.mark.parametrize("state", ["ABANDONED", "RUNNING", "HELD", "FAILED"])
def test_verify_finds_a_published_run_that_says_it_is_not_to_be_published(store: Storage, state):
    refresh(store, pair_ids(4))
    change_run(store, state=state)
    assert [state in problem for problem in verify(store, CAMPAIGN).problems] == [True]


def test_wrong_key_ranges_are_found_in_new_runs_by_the_digest_and_in_old_ones_by_their_rows(store: Storage):
    run = refresh(store, pair_ids(10)).document
    changed = tuple(file.model_copy(update={"first_user_key": "5", "last_user_key": "6"}) for file in run.manifest)
    change_run(store, manifest=changed)
    with pytest.raises(ConsumerError, match="not the one that was published"):
        verify(store, CAMPAIGN)
    key = layout.pointer(CAMPAIGN)
    pointer, etag = read_pointer(store, CAMPAIGN)
    of_0_1_0 = digest(*(part for file in run.manifest for part in (file.key, file.rows, file.sha256)))
    store.swap(key, pointer.model_copy(update={"manifest_digest": of_0_1_0}).to_bytes(), etag)
    (problem,) = verify(store, CAMPAIGN).problems
    assert "run.json says 5 to 6" in problem
    change_run(store, manifest=run.manifest)
    assert verify(store, CAMPAIGN).problems == []


@pytest.mark.parametrize("spoilt", [b"", b"{", b'{"generation": 1}', None])
def test_verify_finds_a_spoilt_latest_json(tmp_path: Path, spoilt):
    """Plain readers of a folder read the copy; our own readers its generations."""
    store = FolderStorage(tmp_path)
    refresh(store, pair_ids(4))
    plain = tmp_path / layout.pointer(CAMPAIGN)
    plain.unlink() if spoilt is None else plain.write_bytes(spoilt)
    (problem,) = verify(store, CAMPAIGN).problems
    assert "latest.json: is not what was published" in problem
    refresh(store, pair_ids(4), "new")
    assert verify(store, CAMPAIGN).problems == []


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
    assert (done.rows, done.changed_rows, done.fetched, done.note) == (12, 3, 3, "")


def test_pull_since_a_run_that_is_gone_says_so_and_compares_everything(store: Storage, tmp_path: Path):
    before = refresh(store, pair_ids(8))
    refresh(store, pair_ids(12))
    remove_run(store, before.document)
    done = pull(store, CAMPAIGN, tmp_path, since=before.run_id)
    assert f"everything was compared, since run {before.run_id} cannot be read" in done.note
    assert (done.rows, done.changed_rows, done.fetched) == (12, 8, 8)
    with pytest.raises(StoreError, match="not a run id"):
        pull(store, CAMPAIGN, tmp_path, since="yesterday")


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


def test_a_pull_goes_on_with_what_is_good_and_names_the_rest(store: Storage, tmp_path: Path):
    refresh(store, pair_ids(8), "old")
    pull(store, CAMPAIGN, tmp_path)
    after = refresh(store, pair_ids(8), "new")
    gone, damaged = [row["uri"] for row in open_published(store, CAMPAIGN).rows() if row["uri"]][:2]
    data = [store.read(uri) for uri in (gone, damaged)]
    store.delete(gone)
    store.put(damaged, b"damaged")
    done = pull(store, CAMPAIGN, tmp_path)
    assert sorted(done.problems) == sorted([f"{gone} is missing", f"{damaged} is not what its row says"])
    assert (done.run_id, done.fetched, done.unavailable) == (after.run_id, done.changed_rows - 2, 2)
    assert open_published(FolderStorage(tmp_path), CAMPAIGN).run.run_id == after.run_id
    assert not (tmp_path / damaged).exists()
    for uri, whole in zip((gone, damaged), data, strict=True):
        store.put(uri, whole)
    done = pull(store, CAMPAIGN, tmp_path)
    assert (done.fetched, done.unavailable, done.problems) == (2, 0, [])
    assert verify(FolderStorage(tmp_path), CAMPAIGN).problems == []


def test_a_manifest_that_cannot_be_read_leaves_the_folder_as_it_was(store: Storage, tmp_path: Path):
    before = refresh(store, pair_ids(4), "old")
    pull(store, CAMPAIGN, tmp_path)
    store.delete(refresh(store, pair_ids(4), "new").document.manifest[0].key)
    with pytest.raises(ConsumerError, match="is gone"):
        pull(store, CAMPAIGN, tmp_path)
    assert open_published(FolderStorage(tmp_path), CAMPAIGN).run.run_id == before.run_id
    assert verify(FolderStorage(tmp_path), CAMPAIGN).problems == []


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    """Where to pull: beside a store that is a folder."""
    return tmp_path / "pulled"


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def published_files(store: Storage) -> set[str]:
    run = open_published(store, CAMPAIGN).run
    found = {row["uri"] for row in open_published(store, CAMPAIGN).rows() if row["uri"]} | {file.key for file in run.manifest}
    return found | {layout.run_document(CAMPAIGN, run.run_id), layout.pointer(CAMPAIGN), ".pull.lock"}


def test_a_pull_is_a_mirror_and_takes_nothing_that_it_did_not_bring(store: Storage, dest: Path):
    refresh(store, pair_ids(12))
    pull(store, CAMPAIGN, dest)
    stray = f"objects/00/{'0' * 64}.webp"
    foreign = {"notes.txt", ".DS_Store", stray, f"{layout.CAMPAIGNS}notes/a.parquet"}
    for name in foreign:
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        (dest / name).write_text("mine")
    before = published_files(store)
    refresh(store, pair_ids(4))
    gone = {name for name in before - published_files(store) if name.startswith("objects/")}
    done = pull(store, CAMPAIGN, dest)
    assert len(gone) == 5
    assert (done.withdrawn, done.fetched) == (len(gone), 0)
    assert files_in(dest) == published_files(store) | foreign
    assert pull(store, CAMPAIGN, dest).withdrawn == 0


def test_withdrawn_creatives_stay_where_they_were_asked_to_until_a_pull_without(store: Storage, dest: Path):
    refresh(store, pair_ids(12))
    pull(store, CAMPAIGN, dest)
    before = files_in(dest)
    refresh(store, pair_ids(4))
    assert pull(store, CAMPAIGN, dest, keep_withdrawn=True).withdrawn == 5
    assert before <= files_in(dest)
    refresh(store, pair_ids(4), "new")
    pull(store, CAMPAIGN, dest)
    assert files_in(dest) == published_files(store)


@pytest.mark.slow
def test_a_user_who_was_erased_leaves_the_folder(store: Storage, dest: Path):
    refresh(store, pair_ids(30))
    pull(store, CAMPAIGN, dest)
    user = first_ok(store)["pair_id"][0]
    of_user = {row["uri"] for row in open_published(store, CAMPAIGN).rows() if row["user_key"] == user_key(SECRET, user)} - {None}
    others = {row["uri"] for row in open_published(store, CAMPAIGN).rows()} - of_user - {None}
    assert forget(store, b"campaign key", [f"user-{user}"], patience_seconds=0).runs == 1
    assert pull(store, CAMPAIGN, dest).withdrawn == len(of_user) > 0
    assert files_in(dest) == published_files(store)
    assert {name for name in files_in(dest) if name.startswith("objects/")} == others


@pytest.mark.slow
def test_what_another_campaign_in_the_folder_names_stays(store: Storage, dest: Path, monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setattr("support.runs.CAMPAIGN", name)
        refresh(store, pair_ids(12))
        pull(store, name, dest)
    monkeypatch.setattr("support.runs.CAMPAIGN", "one")
    refresh(store, pair_ids(4))
    assert pull(store, "one", dest).withdrawn == 0
    assert [verify(FolderStorage(dest), name).problems for name in ("one", "two")] == [[], []]
    monkeypatch.setattr("support.runs.CAMPAIGN", "two")
    refresh(store, pair_ids(4))
    assert pull(store, "two", dest).withdrawn == 5


def test_a_killed_removal_is_finished_by_the_next_pull(tmp_path: Path, monkeypatch):
    store = FolderStorage(tmp_path / "store")
    refresh(store, pair_ids(12))
    pull(store, CAMPAIGN, tmp_path / "0")
    refresh(store, pair_ids(4), "new")
    for at in range(1, 30):
        folder = Path(shutil.copytree(tmp_path / "0", tmp_path / str(at)))
        left = iter(range(at))
        delete = FolderStorage.delete

        def dying(self, key, left=left, delete=delete):
            if next(left, None) is None:
                raise Crash
            delete(self, key)

        with monkeypatch.context() as patched:
            patched.setattr(FolderStorage, "delete", dying)
            try:
                pull(store, CAMPAIGN, folder)
            except Crash:
                pass
            else:
                break
        assert verify(FolderStorage(folder), CAMPAIGN).problems == []
        pull(store, CAMPAIGN, folder)
        assert files_in(folder) == published_files(store)
    assert at > 8


def test_two_pulls_at_once_leave_the_newest_run_whole(store: Storage, dest: Path):
    """The first reads the pointer, then a run without most of its creatives is published and pulled beside it."""
    refresh(store, pair_ids(12))
    first_in, second_done = threading.Event(), []

    class Slow(WrappedStorage):
        def act(self, name: str, *arguments):
            found = super().act(name, *arguments)
            if name == "get" and arguments[0].endswith("latest.json"):
                first_in.set()
                newest.result(timeout=30)
            return found

    def publish_and_pull() -> None:
        first_in.wait()
        refresh(store, pair_ids(4), "new")

    with ThreadPoolExecutor(3) as pool:
        newest = pool.submit(publish_and_pull)
        slow = pool.submit(pull, Slow(store), CAMPAIGN, dest)
        newest.result()
        second_done.append(pool.submit(pull, store, CAMPAIGN, dest).result())
        slow.result()
    assert files_in(dest) == published_files(store)
    assert verify(FolderStorage(dest), CAMPAIGN).problems == []


def test_an_older_copy_of_the_store_does_not_move_the_folder_back(tmp_path: Path):
    store = FolderStorage(tmp_path / "store")
    refresh(store, pair_ids(4))
    shutil.copytree(store.root, tmp_path / "old")
    after = refresh(store, pair_ids(4), "new")
    pull(store, CAMPAIGN, tmp_path / "pulled")
    with pytest.raises(ConsumerError, match=r"holds generation 2 .* is at 1"):
        pull(FolderStorage(tmp_path / "old"), CAMPAIGN, tmp_path / "pulled")
    assert open_published(FolderStorage(tmp_path / "pulled"), CAMPAIGN).run.run_id == after.run_id


@pytest.mark.parametrize("uri", ["../../outside.webp", "objects/../../outside.webp", "/tmp/outside.webp", "latest.json"])
def test_a_pull_never_writes_outside_its_folder(store: Storage, tmp_path: Path, uri: str):
    rows = make_rows(store, pair_ids(2))
    publish_rows(store, with_values(rows, uri=[uri, rows["uri"][1].as_py()]))
    done = pull(store, CAMPAIGN, tmp_path / "a" / "b")
    assert (done.fetched, done.unavailable) == (1, 1)
    assert "is not the key of an object" in done.problems[0]
    outside = [path for path in (tmp_path / "a").iterdir() if path.name != "b"]
    assert (outside, list(tmp_path.glob("outside*"))) == ([], [])


def test_a_store_is_no_destination(tmp_path: Path):
    store = FolderStorage(tmp_path)
    refresh(store, pair_ids(2))
    with pytest.raises(ConsumerError, match="pull into another folder"):
        pull(store, CAMPAIGN, tmp_path)
