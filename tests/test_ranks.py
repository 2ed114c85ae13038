"""Engines of several ranks on Ray: the same creatives, no deadlock on a small cluster, a lost rank replaced, nothing left."""

import os
import signal
import time

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table
from test_refresh import Silent, model, published_rows, run, settings, shop  # noqa: F401

from adgen.errors import EngineLost, RunError
from adgen.on_ray import ranks
from adgen.on_ray.cluster import num_engines
from adgen.on_ray.refresh import refresh
from adgen.on_ray.settings import ClusterSettings

UNEQUAL = ("generated_at", "seconds")


def creatives(made):
    """The published rows, objects by their hash among them."""
    return {pair: {k: v for k, v in row.items() if k not in UNEQUAL} for pair, row in published_rows(made).items()}


@pytest.fixture(scope="module")
def unsharded(ray_cluster, shop, model, tmp_path_factory):  # noqa: F811
    made = settings(shop, str(tmp_path_factory.mktemp("unsharded")), model, plan={"pairs_per_shard": 3})
    assert run(made).published
    return creatives(made)


def of_two_ranks(inputs, store, model, **changes):  # noqa: F811
    changes = {"plan": {"pairs_per_shard": 3}, "engine": {"tensor_parallel": 2, "timeout_seconds": 20}} | changes
    return settings(inputs, str(store), model, **changes)


def slots_free() -> dict[str, float]:
    return {"CPU": ray.available_resources().get("CPU", 0)}


def test_two_engines_of_two_ranks_share_two_slots_without_deadlock(ray_cluster, shop, model, unsharded, tmp_path):  # noqa: F811
    """One of them gets its slots, the other waits and holds nothing."""
    made = of_two_ranks(shop, tmp_path, model, cluster={"actors": 2})
    began = time.monotonic()
    assert run(made).published
    assert time.monotonic() - began < 120
    assert creatives(made) == unsharded
    assert_nothing_is_left()


class Killing(Silent):
    """SIGKILLs one rank when the first shard is done."""

    def __init__(self, rank: int):
        super().__init__()
        self.rank, self.killed = rank, 0

    def advance(self, pairs: int) -> None:
        if not self.killed:
            self.killed = ...
        super().advance(pairs)


def assert_nothing_is_left() -> None:
    """No rank runs, no slot is taken."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        taken = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        if not taken and not rank_processes():
            return
        time.sleep(0.2)
    raise AssertionError((taken, rank_processes()))


def rank_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "_Rank" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found
