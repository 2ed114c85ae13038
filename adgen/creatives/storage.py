"""What a store can do: a small set of atomic acts, with the same meaning on a folder and on S3.

Two kinds of keys. An OBJECT is written once under its key (`create`) and never changes. A DOCUMENT changes, each time
against the version that was read (`get`, then `swap`): of any number of writers holding one version, one wins.
Nothing here knows of campaigns, runs or manifests.
"""

import mmap
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, SecretStr, field_validator
from tyro.conf import Suppress

from adgen.config import Settings
from adgen.errors import StoreError

Data = bytes | mmap.mmap

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._=-]*"
_KEY = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "jpeg": "image/jpeg",
    "jpg": "image/jpeg",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "png": "image/png",
    "webp": "image/webp",
}


NO_CONDITIONS = (
    "so two runs could overwrite each other; use AWS S3, a server with conditional writes (MinIO, Ceph Squid or later), or a "
    "local folder"
)


class Taken(StoreError):
    """A conditional write lost: the key exists already, or it is no longer the version that was read."""


NO_CREDENTIALS = "give them with a profile, a role or AWS_ACCESS_KEY_ID"


class S3Access(Settings):
    """How to reach S3, inputs and outputs alike. What is left out comes from boto3's own chain (profile and its [services],
    role, AWS_ENDPOINT_URL)."""

    model_config = ConfigDict(hide_input_in_errors=True)

    endpoint_url: str | None = None
    """Address of an S3-compatible server; none: AWS."""
    region: str | None = None
    """Region of the bucket."""
    max_attempts: int = Field(default=8, ge=1, le=50)
    """Tries per request, with botocore's back-off between them."""
    connect_timeout_seconds: float = Field(default=10.0, gt=0)
    """Seconds to wait for a connection."""
    read_timeout_seconds: float = Field(default=60.0, gt=0)
    """Seconds to wait for the next bytes of an answer."""
    max_connections: int = Field(default=64, ge=1)
    """Connections kept open by one process."""
    access_key_id: Suppress[SecretStr | None] = Field(default=None, exclude=True)
    """Explicit credential of a settings file; never on a command line, never saved with a run."""
    secret_access_key: Suppress[SecretStr | None] = Field(default=None, exclude=True)
    """Explicit credential of a settings file; never on a command line, never saved with a run."""

    @field_validator("endpoint_url")
    @classmethod
    def _holds_no_credentials(cls, url: str | None) -> str | None:
        """The address is saved with runs and shown in errors."""
        if "@" in urlsplit(url or "").netloc:
            raise ValueError(f"the URL holds credentials; {NO_CREDENTIALS}")
        return url

    @contextmanager
    def exported(self) -> Iterator[dict[str, str]]:
        """While the block runs, what takes no S3Access finds endpoint and region in the environment: readers of inputs, and
        processes that this one starts. Gives the variables; there is no credential among them."""
        given = {
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }
        variables = {name: value for name, value in given.items() if value is not None}
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield variables
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@dataclass(frozen=True)
class Stored:
    """What a key holds: its bytes, and the version to name when swapping it."""

    data: bytes
    etag: str


@dataclass(frozen=True)
class Piece:
    """Some bytes of an object, and how many it has in all."""

    data: bytes
    size: int


@dataclass(frozen=True)
class Entry:
    """A key without its bytes; `modified` is in seconds since 1970 by the store's clock."""

    key: str
    size: int
    modified: float


class Storage(ABC):
    """A root URI and the acts on keys below it. Safe to share between threads, and to pickle."""

    uri: str

    @abstractmethod
    def get(self, key: str) -> Stored | None:
        """The bytes at `key`, of a document its newest version; None if there are none."""

    @abstractmethod
    def head(self, key: str) -> Entry | None:
        """Size and age of `key`; None if there is none."""

    @abstractmethod
    def create(self, key: str, data: Data, content_type: str | None = None) -> None:
        """Write a new object whole; Taken if the key exists. Exact: a lost response of our own write is no Taken."""

    @abstractmethod
    def put(self, key: str, data: Data, content_type: str | None = None) -> None:
        """Write an object whole, over whatever is there: for content that is the same whoever writes it."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object with all its versions; removing what is not there is no error."""

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Entry]:
        """Every object below `prefix` ("" or ending in "/"), in any order. For jobs and operators, never for consumers."""

    @abstractmethod
    def children(self, prefix: str) -> list[str]:
        """The names of the folders directly below `prefix`, sorted."""

    @abstractmethod
    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        """Make `data` the document's next version if its version is still `etag` (None: does not exist); the new etag.

        Taken if it is not. The bytes must never repeat an earlier version's: on S3 they are what the etag is made of.
        """

    @abstractmethod
    def drop(self, key: str) -> None:
        """Remove a document with all its versions."""

    @abstractmethod
    def sweep(self, older_than_seconds: float, is_ours: Callable[[str], bool]) -> int:
        """Remove what killed writers left half-written in folders that `is_ours`, a path below the root; how many."""

    def get_range(self, key: str, start: int, stop: int) -> Piece | None:
        """The bytes from `start` to before `stop`, fewer where the object ends earlier; None if there is no such key. However large
        an object is, no more of it is in memory."""
        stored = self.get(key)
        return stored and Piece(stored.data[start:stop], len(stored.data))

    def local_path(self, key: str) -> Path | None:
        """Where an object is a file of this machine; None in a store that is elsewhere."""
        return None

    def url(self, key: str, expires_seconds: int) -> str:
        """Where whoever has the link reads an object, on S3 until it expires. No request is made."""
        path = self.local_path(key)
        return self.address(key) if path is None else path.absolute().as_uri()

    def shown(self, key: str) -> bytes | None:
        """The bytes that a plain reader of the document finds under its key: on a folder a copy of the newest version."""
        stored = self.get(key)
        return stored and stored.data

    def tighten(self) -> None:  # noqa: B027
        """Let nobody else into private/, as far as that is the store's matter; on S3 policies are."""

    def read(self, key: str) -> bytes:
        """The bytes at `key`; StoreError naming it if there are none."""
        stored = self.get(key)
        if stored is None:
            raise StoreError(f"{self.uri}/{key}: not there")
        return stored.data

    def swap_or_find(self, key: str, data: bytes, etag: str | None) -> str:
        """`swap`, and where it fails a second look: a document that holds `data` was swapped, whatever the answer said."""
        try:
            return self.swap(key, data, etag)
        except StoreError:
            stored = self.get(key)
            if stored is None or stored.data != data:
                raise
            return stored.etag

    def address(self, key: str) -> str:
        """The full URI of `key`, for messages."""
        return f"{self.uri}/{key}"


def checked_key(key: str) -> str:
    """`key` itself; StoreError unless each of its segments is a plain name, so that no key leaves the root."""
    if len(key) > 900 or not _KEY.fullmatch(key):
        raise StoreError(f"{key!r}: not a key; segments are letters, digits and ._=- and start with a letter or digit")
    return key


def checked_prefix(prefix: str) -> str:
    """`prefix` itself; StoreError unless it is "" or a key followed by "/"."""
    if prefix:
        if not prefix.endswith("/"):
            raise StoreError(f"{prefix!r}: a prefix ends in /")
        checked_key(prefix[:-1])
    return prefix


def content_type_of(key: str) -> str:
    """The media type that the key's ending says."""
    return _CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream")
