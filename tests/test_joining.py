"""An address that is no Ray cluster of ours: one sentence and an exit code, soon."""

import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from support.jobs import ray_nodes
from support.refreshes import settings

from adgen.config import FinishSettings
from adgen.errors import RunError, SettingsError
from adgen.on_ray import cluster
from adgen.on_ray.cluster import connected
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.head_watch import Watched, watching
from adgen.on_ray.refresh.planning import prepare

JOIN = """
import sys
from adgen.on_ray import cluster
from adgen.on_ray.cluster_settings import ClusterSettings
cluster.JOIN_SECONDS = 3.0
with cluster.connected(ClusterSettings(address=sys.argv[1])):
    print("joined")
"""


@pytest.fixture
def listener():
    """A port of a server that is not Ray's and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "ray job submit"),
        ("https://ray.example.com", "ray job submit"),
        ("somewhere", "not an address"),
        ("127.0.0.1:port", "not an address"),
        ("127.0.0.1:1", "does not answer"),
        ("ray://127.0.0.1:1", "does not answer"),
        ("127.0.0.1:99999", "does not answer"),
    ],
)
@pytest.mark.parametrize("by", ["settings", "RAY_ADDRESS"])
def test_a_wrong_or_dead_address_is_one_sentence(monkeypatch, address, words, by):
    monkeypatch.setattr("adgen.on_ray.cluster.ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address if by == "RAY_ADDRESS" else "")
    settings = ClusterSettings(address=address if by == "settings" else None)
    with pytest.raises(RunError, match=words) as caught, connected(settings):
        pytest.fail("joined")
    assert address in str(caught.value)


def test_a_server_that_is_not_rays_is_told_and_ends_the_process(listener):
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", JOIN, listener], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "joined" not in done.stdout
    assert f"the Ray cluster {listener} (cluster.address or RAY_ADDRESS)" in done.stderr
    assert time.monotonic() - started < 55


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie below it, and their paths have 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_cluster_of_somebody_else_found_by_auto_is_one_sentence(short_folder):
    """Another session's, in a temporary folder of its own, with a token that this process has not."""
    foreign = {"RAY_TMPDIR": str(short_folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    ours = os.environ | foreign | {"RAY_AUTH_TOKEN": "0" * 64, "RAY_NUM_REDIS_GET_RETRIES": "2"}
    join = JOIN.replace("cluster.JOIN_SECONDS = 3.0", "")
    with ray_nodes(1, **foreign):
        done = subprocess.run([sys.executable, "-c", join, "auto"], capture_output=True, text=True, timeout=120, env=ours)
    assert done.returncode != 0
    assert "joined" not in done.stdout
    assert "adgen.errors.RunError: the Ray cluster auto (cluster.address or RAY_ADDRESS) cannot be joined: " in done.stderr
    assert done.stderr.count("token is missing or incorrect") == 1, "Ray says it each second"


def test_what_workers_get_has_whole_paths_and_digests_are_of_what_was_given(shop, model, tmp_path, monkeypatch):
    """A shop's nights do not change with the folder that they are started in; a font's path is a creative's, as it was given."""
    monkeypatch.chdir(tmp_path)
    finish = FinishSettings(label_font="font.ttf")
    given = settings(Path(os.path.relpath(shop)), "store", Path(os.path.relpath(model)), finish=finish)
    there = settings(shop, str(tmp_path / "store"), model, finish=finish)
    made, same = prepare(given), prepare(there)
    assert (made.settings.inputs, made.settings.store) == (str(tmp_path / os.path.relpath(shop)), str(tmp_path / "store"))
    assert (made.settings.model.resolve(), made.settings.finish.label_font) == (model.resolve(), str(tmp_path / "font.ttf"))
    assert made.creative_digests == same.creative_digests == given.creative_digests(made.model)
    assert (made.model_digest, made.resume_key, made.settings_digest) == (same.model_digest, same.resume_key, same.settings_digest)


# -- a head that dies ----------------------------------------------------------------------------------------------------


def watched(patience: float) -> tuple[socket.socket, Watched]:
    """A process that answers, until its socket is closed."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    return server, Watched("the head", "127.0.0.1", server.getsockname()[1], patience)


@pytest.fixture
def asked_often(monkeypatch):
    monkeypatch.setattr("adgen.on_ray.head_watch.ASK_SECONDS", 0.02)


def test_whoever_stops_to_answer_is_named_once(asked_often):
    (alive, first), (dying, second) = watched(0.1), watched(0.1)
    losses = []
    with alive, watching([first, second], losses.append):
        time.sleep(0.3)
        assert losses == []
        dying.close()
        deadline = time.monotonic() + 60
        while not losses and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
    [error] = losses
    assert f"the head at 127.0.0.1:{second.port} has not answered for" in str(error)


def test_who_is_back_in_time_was_not_lost(asked_often):
    server, head = watched(120.0)
    losses = []
    with watching([head], losses.append):
        server.close()
        time.sleep(0.2)
        with socket.create_server(("127.0.0.1", head.port), backlog=64):
            time.sleep(0.2)
    assert losses == []


def test_two_misses_on_a_machine_that_stood_still_are_no_loss(asked_often, monkeypatch):
    answers = itertools.cycle([False, False, True])
    monkeypatch.setattr(Watched, "answers", lambda _: next(answers))
    losses = []
    with watching([Watched("the head", "127.0.0.1", 1, 0.0)], losses.append):
        time.sleep(0.4)
        assert losses == []
        monkeypatch.setattr(Watched, "answers", lambda _: False)
        deadline = time.monotonic() + 60
        while not losses and time.monotonic() < deadline:
            time.sleep(0.02)
    assert len(losses) == 1


def test_nobody_is_watched_after_the_block(asked_often):
    server, head = watched(0.05)
    losses = []
    with watching([head], losses.append):
        pass
    server.close()
    time.sleep(0.3)
    assert losses == []


def test_a_ray_of_our_own_that_cannot_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def too_busy(**options):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_busy)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = r"^Ray cannot start on this machine: The current node timed out during startup\. Is it"
    with pytest.raises(RunError, match=said), connected(ClusterSettings()):
        pass


def test_a_gpu_that_this_machine_has_not_is_asked_for_in_vain_and_waited_for_on_a_cluster_that_may_grow(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert [cluster.cluster_device(wanted) for wanted in ("auto", "cpu", "cuda")] == ["cpu", "cpu", "cuda"]
    monkeypatch.setattr(cluster, "_own_ray", threading.Event())
    cluster._own_ray.set()
    with pytest.raises(SettingsError, match="device is cuda, but Ray finds no GPU on this machine"):
        cluster.cluster_device("cuda")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    assert [cluster.cluster_device(wanted) for wanted in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
