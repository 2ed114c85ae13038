"""Refreshes of a small shop by a small random model, on the Ray of the test session."""

import atexit
import shutil
import tempfile
from pathlib import Path

from adgen.creatives.reading import open_published
from adgen.creatives.storage import S3Access
from adgen.creatives.stores import open_storage
from adgen.generation.model_directory import ModelDirectory
from adgen.on_ray.refresh.job import Summary, refresh
from adgen.on_ray.refresh.settings import RefreshSettings
from support.progress import Silent

CAMPAIGN = "spring"
_CATALOGS = Path(tempfile.mkdtemp(prefix="adgen-test-catalogs-"))
atexit.register(shutil.rmtree, _CATALOGS, ignore_errors=True)


def settings(inputs: Path, store: str, model: Path, access: S3Access | None = None, **changes) -> RefreshSettings:
    values = {
        "inputs": str(inputs),
        "store": store,
        "campaign": CAMPAIGN,
        "model": str(model),
        "plan": {"pairs_per_shard": 5},
        "sampling": {"max_title_tokens": 8},
        "engine": {"deepspeed": False},  # seconds to import in each engine; test_ranks runs with it
        "finish": {"width": 64, "height": 64, "gates": {"title_empty": "warn"}},
        "keys": {"allow_development_keys": True},
    }
    made = RefreshSettings.model_validate(values | changes)
    return made.model_copy(update={"s3": access}) if access else made


def run(made: RefreshSettings) -> Summary:
    """A refresh. Of each model one makes a catalog; stores that are new begin with that, since encoding pictures takes seconds."""
    store = Path(made.store)
    if made.store.startswith("s3://") or not made.model.is_dir() or (store.exists() and any(store.iterdir())):
        return refresh(made, Silent())
    known = _CATALOGS / ModelDirectory(made.model).digest
    if known.exists():
        shutil.copytree(known, store / "catalog")
    done = refresh(made, Silent())
    if not known.exists() and (store / "catalog").exists():
        shutil.copytree(store / "catalog", known)
    return done


def published_rows(made: RefreshSettings) -> dict[str, dict]:
    storage = open_storage(made.store, made.s3)
    return {row["pair_id"]: row for row in open_published(storage, made.campaign).rows()}


def creatives(made: RefreshSettings) -> dict[str, dict]:
    """The published rows without what no two runs have in common; objects are named by their hash in them."""
    unequal = {"generated_at", "seconds"}
    return {pair: {name: value for name, value in row.items() if name not in unequal} for pair, row in published_rows(made).items()}


def access_of(store_uri: str, request) -> S3Access | None:
    return request.getfixturevalue("s3_access") if store_uri.startswith("s3://") else None
