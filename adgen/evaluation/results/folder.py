"""Where an evaluation is written, a folder or S3: first whose it is, then a part for each shard, its record last.

A part appears whole or not at all, under its shard's number; features come before rows, so that a shard whose rows lie there
is done, wherever whoever wrote it was stopped. The same evaluation goes on with what is missing; another one is refused.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from adgen.creatives.folder import FolderStorage
from adgen.creatives.journal import to_parquet
from adgen.creatives.storage import S3Access, Storage, Taken, content_type_of
from adgen.creatives.stores import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.results.diversity import DIVERSITY
from adgen.evaluation.results.earlier import RECORD
from adgen.evaluation.results.features import FEATURES
from adgen.evaluation.results.rows import ROWS, with_old_columns

IDENTITY = "identity.json"
REPORT = "report.html"
_ADVICE = "name another folder with --out, or remove it"
_THREADS = 16  # parts are small: fetching them is waiting for answers


@dataclass(frozen=True)
class Identity:
    """What an evaluation's parts must have in common."""

    runs: tuple[str, ...]
    """Run ids, seed by seed."""
    settings: str
    """Digest of the settings that decide scores, and of the tables that they name."""
    encoder: str | None
    """Digest of the PBS encoder; None: there is none."""
    networks: str
    """Digest of the other networks."""
    version: str
    """Digest of adgen's version, a row's schema, and how rows are cut into parts: another version may score or cut otherwise."""

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    @classmethod
    def of_bytes(cls, data: bytes, place: str) -> "Identity":
        """As `to_bytes` wrote it. SettingsError names the place where something else lies."""
        try:
            found = json.loads(data)
            if "judges" in found:  # the key before 0.2.0
                found["networks"] = found.pop("judges")
            return cls(**found | {"runs": tuple(found["runs"])})
        except (ValueError, TypeError, KeyError) as error:
            raise SettingsError(f"out: {place}: is not the identity of an evaluation ({error}); {_ADVICE}") from None

    def differs(self, other: "Identity") -> list[str]:
        """Each field that differs, with both values."""
        mine, theirs = asdict(self), asdict(other)
        differing = [name for name in mine if mine[name] != theirs[name]]
        return [f"{name} is {_shown(theirs[name])} there and {_shown(mine[name])} here" for name in differing]


def _shown(value: str | tuple[str, ...] | None) -> str:
    return ", ".join(value) if isinstance(value, tuple) else (value or "none")[:12]


class Results:
    """An evaluation's place."""

    def __init__(self, storage: Storage, folder: Path, copy: Storage | None = None):
        """folder: where whoever sums up the parts reads them: the place itself, or what `copy` writes of a place on S3."""
        self.storage, self.folder, self._copy = storage, folder, copy

    def begin(self, identity: Identity) -> set[int]:
        """Numbers of the parts that are there. SettingsError: the evaluation there is finished, or another one."""
        check_unfinished(self.storage)
        there = read_identity(self.storage)
        parts = (_PART.fullmatch(entry.key) for entry in self.storage.entries(f"{ROWS}/"))  # other people's files are not seen
        done = {int(match.group(1)) for match in parts if match}
        if there is None and done:
            raise SettingsError(f"out: {self.storage.uri}: an evaluation lies there that does not say whose it is; {_ADVICE}")
        if there is None:
            there = self._claim(identity)
        if found := identity.differs(there):
            raise SettingsError(f"out: {self.storage.uri}: parts of another evaluation lie there: {'; '.join(found)}; {_ADVICE}")
        if self._copy:
            self._fetch(done, self._copy)
        for name in (ROWS, FEATURES):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        return done

    def _claim(self, identity: Identity) -> Identity:
        try:
            self.storage.create(IDENTITY, identity.to_bytes(), content_type_of(IDENTITY))
        except Taken:  # by another command that began at the same time
            return Identity.of_bytes(self.storage.read(IDENTITY), self.storage.address(IDENTITY))
        return identity

    def _fetch(self, done: set[int], copy: Storage) -> None:
        def fetch(key: str) -> None:  # and put at once: parts that wait for each other would fill the memory
            if (stored := self.storage.get(key)) is not None:  # a shard where no picture was seen has no features
                copy.put(key, stored.data)

        keys = [_part(folder, number) for number in sorted(done) for folder in (ROWS, FEATURES)]
        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(fetch, keys):
                pass  # an error comes out here

    def write_part(self, number: int, rows: pa.Table, features: pa.Table) -> None:
        """A shard's SCORED and FEATURE_ROWS: it is done."""
        if features.num_rows:
            self._put(_part(FEATURES, number), to_parquet(features))
        self._put(_part(ROWS, number), to_parquet(with_old_columns(rows)))

    def finish(self, record: str) -> None:
        """The record goes last, after the other files of `folder`: where it lies, the evaluation is whole. Features, gigabytes
        of a large run, are removed then: the summary holds what they say."""
        for path in (self.folder / DIVERSITY, self.folder / REPORT) if self._copy else ():
            if path.exists():
                self.storage.put(path.name, path.read_bytes(), content_type_of(path.name))
        self.storage.put(RECORD, record.encode(), content_type_of(RECORD))
        for entry in list(self.storage.entries(f"{FEATURES}/")):
            if _PART.fullmatch(entry.key):
                self.storage.delete(entry.key)
        shutil.rmtree(self.folder / FEATURES, ignore_errors=True)

    def _put(self, key: str, data: bytes) -> None:
        if self._copy:
            self._copy.put(key, data)
        self.storage.put(key, data, content_type_of(key))


_PART = re.compile(rf"(?:{ROWS}|{FEATURES})/(\d{{6,}})\.parquet")


def _part(folder: str, number: int) -> str:
    return f"{folder}/{number:06d}.parquet"


@contextmanager
def open_results(out: str | Path, access: S3Access | None = None) -> Iterator[Results]:
    """The place `out` for the duration of the block: what is on S3 has its copy in a temporary folder. StoreError: a scheme that
    is not known."""
    storage = open_storage(out, access)
    if isinstance(storage, FolderStorage):
        yield Results(storage, storage.root)
        return
    with tempfile.TemporaryDirectory(prefix="adgen-evaluation-") as scratch:
        yield Results(storage, Path(scratch), FolderStorage(scratch))


def check_unfinished(storage: Storage) -> None:
    """SettingsError where a finished evaluation lies."""
    if storage.head(RECORD) is not None:
        raise SettingsError(f"out: {storage.uri}: an evaluation lies there and is finished; {_ADVICE}")


def read_identity(storage: Storage) -> Identity | None:
    """Whose parts lie there; None: nobody's. SettingsError as `Identity.of_bytes`."""
    stored = storage.get(IDENTITY)
    return stored and Identity.of_bytes(stored.data, storage.address(IDENTITY))
