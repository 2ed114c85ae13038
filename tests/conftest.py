"""What all tests share: which run side by side; stores (a folder, and S3 from moto on loopback); a small shop, a model, Ray."""

import logging
import os
import resource
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr
from support.groups import group_of

from adgen.creatives.s3 import s3_client
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.shop.synthetic.synth import synthesize

# Workers side by side, each with as many threads as cores, would wait for each other. Read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Workers of Ray, Serve and jobs unpickle classes of tests/support.
HERE = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH"))))
# Ray's workers are nice to all others (15), so that beside other tests they would stand still.
os.environ.setdefault("RAY_worker_niceness", "0")
# Its log monitors look for new files all the time: a core's tenth of each Ray.
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "5")
LONGEST_FIRST = ("ray", "ray of groups", "test_deepspeed_step.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a group run in one worker."""
    from support.scheduling import ByGroup

    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests with Ray; groups that take longest begin first."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    for item in items:
        if "ray_cluster" in item.fixturenames:
            item.add_marker("ray")
    items.sort(key=lambda item: order.get(group_of(item.path.name), len(order)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """For whoever looks at CI's log; nothing asserts it."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    terminalreporter.write_line(f"the largest process took {peak / 2**20:.1f} GiB")


@pytest.fixture(scope="session")
def s3_access() -> S3Access:
    """Access to a moto server that lives as long as the session."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request is most of a small test's time
    host, port = server.get_host_and_port()
    yield S3Access(
        endpoint_url=f"http://{host}:{port}",
        region="us-east-1",
        access_key_id=SecretStr("test"),
        secret_access_key=SecretStr("test"),
    )
    server.stop()


@pytest.fixture
def s3_uri(s3_access: S3Access) -> str:
    """A prefix in a fresh bucket: moto lists a bucket by looking at all of its keys."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3_client(s3_access).create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/store"


@pytest.fixture(params=["folder", "s3"])
def store_uri(request: pytest.FixtureRequest) -> str:
    """The root of an empty store, on a folder and on S3."""
    if request.param == "folder":
        return str(request.getfixturevalue("tmp_path") / "store")
    return request.getfixturevalue("s3_uri")


@pytest.fixture
def store(store_uri: str, request: pytest.FixtureRequest) -> Storage:
    """The empty store itself."""
    access = request.getfixturevalue("s3_access") if store_uri.startswith("s3://") else None
    return open_storage(store_uri, access)


@pytest.fixture
def folder_store(tmp_path: Path) -> Storage:
    """An empty store on a folder, for what does not depend on the kind of store."""
    return open_storage(tmp_path / "store")


@pytest.fixture
def aws_environment(s3_access: S3Access, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3's own default chain finds the moto server: for commands and processes that take a URI only."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_access.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", s3_access.region)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_access.access_key_id.get_secret_value())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_access.secret_access_key.get_secret_value())
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn shop of twelve pairs; tests copy what they change."""
    folder = tmp_path_factory.mktemp("inputs") / "shop"
    synthesize(folder, num_users=6, num_products=30, num_pairs=12, num_references=0, picture_side=64)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model's directory; tests copy what they change."""
    from support.models import save_small_model

    save_small_model(directory := tmp_path_factory.mktemp("model"))
    return directory


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slow enough to be killed while it works."""
    from support.models import save_small_model

    save_small_model(directory := tmp_path_factory.mktemp("slow-model"), num_layers=16)
    return directory


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of two slots for all tests of this process."""
    import ray

    from adgen.on_ray.cluster import quiet_ray

    quiet_ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    quiet_ray()
    yield
    ray.shutdown()


@pytest.fixture
def no_ray() -> Iterator[None]:
    """Jobs work in this process, for tests of what comes out of them, not of how a cluster makes it."""
    from support.here import without_ray

    with without_ray():
        yield


# -- an evaluated run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def references_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn shop whose twelve pairs have references; tests copy what they change."""
    from support.evaluations import draw_shop

    return draw_shop(tmp_path_factory.mktemp("references") / "shop")


@pytest.fixture(scope="session")
def store_of_references(references_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published run of the twelve, made without a model, one of them failed; tests copy what they change."""
    from support.evaluations import do_shards, plan_run

    from adgen.creatives.publish import finish

    store = tmp_path_factory.mktemp("run") / "store"
    run = plan_run(store, references_shop)
    do_shards(run, references_shop)
    finish(run)
    return store


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random PBS encoder."""
    from support.evaluations import save_small_encoder

    return save_small_encoder(tmp_path_factory.mktemp("encoder") / "pbs")


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random scoring networks: a DINOv2 for backgrounds and for distances, a CLIP."""
    from support.networks import save_clip, save_dinov2

    folder = tmp_path_factory.mktemp("networks")
    dinov2 = save_dinov2(folder / "dinov2")
    return {"dinov2": dinov2, "fid": dinov2, "clip": save_clip(folder / "clip")}


@pytest.fixture(scope="session")
def evaluated(
    store_of_references: Path,
    references_shop: Path,
    encoder: Path,
    networks: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of its evaluation with all networks."""
    from support.evaluations import scored

    out = tmp_path_factory.mktemp("evaluated") / "out"
    scored(store_of_references, references_shop, out, encoder, **networks)
    return out
