"""An address that is no Ray cluster of ours: one sentence and an exit code, soon."""

import socket
import subprocess
import sys
import time

import pytest

from adgen.errors import RunError
from adgen.on_ray.cluster import connected
from adgen.on_ray.cluster_settings import ClusterSettings

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
