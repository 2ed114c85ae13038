"""Two of the kills of tests/long/kills.py, at acts on the store that are always the same."""

import os

import pytest
import ray
from support.kills.cluster import Cluster
from support.kills.kill import Draw, do_kill
from support.kills.scene import Scene

pytestmark = [pytest.mark.kill, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory, s3_access) -> Scene:
    return Scene(tmp_path_factory.mktemp("kills"), s3_access).prepare(with_engine=False)


@pytest.mark.parametrize("number", [94, 23])
def test_a_killed_command_given_again_leaves_what_an_undisturbed_one_does(scene, ray_cluster, number):
    """A refresh into a folder that dies as it makes its plan; an erasure from S3 beside a rollback."""
    cluster = Cluster(ray.get_runtime_context().gcs_address, os.getpid())
    outcome = do_kill(scene, cluster, Draw.of(1, number))
    assert outcome.killed
    assert outcome.faults == []
