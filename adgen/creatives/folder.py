"""A store in a local folder, with the guarantees of conditional writes on S3.

An object appears by `link` of a finished temporary file: it is whole or absent, and the second writer fails. A document
`latest.json` is a row of generations `latest/00000001.json`, ... made the same way; `latest.json` itself is a copy of
the newest for plain readers, replaced by rename. Every step may be the last one of a killed process.
"""

import errno
import functools
import hashlib
import io
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from adgen.creatives.storage import Data, Entry, Piece, Storage, Stored, Taken, checked_key, checked_prefix
from adgen.errors import StoreError

T = TypeVar("T")
log = logging.getLogger(__name__)

PRIVATE = "private"

_TEMPORARY = ".tmp-"
_TEMPORARY_NAME = re.compile(rf"{re.escape(_TEMPORARY)}[0-9a-f]{{32}}")
_GENERATION = re.compile(r"\d{8,}\.json")
# A writer that slept for this many generations may find its file name free again; see swap().
KEPT_GENERATIONS = 64


class FolderStorage(Storage):
    """A folder on a file system with hard links. Many processes may share it."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().absolute()
        self.uri = str(self.root)
        self._private = str(self.root / PRIVATE)

    def get(self, key: str) -> Stored | None:
        path = self._path(key)
        while path.suffix == ".json" and (generations := _generations(path)):
            data = _unless_missing(_generation_path(path, generations[-1]).read_bytes)
            if data is not None:  # else 64 newer ones were made in between
                return Stored(data, _etag(generations[-1], data))
        data = _unless_missing(path.read_bytes)
        return None if data is None else Stored(data, hashlib.sha256(data).hexdigest())

    def get_range(self, key: str, start: int, stop: int) -> Piece | None:
        if key.endswith(".json"):  # its newest generation
            return super().get_range(key, start, stop)
        return _unless_missing(lambda: _read_range(self._path(key), start, stop))

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def shown(self, key: str) -> bytes | None:
        return _unless_missing(self._path(key).read_bytes)

    def head(self, key: str) -> Entry | None:
        found = _unless_missing(self._path(key).stat)
        return None if found is None else Entry(key, found.st_size, found.st_mtime)

    def create(self, key: str, data: Data, content_type: str | None = None) -> None:
        path = f"{self.root}/{checked_key(key)}"  # text: with a Path every object would cost twice as much
        if os.path.exists(path):  # spares the write of bytes that would lose anyway
            raise Taken(f"{path}: exists already")
        self._link(path, data)

    def put(self, key: str, data: Data, content_type: str | None = None) -> None:
        self._replace(self._path(key), data)

    def delete(self, key: str) -> None:
        _unless_missing(self._path(key).unlink)

    def entries(self, prefix: str) -> Iterator[Entry]:
        top = self.root / checked_prefix(prefix)
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if name.startswith(_TEMPORARY) or (found := _unless_missing(path.stat)) is None:
                    continue
                yield Entry(path.relative_to(self.root).as_posix(), found.st_size, found.st_mtime)

    def children(self, prefix: str) -> list[str]:
        top = self.root / checked_prefix(prefix)
        return sorted(path.name for path in _unless_missing(lambda: list(top.iterdir())) or () if path.is_dir())

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        path = self._path(key)
        now = self.get(key)
        if (now.etag if now else None) != etag:
            self._refresh_copy(path)
            raise Taken(f"{path}: was changed by another writer")
        generation = int(etag.partition("-")[0]) + 1 if etag else 1
        try:
            self._link(_generation_path(path, generation), data)
        except Taken:
            self._refresh_copy(path)
            raise
        # We may have slept so long that later generations were made and ours, trimmed, was free again. Then our file
        # is below the newest and has no successor: nobody reads it, and we lost. Or the document was dropped meanwhile:
        # then ours has no predecessor, and we must not revive it.
        generations = _generations(path)
        trimmed = max(generations, default=generation) != generation and generation + 1 not in generations
        dropped = generation > 1 and min(generations, default=generation) == generation
        if lost := trimmed or dropped:
            _unless_missing(_generation_path(path, generation).unlink)
        self._refresh_copy(path)
        for old in generations[:-KEPT_GENERATIONS]:
            _unless_missing(_generation_path(path, old).unlink)
        if lost:
            raise Taken(f"{path}: was changed by another writer")
        return _etag(generation, data)

    def drop(self, key: str) -> None:
        path = self._path(key)
        # The newest generation goes last: killed half-way, the document still is what it was. Again until none is left: a
        # writer may have added one.
        while generations := _generations(path):
            for generation in generations:
                _unless_missing(_generation_path(path, generation).unlink)
        _unless_missing(path.unlink)
        _remove_if_empty(path.with_suffix(""))  # a killed writer's temporary file may be left in it

    def sweep(self, older_than_seconds: float, is_ours: Callable[[str], bool]) -> int:
        limit, removed = time.time() - older_than_seconds, 0
        tops = (path for path in _unless_missing(lambda: list(self.root.iterdir())) or () if is_ours(path.name))
        for folder, folders, names in (found for top in tops for found in os.walk(top, topdown=False)):
            if not is_ours(Path(folder).relative_to(self.root).as_posix()):
                continue
            for name in filter(_TEMPORARY_NAME.fullmatch, names):
                path = Path(folder, name)
                if (found := _unless_missing(path.stat)) and found.st_mtime < limit:
                    _unless_missing(path.unlink)
                    removed += 1
            if not folders and not names and os.stat(folder).st_mtime < limit:
                _remove_if_empty(Path(folder))
        return removed

    def tighten(self) -> None:
        """Take others' rights away from what is ours below private/; one warning where the file system knows no modes."""
        top = self.root / PRIVATE
        ignored = False
        for folder, _, names in os.walk(top):
            for path, mode in [(Path(folder), 0o700), *((Path(folder, name), 0o600) for name in names)]:
                found = _unless_missing(path.lstat)
                if found is None or found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode) or not found.st_mode & 0o077:
                    continue
                _unless_missing(lambda path=path, mode=mode: path.chmod(mode))
                again = _unless_missing(path.lstat)
                ignored |= again is not None and bool(again.st_mode & 0o077)
        if ignored:
            _warn_of_modes(str(top))

    def _is_private(self, path: str | Path) -> bool:
        return f"{path}{os.sep}".startswith(self._private + os.sep)

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _refresh_copy(self, path: Path) -> None:
        """Make the plain file a copy of the newest generation.

        Repeated until nothing newer appeared while writing, so that a slow writer cannot leave an older copy. A
        writer killed in here can: until the next swap, readers of the plain file see the version before.
        """
        copied = -1
        while (generations := _generations(path)) and generations[-1] != copied:
            data = _unless_missing(_generation_path(path, generations[-1]).read_bytes)
            if data is None:
                continue
            copied = generations[-1]
            if _unless_missing(path.read_bytes) != data:
                self._replace(path, data)
        if copied > 0 and not generations:  # dropped meanwhile: a copy alone would be taken for the document
            _unless_missing(path.unlink)

    def _link(self, path: str | Path, data: Data) -> None:
        temporary = self._temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise Taken(f"{path}: exists already") from None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}; the store's file system must have hard links") from None
        finally:
            _unless_missing(lambda: os.unlink(temporary))
        _sync(os.path.dirname(path))

    def _replace(self, path: Path, data: Data) -> None:
        temporary = self._temporary(path, data)
        try:
            os.replace(temporary, path)
        except OSError as error:
            _unless_missing(lambda: os.unlink(temporary))
            raise StoreError(f"{path}: cannot be replaced: {error.strerror}") from None
        _sync(os.path.dirname(path))

    def _temporary(self, path: str | Path, data: Data) -> str:
        folder = os.path.dirname(path)
        temporary = f"{folder}/{_TEMPORARY}{os.urandom(16).hex()}"
        try:
            while not _write_synced(temporary, data, 0o600 if self._is_private(path) else 0o666):
                self._make_folder(Path(folder))
        except OSError as error:
            _unless_missing(lambda: os.unlink(temporary))
            raise StoreError(f"{path}: cannot be written: {error.strerror}; check the folder's rights") from None
        return temporary

    def _make_folder(self, folder: Path) -> None:
        missing = [folder, *(parent for parent in folder.parents if not parent.exists())]
        for made in reversed(missing):
            made.mkdir(mode=0o700 if self._is_private(made) else 0o777, parents=True, exist_ok=True)
        for made in missing:
            _sync(made.parent)


@functools.cache
def _warn_of_modes(folder: str) -> None:
    log.warning("%s: its file system knows no modes, so others on this machine may read it: keep it where they do", folder)


def _generations(path: Path) -> list[int]:
    names = _unless_missing(lambda: os.listdir(path.with_suffix(""))) or ()
    return sorted(int(name.partition(".")[0]) for name in names if _GENERATION.fullmatch(name))


def _generation_path(path: Path, generation: int) -> Path:
    return path.with_suffix("") / f"{generation:08d}.json"


def _etag(generation: int, data: bytes) -> str:
    return f"{generation}-{hashlib.sha256(data).hexdigest()[:32]}"


def _unless_missing(act: Callable[[], T]) -> T | None:
    """What `act` returns, None where the file or a folder above it is not there; StoreError on any other failure."""
    try:
        return act()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise StoreError(f"{error.filename}: {error.strerror}") from None


def _read_range(path: Path, start: int, stop: int) -> Piece:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(start)
        return Piece(file.read(max(0, min(stop, size) - start)), size)


def _write_synced(path: str, data: Data, mode: int) -> bool:
    """Write a new file, on disk; False where its folder is not there."""
    try:
        with open(path, "xb", buffering=0, opener=lambda name, flags: os.open(name, flags, mode)) as file:
            _write_whole(file, data)
            _fsync(file.fileno())
    except FileNotFoundError:
        return False
    return True


def _write_whole(file: io.RawIOBase, data: Data) -> None:
    """A write may take a part: of more than 2 GB, or where the disk is full. No view of the data is left when it fails: a mapped
    file could not be closed then, and its error would hide this one."""
    done = 0
    with memoryview(data) as whole:
        while done < len(whole):
            with whole[done:] as left:
                done += file.write(left)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise StoreError(f"{folder}: {error.strerror}") from None


def _sync(folder: str | Path) -> None:
    """Make names in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int) -> None:
    """To disk, where the file system knows how: some network and FUSE ones do not, for folders above all."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
