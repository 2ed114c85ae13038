"""The service on demand, over HTTP: one Ray, one application for all of these tests."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from PIL import Image
from support.here import without_ray
from support.refreshes import CAMPAIGN, run, settings
from support.serving import HeldReplica, free_port, held_file, send_and_hold, until

from adgen.creatives.bearer_tokens import new_token
from adgen.creatives.reading import open_published
from adgen.creatives.served import served_files
from adgen.creatives.stores import open_storage
from adgen.on_ray.serving.histories import HistoryFiles
from adgen.shop.inputs.tables import open_inputs


@pytest.fixture(scope="module")
def service(ray_cluster, shop, model, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A published campaign and the service over it, with the settings of its refresh."""
    from adgen.on_ray.serving.application import start, stop
    from adgen.on_ray.serving.settings import ServeSettings

    folder = tmp_path_factory.mktemp("serving")
    night = settings(shop, str(folder / "store"), model)
    with without_ray():
        run(night)
    port = free_port()
    tokens = folder / "tokens.json"
    found = {scope: new_token(tokens, scope, [scope]) for scope in ("read", "generate", "admin")}
    found["expired"] = new_token(tokens, "expired", ["admin"], days=0)
    found["twice"] = new_token(tokens, "twice", ["read"], per_minute=2)
    shared = {
        name: getattr(night, name) for name in ("inputs", "store", "campaign", "model", "sampling", "engine", "finish", "keys")
    }
    serving = ServeSettings(
        **shared,
        http={"port": port},
        auth={"tokens": tokens, "per_minute": 10_000},
        load={"max_body_bytes": 300_000, "max_queued": 4, "retry_after_seconds": 7, "timeout_seconds": 500},
    )
    start(serving, replica=HeldReplica)
    rows = list(open_published(open_storage(night.store), CAMPAIGN).rows(where=[("status", "==", "ok")]))
    [pairs] = list(open_inputs(str(shop))["pairs"].batches())
    users = {}
    from adgen.creatives.secrets import DEVELOPMENT_KEYS
    from adgen.records import user_key

    for pair in pairs.to_pylist():
        users[user_key(DEVELOPMENT_KEYS["user_secret"], pair["user_id"])] = pair["user_id"]
    yield SimpleNamespace(
        url=f"http://127.0.0.1:{port}", port=port, tokens=found, rows=rows, users=users, store=folder / "store", settings=serving
    )
    stop()


class Engine:
    """What tests do with the only engine."""

    def __init__(self, port: int):
        from ray import serve

        self._handle = serve.get_deployment_handle("engine", "adgen")
        self._held = held_file(port)

    def hold(self) -> None:
        self._held.touch()

    def release(self) -> None:
        self._held.unlink(missing_ok=True)

    def do(self, what: str):
        return getattr(self._handle, what).remote().result(timeout_s=120)

    def __getitem__(self, name: str) -> int:
        return self.do("state")[name]


@pytest.fixture
def engine(service) -> Iterator[Engine]:
    """The service's engine, which is held until the test releases it."""
    found = Engine(service.port)
    found.hold()
    yield found
    found.release()
    until(lambda: accepted() == 0, 600)  # what a failed test left goes into no other one


def accepted() -> int:
    """Requests for creatives that the ingress has accepted and not answered."""
    from ray import serve

    return serve.get_deployment_handle("ingress", "adgen").accepted.remote().result(timeout_s=120)


def get(service, path: str, token: str = "admin", **more) -> requests.Response:
    headers = {"Authorization": f"Bearer {service.tokens.get(token, token)}"} | more.pop("headers", {})
    return requests.get(service.url + path, headers=headers, timeout=120, **more)


def post(service, body, token: str = "admin", **headers) -> requests.Response:
    headers = {"Authorization": f"Bearer {service.tokens.get(token, token)}", "Content-Type": "application/json"} | headers
    data = body if isinstance(body, bytes) else json.dumps(body)
    return requests.post(service.url + "/v1/creatives", data=data, headers=headers, timeout=120)


def request_of(service, row: dict, **more) -> dict:
    return {name: row[name] for name in ("product_id", "locale", "channel")} | {"user_id": service.users[row["user_key"]]} | more


def test_a_request_makes_the_bytes_that_the_night_made(service):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda row: post(service, request_of(service, row, response_format="b64_json")), service.rows[:4]))
    for row, answer in zip(service.rows, answers, strict=False):
        assert answer.status_code == 200, answer.text
        [made] = answer.json()["data"]
        data = base64.b64decode(made["b64_json"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert {name: made[name] for name in ("pair_id", "title", "seed", "fingerprint")} == {
            name: row[name] for name in ("pair_id", "title", "seed", "fingerprint")
        }


def test_a_given_seed_and_history_decide_and_the_same_request_is_made_once(service):
    row = service.rows[0]
    again = post(service, request_of(service, row, seed=row["seed"])).json()["data"][0]
    assert again["sha256"] == row["sha256"]
    other = request_of(service, row, seed=5, history=[])
    with ThreadPoolExecutor(4) as pool:
        made = [answer.json()["data"][0] for answer in pool.map(lambda _: post(service, other), range(4))]
    assert len({each["fingerprint"] for each in made}) == 1
    assert made[0]["fingerprint"] != row["fingerprint"]
    storage = open_storage(service.store)
    assert sum(made[0]["fingerprint"] in entry.key for entry in served_files(storage)) == 1
    assert open_published(storage, CAMPAIGN).run.counts.generated  # the published run is what it was


def test_the_published_creative_is_read_by_user_key_or_by_id_in_a_header(service):
    row = service.rows[0]
    path = f"/v1/campaigns/{CAMPAIGN}/creatives"
    by_key = get(service, path, "read", params={"user_key": row["user_key"], "product_id": row["product_id"]})
    by_id = get(
        service, path, "read", params={"product_id": row["product_id"]}, headers={"X-Adgen-User": service.users[row["user_key"]]}
    )
    assert by_key.json() == by_id.json()
    found = by_key.json()
    assert (found["title"], found["sha256"]) == (row["title"], row["sha256"])
    assert hashlib.sha256(Path(found["url"].removeprefix("file://")).read_bytes()).hexdigest() == row["sha256"]


def test_an_unknown_user_and_an_unknown_pair_and_campaign_look_alike(service):
    row = service.rows[0]
    path = "/v1/campaigns/{}/creatives"
    answers = [
        get(service, path.format(CAMPAIGN), params={"user_key": "0" * 32, "product_id": row["product_id"]}),
        get(service, path.format(CAMPAIGN), params={"user_key": row["user_key"], "product_id": "nothing"}),
        get(service, path.format("nowhere"), params={"user_key": row["user_key"], "product_id": row["product_id"]}),
        post(service, {"user_key": "0" * 32, "product_id": row["product_id"]}),
        post(service, request_of(service, row) | {"product_id": "nothing"}),
        post(service, request_of(service, row, campaign="nowhere")),
    ]
    assert {(answer.status_code, answer.text) for answer in answers} == {(404, answers[0].text)}


@pytest.mark.parametrize(
    ("token", "status"), [("read", 403), ("generate", 422), ("admin", 422), ("expired", 401), ("adgen_wrong", 401), ("", 401)]
)
def test_a_token_may_do_what_its_scopes_say_until_it_expires(service, token, status):
    assert post(service, {}, token).status_code == status


BAD = [
    (b"{", 422),
    (b"", 422),
    (b"[" * 100_000, 400),
    (b"\xff\xfe", 422),
    (b'{"user_id": "\\ud800", "product_id": "p"}', 422),
    ({"user_id": "u", "product_id": "p", "n": 99}, 422),
    ({"user_id": "u", "product_id": "p", "unknown": 1}, 422),
    ({"user_id": "u", "user_key": "0" * 32, "product_id": "p"}, 422),
    ({"user_id": "u", "product_id": "p", "product": {"title": "t", "picture": "!!"}}, 422),
    ({"user_id": "u", "product_id": "p", "product": {"title": "t", "picture": "aGVsbG8="}}, 422),
    (b"x" * 300_001, 413),
]


@pytest.mark.parametrize(("body", "status"), BAD)
def test_bad_input_gets_a_sentence_and_no_traceback(service, body, status):
    answer = post(service, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert "Traceback" not in answer.text


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off(service):
    headers = {"Authorization": f"Bearer {service.tokens['admin']}", "Content-Type": "application/json"}
    answer = requests.post(service.url + "/v1/creatives", data=iter([b"x" * 100_000] * 4), headers=headers, timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_product_in_the_request_is_pasted(service):
    picture = Image.new("RGB", (96, 96), "white")
    picture.paste((200, 30, 30), (24, 24, 72, 72))
    out = io.BytesIO()
    picture.save(out, "PNG")
    product = {"title": "red cube", "selling_points": ["red"], "picture": base64.b64encode(out.getvalue()).decode()}
    row = service.rows[0]
    answer = post(service, request_of(service, row, product=product, response_format="b64_json") | {"product_id": "new"})
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))) as made:
        red, green, _ = made.convert("RGB").getpixel((made.width // 2, made.height // 2))
    assert red > 150 > green


def test_an_idempotency_key_stands_for_one_body(service):
    row = service.rows[1]
    assert post(service, request_of(service, row), **{"Idempotency-Key": "k"}).status_code == 200
    assert post(service, request_of(service, row), **{"Idempotency-Key": "k"}).status_code == 200
    assert post(service, request_of(service, row, seed=9), **{"Idempotency-Key": "k"}).status_code == 422


def test_health_and_openapi_need_no_token(service):
    assert requests.get(service.url + "/healthz/live", timeout=60).json() == {"status": "ok"}
    ready = requests.get(service.url + "/healthz/ready", timeout=60)
    assert (ready.status_code, ready.json()) == (200, {"status": "ok"}), ready.text
    paths = requests.get(service.url + "/openapi.json", timeout=60).json()["paths"]
    assert {"/v1/creatives", "/v1/campaigns/{campaign}/creatives"} <= set(paths)


def test_half_of_the_clients_hanging_up_costs_the_others_nothing(service, engine):
    body = lambda seed: request_of(service, service.rows[0], seed=seed)  # noqa: E731
    before = engine.do("state")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, service, body(100))
        until(lambda: engine["begun"] > 0)
        staying = [pool.submit(post, service, body(seed)) for seed in (101, 102, 103)]
        going = [send_and_hold(service.port, body(seed), service.tokens["admin"]) for seed in (111, 112, 113)]
        answered = lambda: (engine.do("state"), accepted(), [each.result().text for each in staying if each.done()])  # noqa: E731
        until(lambda: engine["waiting"] == 6, instead=answered)
        for client in going:
            client.close()
        until(lambda: engine["waiting"] == 3)
        engine.release()
        assert [each.result().status_code for each in (first, *staying)] == [200] * 4
    after = engine.do("state")
    assert (after["rows"] - before["rows"], after["left"] - before["left"]) == (4, 3)


def test_the_same_request_in_flight_is_made_once_and_who_hangs_up_does_not_end_it(service, engine):
    body, before = request_of(service, service.rows[1], seed=200), engine["rows"]
    with ThreadPoolExecutor(3) as pool:
        gone = send_and_hold(service.port, body, service.tokens["admin"])
        until(lambda: engine["begun"] > 0)
        same = [pool.submit(post, service, body, **{"Idempotency-Key": "once"}) for _ in range(3)]
        until(lambda: accepted() == 4)
        gone.close()
        until(lambda: accepted() == 3)
        engine.release()
        answers = [each.result() for each in same]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["data"][0]["fingerprint"] for answer in answers}) == 1
    assert engine["rows"] - before == 1


def test_more_than_can_wait_is_told_when_to_come_again(service, engine):
    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(post, service, request_of(service, service.rows[0], seed=300 + number)) for number in range(24)]
        until(lambda: sum(each.done() for each in answers) >= 8)  # two batches are taken, four wait, and Serve may count a few late
        assert get(service, "/healthz/ready").status_code == 200  # busy is not broken
        engine.release()
        answers = [each.result() for each in answers]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {(answer.status_code, answer.headers.get("Retry-After"), answer.json()["error"]["code"]) for answer in refused} == {
        (429, "7", "busy")
    }
    assert 8 <= len(refused) < 24
    assert {answer.status_code for answer in answers} == {200, 429}


def test_a_token_that_asks_too_often_is_told_when_to_come_again(service):
    row = service.rows[0]
    ask = lambda: get(  # noqa: E731
        service, f"/v1/campaigns/{CAMPAIGN}/creatives", "twice", params={name: row[name] for name in ("user_key", "product_id")}
    )
    answers = [ask() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert (answers[2].headers["Retry-After"], answers[2].json()["error"]["code"]) == ("7", "rate_limited")


def test_past_the_deadline_it_is_not_made(service, engine):
    body, before = request_of(service, service.rows[0], seed=400), engine["left"]
    blocking = send_and_hold(service.port, request_of(service, service.rows[0], seed=401), service.tokens["admin"])
    until(lambda: engine["begun"] > 0)
    answer = post(service, body, **{"x-request-timeout-seconds": "2"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
    until(lambda: engine["waiting"] == 0)
    engine.release()
    blocking.close()
    assert post(service, request_of(service, service.rows[0], seed=402)).status_code == 200
    assert engine["left"] - before == 1


def test_logs_are_json_and_name_no_user(service):
    import ray

    row, nobody = service.rows[0], "nobody-we-know-of"
    get(service, f"/v1/campaigns/{CAMPAIGN}/creatives", params={"user_key": row["user_key"], "product_id": row["product_id"]})
    get(service, f"/v1/campaigns/{CAMPAIGN}/creatives", params={"product_id": row["product_id"]}, headers={"X-Adgen-User": nobody})
    post(service, request_of(service, row, user_id=nobody))
    post(service, request_of(service, row, user_id=nobody, n=99))
    folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    text = "".join(file.read_text() for file in folder.glob("*.log"))
    assert "/v1/creatives" in text
    assert not any(key in text for key in (*service.users, nobody))
    for line in text.splitlines():
        json.loads(line)


def test_histories_go_from_the_disk_with_the_last_who_reads_them(shop, tmp_path):
    files = HistoryFiles(open_inputs(str(shop)), b"secret", tmp_path / "histories")
    assert len(list((tmp_path / "histories").iterdir())) == 1
    del files
    assert not (tmp_path / "histories").exists()
