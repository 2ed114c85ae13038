"""`adgen forget` and `adgen clean-up`: over a whole store, for whoever answers for it. docs/operations.md is their manual."""

import dataclasses
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from adgen.creatives.cleanup import KEEP_RUNS, clean_up
from adgen.creatives.erasure import forget, keys_not_given
from adgen.creatives.names import campaigns
from adgen.creatives.secrets import DEVELOPMENT_KEYS, read_key
from adgen.creatives.storage import Data, Entry, Storage, Stored
from adgen.errors import OwnedElsewhere, SettingsError
from adgen.records import user_key
from adgen.shop.catalog.cleanup import remove_unnamed_catalogs

BEYOND_REACH = (
    "pulled mirrors: `adgen pull` again, without --keep-withdrawn; copies elsewhere know a user by the user key",
    "evaluation folders (--out of jobs/evaluate.py): delete them; `adgen forget OUT/store` cleans the creatives of `model`",
    "training caches (--cache of jobs/pretrain.py) and folders /tmp/adgen-*: delete them, they are made again",
    "input tables, backups and replicas of the bucket: take the users out there; the next refresh would not show them",
    "pictures that no run names any more: two runs of `adgen clean-up` a day apart remove them",
)


@dataclasses.dataclass
class Forgotten:
    """What `adgen forget` did: the receipt, and what it cannot reach."""

    users: int
    complete: bool
    runs: int = 0
    objects: int = 0
    note: str = ""
    user_keys: list[str] = dataclasses.field(default_factory=list)
    """The users in manifests that consumers hold, with --user-secret."""
    keys_not_given: list[str] = dataclasses.field(default_factory=list)
    beyond_reach: list[str] = dataclasses.field(default_factory=lambda: list(BEYOND_REACH))


@dataclasses.dataclass
class Cleaned:
    """What `adgen clean-up` removed, or would remove."""

    dry_run: bool
    campaigns: int = 0
    runs: int = 0
    objects: int = 0
    object_bytes: int = 0
    catalog_files: int = 0
    catalog_bytes: int = 0


def forget_users(storage: Storage, users: Collection[str], keys: Collection[bytes], user_secret: bytes | None) -> Forgotten:
    """Forget the users under each campaign key; never raises for a run that is still alive: the result says so."""
    done = Forgotten(users=len(set(users)), complete=False)
    done.user_keys = sorted(user_key(user_secret, user) for user in set(users)) if user_secret else []
    lacking = keys_not_given(storage, keys)
    done.keys_not_given = [
        f"campaign {name} plans with key {key}; its next refresh would show the users" for name, key in lacking.items()
    ]
    try:
        receipt = forget(storage, list(keys), set(users))
        done.complete, done.runs, done.objects = not lacking, receipt.runs, receipt.objects
    except OwnedElsewhere as error:
        done.note = str(error)
    return done


def campaign_keys(files: Collection[Path], storage: Storage) -> list[bytes]:
    """The keys in the files; without any, the public one of laptops, where the store was made with it or is a folder."""
    if files:
        return [read_key(path, "--campaign-key") for path in files]
    public = DEVELOPMENT_KEYS["campaign_key"]
    if storage.uri.startswith("s3://") and keys_not_given(storage, [public]):
        raise SettingsError(f"--campaign-key: none given, and {storage.uri} was not made with the public one")
    return [public]


def read_users(file: str) -> list[str]:
    """One user id a line; `-` is stdin. SettingsError: no file, no text, or nobody."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        users = [line.rstrip("\r\n") for line in data.decode("utf-8-sig").split("\n")]
    except OSError as error:
        raise SettingsError(f"--users: {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"--users: {file}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    if not (found := [user for user in users if user]):
        raise SettingsError(f"--users: {file}: names nobody; write one user id a line")
    return found


def clean_store(storage: Storage, dry_run: bool, keep_runs: int = KEEP_RUNS, now: float | None = None) -> Cleaned:
    """Remove old runs of every campaign, objects and catalogs that nothing names."""
    target = _Untouched(storage) if dry_run else storage
    done = Cleaned(dry_run)
    for campaign in campaigns(storage):
        cleaned = clean_up(target, campaign, keep_runs, now)
        done.campaigns += 1
        for name in ("runs", "objects", "object_bytes"):
            setattr(done, name, getattr(done, name) + getattr(cleaned, name))
    done.catalog_files, done.catalog_bytes = remove_unnamed_catalogs(target, now)
    return done


class _Untouched(Storage):
    """A store in which every removal succeeds and nothing changes."""

    def __init__(self, inner: Storage):
        self.inner, self.uri = inner, inner.uri

    def get(self, key: str) -> Stored | None:
        return self.inner.get(key)

    def head(self, key: str) -> Entry | None:
        return self.inner.head(key)

    def entries(self, prefix: str) -> Iterator[Entry]:
        return self.inner.entries(prefix)

    def children(self, prefix: str) -> list[str]:
        return self.inner.children(prefix)

    def create(self, key: str, data: Data, content_type: str | None = None) -> None:
        """Nothing."""

    def put(self, key: str, data: Data, content_type: str | None = None) -> None:
        """Nothing."""

    def delete(self, key: str) -> None:
        """Nothing."""

    def drop(self, key: str) -> None:
        """Nothing."""

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        return etag or ""

    def sweep(self, *_) -> int:
        return 0
