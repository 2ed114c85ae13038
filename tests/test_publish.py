"""Publishing: readers see whole runs only, whatever dies where; compaction makes the same files from the same rows."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import (
    CAMPAIGN,
    Crash,
    CrashingStorage,
    LossyStorage,
    WrappedStorage,
    begin,
    commit_plan,
    do_shards,
    pair_ids,
    refresh,
)

from adgen.creatives import layout, publish
from adgen.creatives.documents import RunDocument
from adgen.creatives.folder import FolderStorage
from adgen.creatives.publish import finish, read_pointer, rollback
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs, read_run
from adgen.creatives.storage import Storage
from adgen.errors import RunError, StoreError


def published_rows(store: Storage) -> pa.Table:
    return pa.concat_tables(open_published(store, CAMPAIGN).tables())


# -- publishing ------------------------------------------------------------------------------------------------


def test_the_first_publish_makes_generation_one(store: Storage):
    run = refresh(store, pair_ids(10))
    pointer, _ = read_pointer(store, CAMPAIGN)
    assert (pointer.generation, pointer.run_id) == (1, run.run_id)
    document = read_run(store, CAMPAIGN, run.run_id)
    assert (document.state, document.pointer, document.generation, document.owner) == ("COMPLETE", "moved", 1, None)
    assert document.manifest_digest() == pointer.manifest_digest
    counts = document.counts
    assert (counts.rows, counts.ok, counts.rejected, counts.failed) == (10, 6, 3, 1)
    assert counts.reasons == {"forbidden_word": 3, "unreadable": 1}
    assert sorted(published_rows(store)["pair_id"].to_pylist()) == sorted(pair_ids(10))


def test_each_publish_is_a_new_generation_even_of_the_same_rows(store: Storage):
    seen = set()
    for generation in (1, 2, 3):
        refresh(store, pair_ids(4))
        seen.add(store.read(layout.pointer(CAMPAIGN)))
        assert read_pointer(store, CAMPAIGN)[0].generation == generation
    assert len(seen) == 3


def test_a_partial_run_moves_the_pointer_only_when_told(store: Storage):
    held = refresh(store, pair_ids(4), partial=True)
    assert held.document.state == "PARTIAL"
    assert read_pointer(store, CAMPAIGN) == (None, None)
    shown = refresh(store, pair_ids(4), partial=True, publish_partial=True)
    assert read_pointer(store, CAMPAIGN)[0].run_id == shown.run_id
    assert shown.document.state == "PARTIAL"


@pytest.mark.slow
def test_a_run_with_under_half_of_the_published_runs_ok_rows_is_held_and_published_when_told(store: Storage):
    first = refresh(store, pair_ids(40))  # 40 rows in ten shards: 29 ok
    shrunk = refresh(store, pair_ids(16), resume_key="shrunk", min_ok_share=0.5)  # 11 ok
    assert (shrunk.document.state, read_pointer(store, CAMPAIGN)[0].run_id) == ("HELD", first.run_id)
    assert "11 rows are ok, under 50% of the 29 of the published run" in shrunk.document.note
    again = refresh(store, pair_ids(16), resume_key="shrunk", min_ok_share=0.0)
    assert again.resumed
    assert again.run_id == shrunk.run_id == read_pointer(store, CAMPAIGN)[0].run_id


@pytest.mark.slow
def test_a_run_with_half_of_the_published_runs_ok_rows_and_a_first_run_are_published(store: Storage):
    for count, key in ((40, "first"), (24, "second")):  # 29 ok, 17 ok
        run = refresh(store, pair_ids(count), resume_key=key, min_ok_share=0.5)
        assert read_pointer(store, CAMPAIGN)[0].run_id == run.run_id


def test_publishing_needs_a_sealed_run(store: Storage):
    run = begin(store)
    commit_plan(run, pair_ids(4))
    with pytest.raises(RunError, match=r"call seal\(\) first"):
        publish.publish(run)


def test_a_run_overtaken_by_another_is_held_and_names_it(store: Storage):
    slow = begin(store)
    do_shards(commit_plan(slow, pair_ids(4)))
    quick = begin(store, "other settings", end_planned=False)
    do_shards(commit_plan(quick, pair_ids(4)))
    finish(quick)
    with pytest.raises(StoreError, match=f"run {quick.run_id} was published while run {slow.run_id}"):
        finish(slow)
    assert read_run(store, CAMPAIGN, slow.run_id).state == "HELD"
    assert read_pointer(store, CAMPAIGN)[0].run_id == quick.run_id
    assert not begin(store).resumed


def test_of_two_first_publishes_one_wins(store: Storage):
    runs = []
    for key in ("one", "two"):
        runs.append(begin(store, key, end_planned=False))
        do_shards(commit_plan(runs[-1], pair_ids(4)))

    def attempt(run) -> str:
        try:
            return finish(run).run_id
        except StoreError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, runs))
    winner = read_pointer(store, CAMPAIGN)[0].run_id
    assert outcomes.count(winner) == 1
    assert sorted(run.state for run in list_runs(store, CAMPAIGN)) == ["COMPLETE", "HELD"]


def test_a_lost_response_after_a_successful_swap_is_no_error(store: Storage):
    for _ in range(2):  # the first publish and a later one
        run = begin(store)
        do_shards(commit_plan(run, pair_ids(4)))
        run.storage = LossyStorage(store)
        assert finish(run).run_id == run.run_id
        assert read_pointer(store, CAMPAIGN)[0].run_id == run.run_id
        assert read_run(store, CAMPAIGN, run.run_id).pointer == "moved"


def test_a_store_that_fails_at_the_swap_leaves_the_run_to_be_resumed(store: Storage):
    class Failing(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "swap" and arguments[0].endswith("latest.json"):
                raise StoreError("service unavailable")
            return super().act(name, *arguments)

    run = begin(store)
    do_shards(commit_plan(run, pair_ids(4)))
    run.storage = Failing(store)
    with pytest.raises(StoreError, match="service unavailable"):
        finish(run)
    again = begin(store)
    assert again.run_id == run.run_id
    assert finish(again).run_id == run.run_id


# -- a crash between every two acts ----------------------------------------------------------------------------


def titles(store: Storage) -> dict[str, str]:
    return dict(zip(*published_rows(store).select(["pair_id", "title"]).to_pydict().values(), strict=True))


@pytest.mark.slow
def test_a_crash_between_any_two_acts_of_publishing_changes_nothing(store: Storage):
    """After each, readers see the run before or the new one, whole; the same command then publishes the same rows."""
    expected = {pair: None if pair == pair_ids(3)[2] else "look" for pair in pair_ids(3)}
    published, at, crashed = {}, 0, True
    while crashed:
        run = begin(store, f"night {at}")
        do_shards(commit_plan(run, pair_ids(3)), f"look {at}")
        run.storage = CrashingStorage(store, at)
        new = {pair: title and f"look {at}" for pair, title in expected.items()}
        try:
            finish(run)
            crashed = False
        except Crash:
            if read_pointer(store, CAMPAIGN)[0]:
                assert titles(store) in (published, new)
            again = begin(store, f"night {at}")
            assert again.run_id == run.run_id
            finish(again)
        published = titles(store)
        assert published == new
        assert read_pointer(store, CAMPAIGN)[0].generation == at + 1
        at += 1
    assert at > 8


@pytest.mark.slow
def test_a_crash_between_any_two_acts_of_a_refresh_loses_and_doubles_nothing(tmp_path: Path):
    """From the first look at the store to the last write; the rows equal those of an undisturbed refresh."""
    undisturbed = FolderStorage(tmp_path / "undisturbed")
    refresh(undisturbed, pair_ids(6))
    at = 0
    while True:
        store = FolderStorage(tmp_path / str(at))
        try:
            refresh(CrashingStorage(store, at), pair_ids(6))
            break
        except Crash:
            run = refresh(store, pair_ids(6))
        assert run.document.pointer == "moved"
        assert published_rows(store).equals(published_rows(undisturbed))
        assert read_pointer(store, CAMPAIGN)[0].generation == 1
        states = [run.state for run in list_runs(store, CAMPAIGN)]
        assert sorted(states) in (["COMPLETE"], ["ABANDONED", "COMPLETE"])
        at += 1
    assert at > 20


# -- rollback --------------------------------------------------------------------------------------------------


def test_rollback_is_a_new_generation_naming_an_older_run(store: Storage):
    old, new = refresh(store, pair_ids(4), "old"), refresh(store, pair_ids(4), "new")
    assert rollback(store, CAMPAIGN, old.run_id).generation == 3
    assert "new" not in titles(store).values()
    assert rollback(store, CAMPAIGN, old.run_id).generation == 3  # already so
    assert rollback(store, CAMPAIGN, new.run_id).generation == 4
    assert refresh(store, pair_ids(4)).document.generation == 5


def test_a_rollback_during_a_refresh_makes_it_stop_at_the_swap(store: Storage):
    old = refresh(store, pair_ids(4), "old")
    refresh(store, pair_ids(4), "new")
    run = begin(store)
    do_shards(commit_plan(run, pair_ids(4)))
    rollback(store, CAMPAIGN, old.run_id)
    with pytest.raises(StoreError, match=f"run {old.run_id} was published"):
        finish(run)
    assert "new" not in titles(store).values()


def test_only_a_complete_run_with_all_its_files_is_rolled_back_to(store: Storage):
    old = refresh(store, pair_ids(4))
    partial = refresh(store, pair_ids(4), partial=True)
    refresh(store, pair_ids(4))
    with pytest.raises(StoreError, match="is PARTIAL; only a COMPLETE run"):
        rollback(store, CAMPAIGN, partial.run_id)
    with pytest.raises(StoreError, match="not there"):
        rollback(store, CAMPAIGN, layout.new_run_id())
    with pytest.raises(StoreError, match="not a run id"):
        rollback(store, CAMPAIGN, "../../up")
    store.delete(old.document.manifest[0].key)
    with pytest.raises(StoreError, match="is gone"):
        rollback(store, CAMPAIGN, old.run_id)
    assert read_pointer(store, CAMPAIGN)[0].generation == 2


def test_a_rollback_to_a_run_that_a_clean_up_takes_at_that_moment_is_undone(store: Storage):
    class TakenMeanwhile(WrappedStorage):
        def act(self, name: str, *arguments):
            result = super().act(name, *arguments)
            if name == "swap" and arguments[0].endswith("latest.json"):
                key = layout.run_document(CAMPAIGN, old.run_id)
                stored = store.get(key)
                gone = RunDocument.model_validate_json(stored.data).model_copy(update={"state": "ABANDONED"})
                if gone.to_bytes() != stored.data:
                    store.swap(key, gone.to_bytes(), stored.etag)
            return result

    old, new = refresh(store, pair_ids(4), "old"), refresh(store, pair_ids(4), "new")
    with pytest.raises(StoreError, match="is ABANDONED"):
        rollback(TakenMeanwhile(store), CAMPAIGN, old.run_id)
    assert read_pointer(store, CAMPAIGN)[0].run_id == new.run_id
