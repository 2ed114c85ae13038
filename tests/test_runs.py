"""Runs: who drives one, what is resumed, and how a shard is committed once."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import (
    CAMPAIGN,
    LossyStorage,
    WrappedStorage,
    begin,
    commit_plan,
    do_shards,
    pair_ids,
    refresh,
)

from adgen.creatives.folder import FolderStorage
from adgen.creatives.journal import Journal
from adgen.creatives.publish import finish, read_pointer
from adgen.creatives.runs import Run, list_runs, read_run
from adgen.creatives.storage import Storage, Taken
from adgen.errors import OwnedElsewhere, StoreError


def state_of(storage: Storage, run_id: str) -> str:
    return read_run(storage, CAMPAIGN, run_id).state


def check_for(run: Run, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        run.check()
        time.sleep(0.02)


# -- start or resume -------------------------------------------------------------------------------------------


def test_run_json_says_how_the_run_is_made(store: Storage):
    run = begin(store, settings={"limit": 3}, digests={"model": "d"}, versions={"adgen": "1"}, key_ids={"user": "0a"})
    document = read_run(store, CAMPAIGN, run.run_id)
    assert (document.state, document.resume_key, document.settings) == ("RUNNING", "tonight", {"limit": 3})
    assert (document.digests, document.versions, document.key_ids) == ({"model": "d"}, {"adgen": "1"}, {"user": "0a"})
    assert str(os.getpid()) in document.owner


def test_the_same_key_resumes_and_another_key_starts_anew(store: Storage):
    first = begin(store)
    commit_plan(first, pair_ids(4))
    again = begin(store)
    assert (again.run_id, again.resumed) == (first.run_id, True)
    other = begin(store, "tomorrow")
    assert not other.resumed
    commit_plan(other, pair_ids(4))
    assert begin(store, "tomorrow").run_id == other.run_id
    assert [run.run_id for run in list_runs(store, CAMPAIGN)] == [other.run_id, first.run_id]


def test_a_run_that_an_earlier_version_named_otherwise_is_resumed_and_renamed(store: Storage):
    """And what stood in run.json, a hash over the histories' files without a key, stands there no more."""
    first = begin(store, "0" * 64)
    commit_plan(first, pair_ids(4))
    assert not begin(store, "1" * 32, formerly="2" * 64, end_planned=False).resumed
    again = begin(store, "1" * 32, formerly="0" * 64)
    assert (again.run_id, again.resumed) == (first.run_id, True)
    assert read_run(store, CAMPAIGN, first.run_id).resume_key == "1" * 32
    assert begin(store, "1" * 32).run_id == first.run_id


def test_who_claims_a_campaign_ends_its_other_unfinished_runs(store: Storage):
    """Their drivers, when they wake, find them ended; they are not resumed by their own command either."""
    first = begin(store)
    commit_plan(first, pair_ids(4))
    other = begin(store, "tomorrow", patience_seconds=0.2)
    ended = read_run(store, CAMPAIGN, first.run_id)
    assert (ended.state, ended.owner, ended.note) == ("ABANDONED", None, f"run {other.run_id} took its place")
    with pytest.raises(OwnedElsewhere, match="driven by nobody, state ABANDONED"):
        first.beat()
    assert begin(store).run_id not in (first.run_id, other.run_id)


def test_a_living_run_of_another_key_stops_the_newcomer(store: Storage):
    first = begin(store)
    commit_plan(first, pair_ids(4))
    with first.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere, match=first.owner):
        begin(store, "tomorrow", patience_seconds=5.0)
    assert state_of(store, first.run_id) == "RUNNING"


def test_a_published_run_whose_driver_could_not_say_so_is_not_ended(store: Storage):
    run = begin(store)
    do_shards(commit_plan(run, pair_ids(4)))
    run.storage = SwapsNoMore(store, run.key)
    with pytest.raises(StoreError, match="killed here"):
        finish(run)
    begin(store, "tomorrow")
    document = read_run(store, CAMPAIGN, run.run_id)
    assert (document.state, document.pointer, document.generation) == ("COMPLETE", "moved", 1)
    assert read_pointer(store, CAMPAIGN)[0].run_id == run.run_id


class SwapsNoMore(WrappedStorage):
    """run.json cannot be written any more once the pointer moved."""

    def __init__(self, inner: Storage, key: str):
        super().__init__(inner)
        self.key, self.moved = key, False

    def act(self, name: str, *arguments):
        if name == "swap" and arguments[0] == self.key and self.moved:
            raise StoreError("killed here")
        self.moved |= name == "swap" and arguments[0].endswith("latest.json")
        return super().act(name, *arguments)


def test_a_driver_that_was_ended_before_it_moved_the_pointer_moves_it_back(store: Storage):
    class Sleeps(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "swap" and arguments[0].endswith("latest.json") and not newcomers:
                newcomers.append(begin(store, "tomorrow"))
            return super().act(name, *arguments)

    newcomers: list[Run] = []
    published = refresh(store, pair_ids(4))
    late = begin(store, "late")
    do_shards(commit_plan(late, pair_ids(4)), "late")
    late.storage = Sleeps(store)
    with pytest.raises(OwnedElsewhere, match="state ABANDONED"):
        finish(late)
    assert read_pointer(store, CAMPAIGN)[0].run_id == published.run_id
    assert state_of(store, newcomers[0].run_id) == "RUNNING"


def test_a_run_without_a_plan_is_abandoned_never_resumed(store: Storage):
    first = begin(store)
    Journal(store, CAMPAIGN, first.run_id).write_plan_part(0, pa.table({"pair_id": pair_ids(2)}))
    second = begin(store)
    assert not second.resumed
    assert state_of(store, first.run_id) == "ABANDONED"
    with pytest.raises(OwnedElsewhere):
        first.beat()


def test_a_finished_run_is_not_resumed(store: Storage):
    first = refresh(store, pair_ids(4))
    assert begin(store).run_id != first.run_id


@pytest.mark.parametrize("state", ["HELD", "FAILED", "PARTIAL"])
def test_an_ended_run_is_not_resumed(store: Storage, state: str):
    run = begin(store)
    commit_plan(run, pair_ids(4))
    run.end(state, "why")
    assert (state_of(store, run.run_id), read_run(store, CAMPAIGN, run.run_id).note) == (state, "why")
    assert not begin(store).resumed


# -- two drivers -----------------------------------------------------------------------------------------------


def test_a_second_driver_stops_and_names_the_owner(store: Storage):
    first = begin(store)
    commit_plan(first, pair_ids(4))
    with first.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere, match=first.owner):
        begin(store, patience_seconds=5.0)
    first.check()
    first.beat()


def test_a_second_driver_waits_for_a_run_that_is_still_planning(store: Storage):
    first = begin(store)
    with first.beating(every_seconds=0.05), pytest.raises(OwnedElsewhere, match=first.owner):
        begin(store, patience_seconds=5.0)
    assert state_of(store, first.run_id) == "RUNNING"


def test_a_still_owner_loses_the_run_and_notices_at_its_next_beat(store: Storage):
    first = begin(store)
    commit_plan(first, pair_ids(4))
    second = begin(store, patience_seconds=0.2)
    assert (second.run_id, second.resumed) == (first.run_id, True)
    with pytest.raises(OwnedElsewhere, match=second.owner):
        first.beat()
    with pytest.raises(OwnedElsewhere):
        first.check()
    second.beat()


def test_the_heartbeat_thread_tells_the_driver_that_the_run_is_lost(store: Storage):
    first = begin(store)
    commit_plan(first, pair_ids(4))
    with first.beating(every_seconds=0.3):
        second = begin(store, patience_seconds=0.0)
        with pytest.raises(OwnedElsewhere, match=second.owner):
            check_for(first, seconds=10)


def test_a_released_run_is_resumed_without_waiting(store: Storage):
    first = begin(store)
    commit_plan(first, pair_ids(4))
    first.release("disk full")
    started = time.monotonic()
    assert begin(store, patience_seconds=30.0).run_id == first.run_id
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("planned", [False, True], ids=["new run", "after a crash"])
def test_drivers_that_start_at_once_leave_one_and_the_others_name_it(store: Storage, planned: bool):
    if planned:
        commit_plan(begin(store), pair_ids(4))

    def attempt(_: int) -> str:
        start.wait()
        try:
            return begin(store, patience_seconds=2.0).owner  # a busy disk holds a live driver up for tenths
        except OwnedElsewhere as error:
            return f"stopped: {error}"

    start = threading.Barrier(5)
    with ThreadPoolExecutor(5) as pool:
        outcomes = list(pool.map(attempt, range(5)))
    winners = [outcome for outcome in outcomes if not outcome.startswith("stopped")]
    assert len(winners) == 1
    assert all(f"driven by {winners[0]}" in outcome for outcome in outcomes if outcome != winners[0])
    assert [run.owner for run in list_runs(store, CAMPAIGN)] == winners


def test_a_driver_between_its_first_two_writes_is_not_overrun(store: Storage):
    """It has claimed the campaign, and its run.json appears only while the second driver waits."""

    class Slow(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "swap" and arguments[0].endswith("run.json"):
                claimed.set()
                time.sleep(0.3)
            return super().act(name, *arguments)

    claimed = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(begin, Slow(store))
        claimed.wait(10)
        with pytest.raises(OwnedElsewhere):
            begin(store, patience_seconds=5.0)
        assert first.result().owner


# -- a network that loses answers ------------------------------------------------------------------------------


def test_a_lost_answer_to_a_heartbeat_loses_nothing(store: Storage):
    run = begin(LossyStorage(store))
    for _ in range(3):
        run.beat()
    assert read_run(store, CAMPAIGN, run.run_id).heartbeat == 3


def test_a_beat_that_arrived_while_the_store_was_dark_is_adopted(store: Storage):
    """The swap came through, its answer and the look afterwards did not: the next update builds on it."""

    class Dark(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "swap":
                super().act(name, *arguments)
            raise StoreError("no route")

    run = begin(store)
    run.storage = Dark(store)
    with pytest.raises(StoreError, match="no route"):
        run.update(note="written in the dark")
    run.storage = store
    run.beat()
    document = read_run(store, CAMPAIGN, run.run_id)
    assert (document.heartbeat, document.note, document.owner) == (2, "written in the dark", run.owner)


def test_a_store_that_stays_dark_ends_the_driver(store: Storage):
    class Dark(WrappedStorage):
        def act(self, name: str, *arguments):
            raise StoreError("no route")

    run = begin(store)
    run.storage = Dark(store)
    with run.beating(every_seconds=0.02, patience_seconds=0.1):
        time.sleep(0.5)
        with pytest.raises(StoreError, match=r"no heartbeat for .*no route"):
            run.check()


def test_a_write_that_the_store_keeps_refusing_is_an_error(store: Storage):
    """Though nobody else wrote: it answers 409 again and again."""

    class Refuses(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "swap":
                raise Taken("409")
            return super().act(name, *arguments)

    run = begin(store)
    run.storage = Refuses(store)
    with pytest.raises(StoreError, match="refuses every write"):
        run.update(note="refused")
    run.storage = store
    run.update(note="taken")
    assert read_run(store, CAMPAIGN, run.run_id).note == "taken"


def test_a_heartbeat_survives_any_error_of_the_system_and_says_so(folder_store: Storage, caplog: pytest.LogCaptureFixture):
    class NoHandles(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "swap" and len(failed) < 2:
                failed.append(name)
                raise OSError(errno.EMFILE, "Too many open files")
            return super().act(name, *arguments)

    failed: list[str] = []
    run = begin(folder_store)
    run.storage = NoHandles(folder_store)
    with run.beating(every_seconds=0.02):
        deadline = time.monotonic() + 10
        while read_run(folder_store, CAMPAIGN, run.run_id).heartbeat < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    run.check()
    assert "Too many open files" in caplog.text


@pytest.mark.parametrize("at", ["before it looks", "between look and write", "while it refreshes the copy"])
def test_a_beat_revives_no_removed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str):
    store = FolderStorage(tmp_path)
    run = begin(store)
    run.beat()
    remove = lambda: FolderStorage(tmp_path).drop(run.key)  # noqa: E731
    if at == "before it looks":
        remove()
    elif at == "between look and write":
        _do_first(monkeypatch, "_link", remove)
    else:
        store.swap(
            run.key, run.document.model_copy(update={"owner": "another", "heartbeat": 9}).to_bytes(), store.get(run.key).etag
        )
        _do_first(monkeypatch, "_replace", remove)
        (tmp_path / run.key).unlink()  # so that the copy is made again
    with pytest.raises(OwnedElsewhere):
        run.beat()
    assert store.get(run.key) is None
    assert list_runs(store, CAMPAIGN) == []


def _do_first(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Let `act` happen just before the next call of FolderStorage's method."""
    real = getattr(FolderStorage, name)

    def act_first(self, *arguments):
        monkeypatch.setattr(FolderStorage, name, real)
        act()
        return real(self, *arguments)

    monkeypatch.setattr(FolderStorage, name, act_first)


_DRIVER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from support.runs import begin, commit_plan, pair_ids
from adgen.creatives.folder import FolderStorage
run = begin(FolderStorage(sys.argv[1]))
commit_plan(run, pair_ids(12))
with run.beating(every_seconds=0.05):
    print(run.owner, flush=True)
    time.sleep(60)
"""


@pytest.mark.kill
def test_a_killed_driver_is_taken_over_and_a_living_one_is_not(tmp_path: Path):
    store = FolderStorage(tmp_path)
    command = [sys.executable, "-c", _DRIVER, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        owner = driver.stdout.readline().strip()
        with pytest.raises(OwnedElsewhere, match=owner):
            begin(store, patience_seconds=5.0)
        os.kill(driver.pid, signal.SIGKILL)
    run = begin(store, patience_seconds=0.5)
    assert (run.resumed, run.document.owner != owner) == (True, True)
    assert len(Journal(store, CAMPAIGN, run.run_id).unfinished()) == 3
