"""What every kill begins with: a small shop in versions, a model, and a store with four nights in it that is copied for each kill.

The nights of the template, and the undisturbed run that a killed one is compared with, are made in this process without Ray:
the same refresh, its shards one after the other.
"""

import logging
import os
import shutil
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
from PIL import Image
from pydantic import SecretStr

from adgen.creatives.cleanup import clean_up
from adgen.creatives.objects import put_object
from adgen.creatives.reading import open_published
from adgen.creatives.s3 import s3_client
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.shop.synthetic.synth import synthesize
from support.here import without_ray
from support.kills import stages
from support.kills.stages import STAGES
from support.models import save_small_model
from support.progress import Silent

CAMPAIGN = "c"
NUM_PAIRS = 12
PER_SHARD = 1
DAY = 86_400.0
UNEQUAL = {"generated_at", "seconds", "carried_from"}
Rows = dict[tuple[str, int], dict]


class Scene:
    """Made once for all kills, in `root`; its S3 is moto in this process."""

    def __init__(self, root: Path, access: S3Access):
        self.root, self.access = root, access
        s3_client(self.access).create_bucket(Bucket="kills")
        self.inputs = {version: root / version / "shop" for version in "ABCD"}
        self.model = root / "model"
        self.rows: dict[tuple[str, str], Rows] = {}
        """By version and engine."""
        self.versions: dict[str, str] = {}
        """Of the template's runs."""
        self.pairs: dict[str, set[str]] = {}
        """pair_ids by user."""

    def prepare(self, with_engine: bool = True) -> "Scene":
        """Everything that kills are made of. with_engine: kills of the real engine, too, whose imports take a while."""
        self.draw()
        self._make_template()
        self._upload_template()
        wanted = [("C", "painter")] + ([("D", "engine")] if with_engine else [])
        for version, engine in wanted:
            store = self.copy_of_template("folder", f"undisturbed-{version}")
            self.refresh_here(store, version, engine)
            self.rows[version, engine] = self.published_rows(store)
            self.remove(store)
        return self

    def draw(self) -> "Scene":
        """Shops and model alone."""
        save_small_model(self.model)
        self._draw_shops()
        return self

    # -- stores ------------------------------------------------------------------------------------------------------

    def store(self, kind: str, name: str) -> str:
        """The URI of a store."""
        return str(self.root / "stores" / name) if kind == "folder" else f"s3://kills/{name}/store"

    def open(self, store: str) -> Storage:
        """The store itself."""
        return open_storage(store, self.access if store.startswith("s3:") else None)

    def copy_of_template(self, kind: str, name: str) -> str:
        """A store of its own with the template's nights in it, all of them a month old."""
        store = self.store(kind, name)
        self.remove(store)
        if kind == "folder":
            shutil.copytree(self.store(kind, "template"), store)
        else:
            client, prefix = s3_client(self.access), "template/store/"
            for key in _keys(prefix):
                source = {"Bucket": "kills", "Key": key}
                client.copy_object(Bucket="kills", Key=f"{name}/store/{key.removeprefix(prefix)}", CopySource=source)
        self._grow_old(store)
        return store

    def remove(self, store: str) -> None:
        """All of a store."""
        if not store.startswith("s3:"):
            return shutil.rmtree(store, ignore_errors=True)
        for key in _keys(f"{store.removeprefix('s3://kills/')}/"):
            s3_client(self.access).delete_object(Bucket="kills", Key=key)

    def published_rows(self, store: str) -> Rows:
        """What is published, without what no two runs have in common."""
        return comparable(open_published(self.open(store), CAMPAIGN).rows())

    # -- making ------------------------------------------------------------------------------------------------------

    def settings(self, store: str, version: str, **changes) -> dict:
        """Of a refresh to a version of the shop, as a settings file has them."""
        s3 = {"s3": self.access.model_dump(exclude_defaults=True) | _secrets(self.access)} if store.startswith("s3:") else {}
        return {
            "inputs": str(self.inputs[version]),
            "store": store,
            "model": str(self.model),
            "plan": {"pairs_per_shard": PER_SHARD},
            "sampling": {"max_title_tokens": 4, "attempts": 1},
            "engine": {"deepspeed": False, "num_slots": 2},
            "finish": {"width": 64, "height": 64, "gates": {"title_empty": "warn"}},
            "cluster": {"actors": 1},
            "clean_up": {"keep_runs": 2},
            "keys": {"allow_development_keys": True},
            **s3,
            **changes,
        }

    def refresh_here(self, store: str, version: str, engine: str = "painter", **changes) -> str:
        """A refresh without Ray in this process; its run."""
        settings = RefreshSettings.model_validate(self.settings(store, version, **changes)).of(CAMPAIGN)
        with without_ray(), patch.object(stages, "SHARD_SECONDS", 0.0):
            done = refresh(settings, Silent(), STAGES[engine])
        assert done.published, done
        return done.run_id

    def _make_template(self) -> None:
        """On a folder. Nights A, B, A, B, and two pictures that nothing names and a clean-up of a day ago found."""
        store = self.store("folder", "template")
        for version in "ABAB":
            run = self.refresh_here(store, version, clean_up={"keep_runs": 4})
            self.versions[run] = version
            self.rows[version, "painter"] = self.rows[version, "engine"] = self.published_rows(store)
        storage = self.open(store)
        for number in (1, 2):
            put_object(storage, f"of nobody {number}".encode(), "webp")
        self._grow_old(store)
        clean_up(storage, CAMPAIGN, 7, now=time.time() - DAY)
        self.pairs = {user: set(pairs) for user, pairs in _pairs_by_user(storage).items()}

    def _upload_template(self) -> None:
        """The same on S3."""
        made, there = (self.open(self.store(kind, "template")) for kind in ("folder", "s3"))
        for entry in made.entries(""):
            there.put(entry.key, made.read(entry.key))

    def _grow_old(self, store: str) -> None:
        then = time.time() - 30 * DAY
        if not store.startswith("s3:"):
            for path in Path(store).rglob("*"):
                os.utime(path, (then, then))
            return
        for name, key in _bucket().keys.items():
            if name.startswith(store.removeprefix("s3://kills/")):
                key.last_modified = key.last_modified.fromtimestamp(then, key.last_modified.tzinfo)

    def _draw_shops(self) -> None:
        """Versions of a shop: other histories of some users; D with another picture of a product, too.

        Where A and B differ D is like neither: rows of the nights are painted, so that which of them D carries must not depend
        on the night that a rollback published.
        """
        synthesize(self.inputs["A"], num_users=6, num_products=30, num_pairs=NUM_PAIRS, num_references=0, picture_side=64)
        for version, whose, further in (("B", (0, 1), 1), ("C", (0, 2, 3, 4), 1), ("D", (0, 1, 2), 2)):
            folder = self.inputs[version]
            shutil.copytree(self.inputs["A"], folder)
            table = pq.read_table(folder / "histories.parquet")
            before = table.to_pylist()
            rows = table.to_pylist()
            for place in whose:
                rows[place]["clicks"] = before[(place + further) % len(before)]["clicks"]
            pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "histories.parquet")
        product = pq.read_table(self.inputs["D"] / "products.parquet").to_pylist()[0]
        picture = Image.fromarray(np.random.default_rng(1).integers(0, 200, (64, 64, 3), np.uint8))
        canvas = Image.new("RGB", (96, 96), "white")
        canvas.paste(picture, (16, 16))
        canvas.save(self.inputs["D"] / product["image"])


def comparable(rows) -> Rows:
    """Rows by (pair_id, variant), without what no two runs have in common; AssertionError where one is there twice."""
    found: Rows = {}
    for row in rows:
        key = row["pair_id"], row["variant"]
        assert key not in found, f"{key} is published twice"
        found[key] = {name: value for name, value in row.items() if name not in UNEQUAL}
    return found


def environment_of(access: S3Access) -> dict[str, str]:
    """Where boto3 finds S3."""
    keys = {"AWS_ENDPOINT_URL": access.endpoint_url, "AWS_DEFAULT_REGION": access.region}
    return keys | {f"AWS_{name.upper()}": value for name, value in _secrets(access).items()}


def _secrets(access: S3Access) -> dict[str, str]:
    return {name: getattr(access, name).get_secret_value() for name in ("access_key_id", "secret_access_key")}


def start_s3() -> S3Access:
    """moto on loopback; how to reach it."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # its listing of versions fails now and then
    host, port = server.get_host_and_port()
    secrets = {"access_key_id": SecretStr("test"), "secret_access_key": SecretStr("test")}
    return S3Access(endpoint_url=f"http://{host}:{port}", region="us-east-1", **secrets)


def _bucket():
    return next(iter(s3_backends.values()))["aws"].buckets["kills"]


def _keys(prefix: str) -> list[str]:
    return [name for name in _bucket().keys if name.startswith(prefix)]


def _pairs_by_user(storage: Storage) -> dict[str, list[str]]:
    from adgen.creatives.journal import from_parquet

    found: dict[str, list[str]] = {}
    for entry in storage.entries("private/"):
        if "/lineage/" in entry.key:
            for row in from_parquet(storage.read(entry.key), ("user_id", "pair_id")).to_pylist():
                found.setdefault(row["user_id"], []).append(row["pair_id"])
    return found
