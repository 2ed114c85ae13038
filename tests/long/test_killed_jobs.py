"""Jobs that are really killed: a driver dies by SIGKILL, the same command goes on, and nobody could tell."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from support.dying_job import MOMENTS
from support.jobs import (
    CAMPAIGN,
    NUM_PAIRS,
    PER_SHARD,
    ROOT,
    assert_published_as,
    command,
    end,
    make_inputs,
    ray_nodes,
    refresh,
    shards_done,
    start,
    wait_until,
)

from adgen.creatives.publish import read_pointer
from adgen.creatives.stores import open_storage

pytestmark = [pytest.mark.kill, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Shop and model, shared by all tests."""
    return make_inputs(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def address():
    """A cluster of one node that outlives its jobs, as in production."""
    with ray_nodes(1) as (found, _):
        yield found


@pytest.fixture(scope="module")
def undisturbed(inputs, address):
    """The store of a run that nothing happened to."""
    store = inputs / "undisturbed"
    assert refresh(inputs, store, "--address", address)["engine_calls"] == NUM_PAIRS
    return store


WATCHED = {
    "during the plan": lambda store: any(store.glob("campaigns/c/runs/*/run.json")),
    "mid-shards": lambda store: shards_done(store) >= 2,
}


@pytest.mark.parametrize(("moment", "own_ray"), [("during the plan", False), ("mid-shards", True)])
def test_a_killed_driver_loses_nothing_and_doubles_nothing(inputs, undisturbed, address, tmp_path, moment, own_ray):
    """On a cluster that outlives it, and with a Ray of its own that it leaves behind."""
    store, where = tmp_path / "store", [] if own_ray else ["--address", address]
    process = start(command(inputs, store, *where))
    wait_until(process, lambda: WATCHED[moment](store))
    process.kill()
    process.communicate()
    done = shards_done(store)
    again = refresh(inputs, store, *where)
    assert (again["published"], again["pairs"]) == (True, NUM_PAIRS)
    # At most what was in flight is made again; zombies of the killed driver may even have committed some of it.
    assert again["engine_calls"] <= NUM_PAIRS - done * PER_SHARD
    assert_published_as(undisturbed, store)


def test_a_driver_killed_around_the_publish_loses_nothing_and_doubles_nothing(inputs, undisturbed, address, tmp_path):
    """One run that dies again and again: readers see nothing of it until the swap, and all of it from then on."""
    store, dying = tmp_path / "store", ROOT / "tests" / "support" / "dying_job.py"
    for moment in MOMENTS:
        words = command(inputs, store, "--address", address, script=dying)
        end(start([*words[:2], moment, *words[2:]]), -signal.SIGKILL)
        assert shards_done(store) == NUM_PAIRS // PER_SHARD
        pointer, _ = read_pointer(open_storage(store), CAMPAIGN)
        assert (pointer is not None) == (moment == "after the swap")
    again = refresh(inputs, store, "--address", address)
    assert (again["published"], again["engine_calls"]) == (True, 0)
    assert read_pointer(open_storage(store), CAMPAIGN)[0].generation == 1
    assert_published_as(undisturbed, store)


def test_an_actor_killed_mid_run_costs_nothing(inputs, undisturbed, tmp_path):
    """The engine's process dies; Ray starts another one and the shard is done again."""
    store = tmp_path / "store"
    process = start(command(inputs, store))
    wait_until(process, lambda: shards_done(store) >= 1)
    engines = engine_processes(process.pid)
    assert engines, "no engine process was found to kill"
    for pid in engines:
        os.kill(pid, signal.SIGKILL)
    assert end(process)[0]["published"]
    assert_published_as(undisturbed, store)


def engine_processes(session: int) -> list[int]:
    """Ray workers below our own job (and no one else's) that run the engine, by their title."""
    workers = psutil.Process(session).children(recursive=True)
    return [w.pid for w in workers if any("Generate" in part for part in w.cmdline())]


def test_a_lost_node_costs_nothing(inputs, undisturbed, tmp_path):
    """Of two nodes with an engine each, one goes mid-run."""
    store = tmp_path / "store"
    with ray_nodes(2) as (address, kill_last):
        process = start(command(inputs, store, "--cluster.actors", "2"), RAY_ADDRESS=address)
        wait_until(process, lambda: shards_done(store) >= 2)
        assert kill_last(), "nothing ran on the lost node"
        assert shards_done(store) < NUM_PAIRS // PER_SHARD
        assert end(process)[0]["published"]
    assert_published_as(undisturbed, store)


def test_a_head_that_dies_ends_the_job_with_its_reason_and_the_next_run_goes_on(inputs, undisturbed, address, tmp_path):
    """One campaign has failed before, one is in work, one was not tried. Paths are of the folder where the command is given."""
    store = tmp_path / "store"
    for name in (CAMPAIGN, "last"):
        (tmp_path / name).symlink_to(inputs / "shop")
    where = "--inputs", os.path.relpath(tmp_path / "{campaign}")
    with ray_nodes(1) as (head, kill_last):
        process = start([*command(inputs, store, *where, "--address", head), "--campaign", "first", CAMPAIGN, "last"])
        wait_until(process, lambda: shards_done(store) >= 1)
        kill_last()
        outcome, told = end(process, 1)
    assert outcome["not_tried"] == ["last"]
    assert not outcome["published"]
    assert "missing" in outcome["campaigns"]["first"]["error"]
    reason = outcome["campaigns"][CAMPAIGN]["error"]
    assert "has not answered for" in reason
    assert f"refresh: {reason}" in told
    assert outcome["campaigns"]["last"]["error"] == f"not tried: {reason}"
    done = shards_done(store)
    relative = [Path(os.path.relpath(folder)) for folder in (inputs, store)]
    again = refresh(*relative, *where, "--address", address)
    assert again["engine_calls"] <= NUM_PAIRS - done * PER_SHARD
    assert_published_as(undisturbed, store)


def test_of_two_jobs_of_one_campaign_one_publishes_and_the_other_names_it(inputs, undisturbed, address, tmp_path):
    store = tmp_path / "store"
    jobs = [start(command(inputs, store, "--address", address)) for _ in range(2)]
    while all(job.poll() is None for job in jobs):
        time.sleep(0.1)
    loser, winner = jobs if jobs[0].poll() is not None else jobs[::-1]
    outcome, told = end(loser, 1)
    assert f":{winner.pid}:" in outcome["error"]
    assert "is driven by" in " ".join(told.split())
    assert end(winner)[0]["engine_calls"] == NUM_PAIRS
    assert_published_as(undisturbed, store)
