"""Engines of several ranks on Ray: the same creatives, no deadlock on a small cluster, a lost rank replaced, nothing left."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table
from support.here import without_ray
from support.processes import own_processes
from support.progress import Silent
from support.refreshes import creatives, run, settings

from adgen.errors import EngineLost, ModelError, RunError
from adgen.on_ray.cluster import num_engines, slot_resources
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.refresh import ranks
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.ranks import GenerateTogether, remove_groups
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.rows import raise_row_error

SIZES = {"plan": {"pairs_per_shard": 2}}
TOGETHER = {"tensor_parallel": 2, "timeout_seconds": 20}


@pytest.fixture(scope="module")
def unsharded(shop, model, tmp_path_factory):
    """The creatives of one rank, made without Ray."""
    made = settings(shop, str(tmp_path_factory.mktemp("unsharded")), model, **SIZES)
    with without_ray():
        assert run(made).published
    return creatives(made)


@pytest.mark.long
def test_three_engines_of_two_ranks_share_two_slots_without_deadlock(ray_cluster, shop, model, unsharded, tmp_path):
    """One of them gets its slots, the others wait and hold none. The creatives are those of one rank without DeepSpeed."""
    made = settings(shop, str(tmp_path), model, cluster={"actors": 3}, engine=TOGETHER | {"deepspeed": True}, **SIZES)
    assert run(made).published
    assert creatives(made) == unsharded
    assert_nothing_is_left()


class Killing(Silent):
    """SIGKILLs the rank that follows when a shard is done, and the stage that leads when the next group has done one."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def advance(self, pairs: int) -> None:
        following = own_processes("_Rank.serve")
        if not self.killed:
            self.kill(*following)
        elif len(self.killed) == 1 and {process.pid for process in following} - set(self.killed):
            self.kill(*own_processes("GenerateTogether"))

    def kill(self, process: psutil.Process) -> None:
        process.send_signal(signal.SIGKILL)
        self.killed.append(process.pid)


def test_a_killed_rank_and_a_killed_leader_cost_no_creative(ray_cluster, shop, model, unsharded, tmp_path):
    made = settings(shop, str(tmp_path), model, engine=TOGETHER, **SIZES)
    killing = Killing()
    assert refresh(made, killing).published
    assert len(killing.killed) == 2
    assert creatives(made) == unsharded
    assert_nothing_is_left()


def assert_nothing_is_left() -> None:
    """No rank runs and no slot is reserved."""
    deadline = time.monotonic() + 30
    while reserved() or own_processes("_Rank"):
        assert time.monotonic() < deadline, (reserved(), own_processes("_Rank"))
        time.sleep(0.1)


def reserved() -> list[dict]:
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


# -- the group itself, with ranks that do what a test wants ------------------------------------------------------------


def scripted_rank() -> type:
    """Rank 1 dies while there are marks in a folder, one a death; rank 0 hangs as long. Pickled by value: a worker that
    had to import this module would take seconds."""

    @ray.remote
    class ScriptedRank:
        def __init__(self, context: Context, rank: int):
            self.marks = Path(context.run_id)
            self.num_slots = context.settings.engine.num_slots

        def meeting_point(self) -> tuple[str, int]:
            return "here", 1

        def start(self, address: str, port: int) -> None:
            assert (address, port) == ("here", 1)

        def serve(self) -> None:
            for mark in self.marks.iterdir():
                mark.unlink()
                os._exit(1)
            (self.marks.parent / "well").touch()
            time.sleep(600)

        def generate(self, row: dict) -> dict:
            if row["index"] == 666:
                raise ModelError("not this one")
            if self.num_slots > row.get("fits", self.num_slots):
                raise RunError(f"out of memory with engine.num_slots {self.num_slots} on 2 rank(s)")
            while not (self.marks.parent / "well").exists():
                time.sleep(0.05)
            return row | {"made": True}

    return ScriptedRank


@pytest.fixture
def stage(ray_cluster, tmp_path, monkeypatch):
    """Makes a stage whose groups lose rank 1 `deaths` times."""
    monkeypatch.setattr(ranks, "_Rank", scripted_rank())
    monkeypatch.setattr(ranks, "_prefix", lambda run_id: "scripted-")
    monkeypatch.setattr(ranks, "_GRACE_SECONDS", 0.5)  # a scripted rank 0 never notices
    marks = tmp_path / "marks"
    marks.mkdir()

    def make(deaths: int, num_slots: int = 1000) -> GenerateTogether:
        for number in range(deaths):
            (marks / str(number)).touch()
        made = RefreshSettings(device="cpu", engine={"tensor_parallel": 2, "num_slots": num_slots})
        return GenerateTogether(Context(made, str(marks), "", ""))

    yield make
    remove_groups("")
    assert_nothing_is_left()


def test_a_group_that_loses_a_rank_is_replaced(stage):
    lossy = stage(deaths=1)
    assert lossy({"index": 1}) == {"index": 1, "made": True}
    assert len(own_processes("ScriptedRank")) == 2


def test_a_group_that_is_lost_again_and_again_ends_the_run_with_what_to_do(stage):
    told = stage(deaths=99)({"index": 1})
    with pytest.raises(EngineLost, match=r"2 tensor-parallel ranks was lost 3 times in a row: .*start it again when"):
        raise_row_error(told)


def test_a_group_without_memory_is_followed_by_one_with_half_the_slots(stage):
    large = stage(deaths=0, num_slots=4)
    assert large({"index": 1, "fits": 1}) == {"index": 1, "fits": 1, "made": True}
    assert large.context.settings.engine.num_slots == 1, "from 4, by halves; which are no tries"
    with pytest.raises(EngineLost, match=r"out of memory with engine\.num_slots 1 on"):
        raise_row_error(large({"index": 1, "fits": 0}))


def test_a_refused_request_leaves_the_group_as_it_is(stage):
    well = stage(deaths=0)
    with pytest.raises(ModelError, match="not this one"):
        raise_row_error(well({"index": 666}))
    before = well.ranks
    assert well({"index": 1})["made"]
    assert well.ranks is before


def test_an_engine_counts_all_its_slots(ray_cluster):
    unset = ClusterSettings()
    assert [num_engines(unset, "cpu", ranks) for ranks in (1, 2)] == [1, 1]
    assert num_engines(ClusterSettings(actors=5), "cpu", 2) == 5
    with pytest.raises(RunError, match=r"tensor_parallel is 3, but the cluster has 2 CPUs: lower it, or .* set cluster\.actors"):
        num_engines(unset, "cpu", 3)
    assert slot_resources("cuda", 4) == {"CPU": 1, "GPU": 1}
