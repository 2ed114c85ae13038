"""jobs/refresh.py and what surrounds a refresh: several campaigns, clean-up, and which failures leave a run to be resumed."""

import importlib
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray
from support.refreshes import run, settings
from support.runs import CarelessStorage, begin, commit_plan, pair_ids

from adgen.creatives.runs import list_runs, read_run
from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.errors import EngineLost, ModelError, OwnedElsewhere, PairError, RunError, SettingsError, StoreError
from adgen.on_ray.refresh import job as module
from adgen.on_ray.refresh import planning
from adgen.on_ray.refresh.commit import judged_counts
from adgen.on_ray.refresh.failures import FailureWatch, ended_on_failure
from adgen.on_ray.refresh.settings import FailureSettings
from adgen.on_ray.rows import as_row_error, raise_row_error

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def job():
    """jobs/refresh.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        return importlib.import_module("refresh")


def words(shop: Path, model: Path, store: Path, *more: str) -> list[str]:
    return [
        str(ROOT / "jobs" / "refresh.toml"),
        "--inputs", str(shop.parent / "{campaign}"), "--store", str(store), "--model", str(model),
        "--sampling.max-title-tokens", "8", "--finish.width", "64", "--finish.height", "64", "--finish.gates.title-empty", "warn",
        "--limit", "2", "--publish-partial", "--json", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_one_campaign_failing_does_not_stop_the_others(no_ray, job, shop, model, tmp_path, capsys):
    store = tmp_path / "store"
    assert job.main(words(shop, model, store, "--campaign", "nowhere", "shop")) == 1
    told = capsys.readouterr()
    outcome = json.loads(told.out.splitlines()[-1])
    assert outcome["published"] is False
    assert outcome["campaigns"]["nowhere"]["published"] is False
    assert "nowhere" in outcome["campaigns"]["nowhere"]["error"]
    assert (outcome["campaigns"]["shop"]["published"], outcome["campaigns"]["shop"]["pairs"]) == (True, 2)
    assert "nowhere:" in told.err
    assert verify(open_storage(store), "shop").ok == 2

    assert job.main(words(shop, model, store, "--campaign", "shop")) == 0  # one campaign: its own summary, as ever
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["carried"] == 2


def test_a_campaign_is_named_once_at_least_and_at_most(job, shop, model, tmp_path, capsys):
    assert job.main(words(shop, model, tmp_path)) == 1
    assert "gives --campaign" in capsys.readouterr().err
    assert job.main(words(shop, model, tmp_path, "--campaign", "a", "b", "a")) == 1
    assert "names a campaign twice" in capsys.readouterr().err


@pytest.mark.slow
def test_a_refresh_removes_what_is_no_longer_kept_and_goes_on_where_it_cannot(no_ray, shop, model, tmp_path, monkeypatch):
    made = settings(shop, str(tmp_path), model, plan={"limit": 2}, publish_partial=True, clean_up={"keep_runs": 2})
    summaries = [run(made) for _ in range(3)]

    def failing(*_):
        raise StoreError("access denied")

    with monkeypatch.context() as patch:
        patch.setattr(module, "clean_up", failing)
        patch.setattr(module, "finish_erasures", failing)
        summaries.append(run(made))
    again = "failed, and is tried again by the next refresh: access denied"
    assert summaries[-1].note == f"erasure {again}; clean-up {again}"
    storage = open_storage(made.store)
    assert len(list_runs(storage, made.campaign)) == 4

    summaries.append(run(made))
    assert all(summary.published for summary in summaries)
    assert summaries[-1].note == ""
    assert [found.run_id for found in list_runs(storage, made.campaign)] == [s.run_id for s in summaries[:1:-1]]
    assert verify(storage, made.campaign).ok == 2


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ModelError("no such key"), "FAILED"),
        (RunError("all pairs failed"), "FAILED"),
        (StoreError("service unavailable"), "RUNNING"),
        (EngineLost("a rank died"), "RUNNING"),
        (OwnedElsewhere("by another"), "RUNNING"),
        (KeyboardInterrupt("enough"), "RUNNING"),
    ],
)
def test_what_the_surroundings_did_leaves_the_run_to_be_resumed(folder_store: Storage, error, state):
    """And only what the other driver did leaves it to him."""
    started = begin(folder_store)
    commit_plan(started, pair_ids(4))
    with pytest.raises(type(error), match=str(error)), ended_on_failure(started):
        raise error
    there = read_run(folder_store, started.campaign, started.run_id)
    assert there.state == state
    assert (there.owner is not None) == isinstance(error, OwnedElsewhere)
    if there.owner is None:
        assert begin(folder_store, patience_seconds=60).resumed == (state == "RUNNING")


def test_a_store_that_ignores_if_none_match_is_refused_before_any_work(store_uri, request, tmp_path, monkeypatch):
    access = request.getfixturevalue("s3_access") if store_uri.startswith("s3://") else None
    storage = CarelessStorage(open_storage(store_uri, access), "create")
    monkeypatch.setattr(planning, "open_storage", lambda *_: storage)
    with pytest.raises(StoreError, match="ignores If-None-Match"):
        run(settings(tmp_path / "no shop", store_uri, tmp_path / "no model"))
    assert list(storage.entries("")) == []


def shard(rows: int, failed: int, retries: int = 0, planned: int = 0, made_ok: int = 0) -> dict:
    """Counts of a shard, of whose failed rows some are retries and some never met an engine."""
    judged = rows - retries - planned
    judged_failed = max(0, failed - retries - planned)
    return {
        "rows": rows,
        "pairs": rows,
        "failed": failed,
        "judged": judged,
        "judged_failed": judged_failed,
        "retried": retries,
        "made_ok": made_ok or rows - failed,
    }


NIGHTS = {
    "a first night whose first shard fails": (0, [shard(2, 2)], True),
    "one new pair that fails": (0, [shard(1, 1)], False),
    "one new pair that fails in all its variants": (0, [shard(3, 3) | {"pairs": 1}], False),
    "a first night without a readable picture": (0, [shard(10, 10, planned=10)], True),
    "a second night with nothing but pairs that failed before": (6, [shard(2, 2, retries=2)], False),
    "the same where nothing is carried": (0, [shard(2, 2, retries=2)], False),
    "a million carried and two failures": (1_000_000, [shard(2, 2)], False),
    "a million carried and nineteen failures": (1_000_000, [shard(10, 10), shard(9, 9)], False),
    "a million carried, and no engine makes anything": (1_000_000, [shard(10, 10), shard(10, 10)], True),
    "the same, but they failed before": (1_000_000, [shard(10, 10, retries=10)] * 5, False),
    "a retry that succeeds says that engines work": (1_000_000, [shard(20, 19, retries=1, made_ok=1)], False),
    "bad inputs beside good rows": (0, [shard(10, 6, planned=6), shard(16, 12, planned=12)], False),
    "more than half": (0, [shard(10, 0), shard(15, 15)], True),
    "less than half": (0, [shard(10, 1), shard(15, 5)], False),
    "more than half, but most are carried": (30, [shard(10, 1), shard(15, 14)], False),
}


@pytest.mark.parametrize("night", NIGHTS)
def test_a_hopeless_run_stops_and_no_other(night: str):
    """Hopeless: all of the first shard of a first night, twenty rows of engines without one good, or more than half."""
    carried, shards, stops = NIGHTS[night]
    watch = FailureWatch(FailureSettings(max_failed_share=0.5, after_rows=20), carried)
    with pytest.raises(RunError, match="nothing is published") if stops else nullcontext():
        for done in shards:
            watch.count(done)


def test_only_rows_that_an_engine_was_given_and_that_are_no_retry_are_judged():
    pairs = [
        {"fingerprint": "f", "tried_before": False},
        {"fingerprint": "f", "tried_before": False},
        {"fingerprint": "f", "tried_before": True},
        {"fingerprint": None, "tried_before": False},  # its input is bad: it has a reason from the plan
    ]
    rows = [{"status": status} for status in ("ok", "failed", "failed", "failed")]
    assert judged_counts(pairs, rows) == {"judged": 2, "judged_failed": 1, "retried": 1}


def test_a_workers_error_is_raised_as_what_it_is(ray_cluster, folder_store: Storage):
    @ray.remote
    def failing() -> None:
        raise StoreError("no space left")

    started = begin(folder_store)
    with pytest.raises(StoreError, match=r"^no space left$"), ended_on_failure(started):
        ray.get(failing.remote())


def test_a_stages_error_passes_the_stages_behind_it_and_keeps_its_kind():
    class Taken(StoreError):
        """A kind that the driver does not know."""

    @as_row_error
    def first(stage: None, row: dict) -> dict:
        raise {1: SettingsError("this"), 2: Taken("that"), 3: PairError("never", "leaves its row")}[row["index"]]

    @as_row_error
    def second(stage: None, row: dict) -> dict:
        raise AssertionError("reached")

    for index, kind, message in ((1, SettingsError, "this"), (2, StoreError, "that")):
        with pytest.raises(kind, match=message) as raised:
            raise_row_error(second(None, first(None, {"index": index})))
        assert raised.type is kind
    with pytest.raises(PairError):
        first(None, {"index": 3})
    assert raise_row_error({"index": 4}) == {"index": 4}
