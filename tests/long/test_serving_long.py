"""The service, the long proofs: models change, engines die, the store goes away, all ends; nobody loses a request."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from support.jobs import make_inputs
from support.models import save_small_model
from support.refreshes import run, settings
from support.serving import HeldReplica, free_port, held_file, until

from adgen.creatives.reading import open_published
from adgen.creatives.s3 import s3_client
from adgen.creatives.storage import S3Access
from adgen.creatives.stores import open_storage
from adgen.on_ray.serving.settings import ServeSettings
from adgen.shop.inputs.tables import open_inputs

ROOT = Path(__file__).parents[2]
SETTINGS = """
inputs = "{inputs}/shop"
store = "{inputs}/store"
campaign = "spring"
model = "{model}"
http.port = {port}
sampling.max_title_tokens = 8
finish = {{width = 64, height = 64, gates = {{title_empty = "warn"}}}}
keys.allow_development_keys = true
"""


class Clients:
    """Some clients, each of which asks for another creative as soon as the last came."""

    def __init__(self, port: int, pairs: list[dict], number: int = 3):
        self.port, self.pairs, self.number = port, pairs, number
        self.statuses: list[int] = []
        self._seeds = itertools.count(1000)
        self._stop = threading.Event()

    def ask(self, seed: int, place: int = 0) -> requests.Response:
        pair = {name: self.pairs[place][name] for name in ("user_id", "product_id", "locale", "channel")}
        return requests.post(f"http://127.0.0.1:{self.port}/v1/creatives", json=pair | {"seed": seed}, timeout=300)

    def fingerprint(self, seed: int) -> str:
        """Of the creative, which depends on the model."""
        return self.ask(seed).json()["data"][0]["fingerprint"]

    @contextmanager
    def asking(self) -> Iterator[None]:
        with ThreadPoolExecutor(self.number) as pool:
            ended = [pool.submit(self._client) for _ in range(self.number)]
            try:
                yield
            finally:
                self._stop.set()
        for each in ended:
            each.result()

    def more(self, number: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.statuses) + number
        until(lambda: len(self.statuses) >= wanted, 300)

    def _client(self) -> None:
        while not self._stop.is_set():
            self.statuses.append(self.ask(seed := next(self._seeds), seed % len(self.pairs)).status_code)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A shop, two models, and one that cannot be loaded."""
    folder = make_inputs(tmp_path_factory.mktemp("serving"))
    save_small_model(folder / "other", seed=1, num_layers=16)
    save_small_model(folder / "broken", seed=2)
    weights = next((folder / "broken").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def pairs_of(shop: Path) -> list[dict]:
    return next(iter(open_inputs(str(shop))["pairs"].batches())).to_pylist()


def test_a_service_changes_its_model_refuses_a_broken_one_and_answers_all_before_it_ends(inputs, tmp_path):
    file, told, port = tmp_path / "serve.toml", tmp_path / "stderr", free_port()
    write = lambda model: file.write_text(SETTINGS.format(inputs=inputs, model=inputs / model, port=port))  # noqa: E731
    write("model")
    words = [sys.executable, str(ROOT / "jobs/serve.py"), str(file), "--no-auth"]
    with told.open("w") as stderr, subprocess.Popen(words, stderr=stderr, stdout=subprocess.PIPE) as service:
        try:
            says = lambda text: text in told.read_text() or service.poll() is not None  # noqa: E731
            until(lambda: says("serving campaign"), 300)
            assert service.poll() is None, told.read_text()
            clients = Clients(port, pairs_of(inputs / "shop"))
            first = clients.fingerprint(1)
            with clients.asking():
                clients.more(6)
                write("other")
                service.send_signal(signal.SIGHUP)
                until(lambda: says("settings were read again"), 300)
                clients.more(6)
                second = clients.fingerprint(1)
                write("broken")
                service.send_signal(signal.SIGHUP)
                until(lambda: says("goes on with the settings of before"), 300)
                clients.more(6)
            assert set(clients.statuses) == {200}, told.read_text()
            assert first != second == clients.fingerprint(1)
            assert "broken" in told.read_text()
            with ThreadPoolExecutor(6) as pool:
                last = [pool.submit(clients.ask, seed) for seed in range(10, 16)]
                until(lambda: all(each.running() or each.done() for each in last) and requests.get(live(port), timeout=60).ok)
                service.send_signal(signal.SIGTERM)
                answers = [each.result() for each in last]
            assert {answer.status_code for answer in answers} == {200}
            assert service.wait(120) == 0, told.read_text()
        finally:
            service.kill()
    assert "Traceback" not in told.read_text()


def live(port: int) -> str:
    return f"http://127.0.0.1:{port}/healthz/live"


@contextmanager
def serving(night, **more) -> Iterator[SimpleNamespace]:
    """The service of a refresh's settings on the test's Ray, without tokens."""
    from ray import serve

    from adgen.on_ray.serving.application import NAME, start, stop

    names = ("inputs", "store", "campaign", "model", "sampling", "engine", "finish", "keys", "s3")
    port = free_port()
    made = ServeSettings.model_validate({name: getattr(night, name) for name in names} | {"http": {"port": port}} | more)
    start(made, no_auth=True, replica=HeldReplica)
    try:
        engine = serve.get_deployment_handle("engine", NAME)
        do = lambda what: getattr(engine, what).remote().result(timeout_s=300)  # noqa: E731
        yield SimpleNamespace(port=port, do=do, clients=Clients(port, pairs_of(Path(night.inputs))))
    finally:
        stop()


def test_engines_that_die_under_load_lose_no_accepted_request(ray_cluster, inputs, tmp_path):
    with serving(settings(inputs / "shop", str(tmp_path / "store"), inputs / "model")) as service:
        with service.clients.asking():
            for _ in range(3):
                service.clients.more(4)
                os.kill(service.do("state")["pid"], signal.SIGKILL)
            service.clients.more(4)
        assert set(service.clients.statuses) == {200}


def test_what_is_planned_and_finished_survives_the_death_of_its_process(ray_cluster, inputs, tmp_path):
    with serving(settings(inputs / "shop", str(tmp_path / "store"), inputs / "model")) as service:
        with service.clients.asking():
            for _ in range(2):
                service.clients.more(4)
                os.kill(service.do("preparation_pid"), signal.SIGKILL)
            service.clients.more(4)
        assert set(service.clients.statuses) == {200}


def test_a_second_engine_comes_when_requests_wait(ray_cluster, inputs, tmp_path):
    from ray import serve

    night = settings(inputs / "shop", str(tmp_path / "store"), inputs / "model", engine={"deepspeed": False, "num_slots": 2})
    engines = lambda: serve.status().applications["adgen"].deployments["engine"].replica_states.get("RUNNING", 0)  # noqa: E731
    with serving(night, load={"max_replicas": 2}) as service, ThreadPoolExecutor(12) as pool:
        assert engines() == 1
        held_file(service.port).touch()
        asked = [pool.submit(service.clients.ask, seed) for seed in range(12)]
        until(lambda: engines() == 2, 300)
        held_file(service.port).unlink()
        assert {each.result().status_code for each in asked} == {200}


def test_a_store_that_goes_away_and_comes_back(ray_cluster, shop, model):
    """In the middle: what was read last is known on, what is made says that it cannot be, and nothing needs a new start."""
    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port=port, verbose=False)
    server.start()
    keys = {"access_key_id": SecretStr("test"), "secret_access_key": SecretStr("test")}
    access = S3Access(endpoint_url=f"http://127.0.0.1:{port}", region="us-east-1", **keys)
    s3_client(access).create_bucket(Bucket="away")
    night = settings(shop, "s3://away/store", model, access)
    run(night)
    row = next(open_published(open_storage(night.store, access), night.campaign).rows(where=[("status", "==", "ok")]))
    with serving(night, served={"follow_seconds": 0.1}) as service:
        names = {name: row[name] for name in ("user_key", "product_id")}
        url = f"http://127.0.0.1:{service.port}"
        read = lambda: requests.get(f"{url}/v1/campaigns/{night.campaign}/creatives", params=names, timeout=300)  # noqa: E731
        assert requests.get(read().json()["url"], timeout=60).content
        assert service.clients.ask(1).status_code == 200
        server.stop()
        away = service.clients.ask(2)
        assert (away.status_code, away.json()["error"]["code"], "Retry-After" in away.headers) == (503, "StoreError", True)
        assert read().json()["sha256"] == row["sha256"]
        assert requests.get(f"{url}/healthz/ready", timeout=60).status_code == 503
        assert requests.get(f"{url}/healthz/live", timeout=60).status_code == 200
        server = ThreadedMotoServer("127.0.0.1", port=port, verbose=False)
        server.start()
        until(lambda: requests.get(f"{url}/healthz/ready", timeout=60).status_code == 200)
        assert service.clients.ask(2).status_code == 200
        assert read().json()["sha256"] == row["sha256"]
    server.stop()
