"""Kills that really kill: a driver and an engine die by SIGKILL, and nobody could tell. More of them: tests/long/."""

import os
import signal

import pytest
import ray
from support.here import without_ray
from support.kills.cluster import Cluster
from support.kills.kill import Draw, do_kill
from support.kills.scene import Scene
from support.processes import own_processes
from support.progress import Silent
from support.refreshes import creatives, run, settings

from adgen.on_ray.refresh.job import refresh

pytestmark = [pytest.mark.kill, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory, s3_access) -> Scene:
    return Scene(tmp_path_factory.mktemp("kills"), s3_access).prepare(with_engine=False)


def test_a_kill_at_a_random_moment_leaves_what_an_undisturbed_run_does(scene, ray_cluster):
    """Of the hundred of long/kills.py: a refresh into S3 whose driver dies at one of its last acts on the store."""
    draw = Draw.of(1, 17)
    assert (draw.kind, draw.victim, draw.commands) == ("s3", "driver", ("refresh",))
    outcome = do_kill(scene, Cluster(ray.get_runtime_context().gcs_address, os.getpid()), draw)
    assert outcome.killed
    assert outcome.faults == []


class Killing(Silent):
    """SIGKILLs the engine when the first shard is done."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def advance(self, amount: int, numbers: str = "") -> None:
        super().advance(amount, numbers)
        if not self.killed:
            [engine] = own_processes("Map(Generate)")
            engine.send_signal(signal.SIGKILL)
            self.killed.append(self.done)


def test_an_engine_killed_mid_run_costs_nothing(ray_cluster, shop, slow_model, tmp_path):
    """Ray starts another one, and what was in flight is made again, as a process without Ray makes it."""
    undisturbed, made = (
        settings(shop, str(tmp_path / name), slow_model, plan={"pairs_per_shard": 1}) for name in ("undisturbed", "killed")
    )
    with without_ray():
        assert run(undisturbed).published
    killing = Killing()
    assert refresh(made, killing).published
    assert killing.killed == [1], "of twelve"
    assert creatives(made) == creatives(undisturbed)
