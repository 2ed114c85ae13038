"""A feed's files: where they are, whether they are compressed, what kind they are and in which encoding.

A source is read as a stream and more than once; what gzip holds is counted while it is read, so that a small file cannot become
an endless one.
"""

import codecs
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow.fs as pafs

from adgen.errors import FetchError, InputError
from adgen.shop.inputs.locations import filesystem, is_s3, local_path
from adgen.shop.inputs.web.fetcher import Fetcher

MAX_BYTES = 64 * 2**30
"""Of one file, decompressed."""
MAX_RATIO = 200
"""Of that to the compressed file, beyond FREE_BYTES: feeds and logs reach 5 to 30, endless files 1000."""
FREE_BYTES = 2**28
_CHUNK = 2**20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook; unpack it, or save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save it as CSV"),
    (b"%PDF", "a PDF"),
    (b"BZh", "bzip2 data; unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd data; unpack it"),
    (b"\xfd7zXZ", "xz data; unpack it"),
)


@dataclass(frozen=True)
class Source:
    """One local file of a feed."""

    path: Path
    name: str
    """As the operator knows it."""
    folder: str | None
    """What its links may name beside https: files in here. None: no file (a feed on the web, or in the disk's root)."""

    @property
    def is_compressed(self) -> bool:
        with open(self.path, "rb") as file:
            return file.read(2) == b"\x1f\x8b"

    def open(self) -> BinaryIO:
        """Its bytes, decompressed. Reading raises InputError where gzip data is broken or holds more than MAX_BYTES."""
        plain = gzip.GzipFile(self.path) if self.is_compressed else io.FileIO(self.path)
        return io.BufferedReader(_Limited(plain, self), _CHUNK)

    def kind(self) -> str:
        """xml, json, parquet or table (CSV and its like), by its first bytes. InputError: empty, or of another kind."""
        with self.open() as file:
            head = file.read(4096)
        if found := next((what for magic, what in _FOREIGN if head.startswith(magic)), None):
            raise InputError(f"{self.name}: is {found}")
        if head[:4] == b"PAR1":
            if self.is_compressed:
                raise InputError(f"{self.name}: is gzipped Parquet; unpack it (Parquet is compressed inside)")
            return "parquet"
        text = head.decode(_by_bytes(head) or "latin-1", "replace").lstrip("\ufeff \t\r\n")
        if not text:
            raise InputError(f"{self.name}: is empty")
        if text[0] == "[":
            raise InputError(f"{self.name}: is a JSON array; write one object a line (jq -c '.[]')")
        return {"<": "xml", "{": "json"}.get(text[0], "table")

    def encoding(self) -> str:
        """Of a text: what its first bytes say, else UTF-8 unless most of what is not ASCII is not UTF-8: then Windows-1252."""
        with self.open() as file:
            if named := _by_bytes(file.read(4096)):
                return named
        decode, good, bad = codecs.getincrementaldecoder("utf-8")("replace").decode, 0, 0
        with self.open() as file:
            while chunk := file.read(_CHUNK):
                if not chunk.isascii():
                    text = decode(chunk)
                    replaced = text.count("\ufffd")
                    bad += replaced
                    good += sum(1 for character in text if character > "\x7f") - replaced
        return "cp1252" if bad > good else "utf-8"


class _Limited(io.RawIOBase):
    def __init__(self, inner: BinaryIO, source: Source):
        self._inner, self._source, self._read, self._limit, self._said = inner, source, 0, MAX_BYTES, f"{MAX_BYTES} bytes"
        if source.is_compressed and (by_size := max(FREE_BYTES, MAX_RATIO * source.path.stat().st_size)) < MAX_BYTES:
            self._limit, self._said = by_size, f"{MAX_RATIO} times its size; unpack it if that is right"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self._inner.read(len(buffer))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{self._source.name}: its gzip data is broken: {error}") from None
        self._read += len(data)
        if self._read > self._limit:
            raise InputError(f"{self._source.name}: holds, decompressed, more than {self._said}")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._inner.close()
        super().close()


def _by_bytes(head: bytes) -> str | None:
    """The encoding that a byte order mark says, or every other byte being zero."""
    if named := next((name for bom, name in _BOMS if head.startswith(bom)), None):
        return named
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) / 8:
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def sources_of(uri: str, staging: Path, fetcher: Fetcher | None = None) -> Iterator[Source]:
    """The feed's files: a file, or those of a folder, local or on S3, or a file on the web where there is a `fetcher`.

    What is not local is copied into `staging` while it is read. InputError: there is none, or the scheme is not known.
    """
    if uri.lower().startswith("https://") and fetcher:
        yield _download(uri, staging / "source", fetcher)
        return
    try:
        files, path = filesystem(uri if is_s3(uri) else local_path(uri))
        infos = _files_at(files, path)
    except ValueError as error:
        raise InputError(f"{error}; give a file, a folder, s3:// or https://") from None
    except OSError as error:
        raise InputError(f"{uri}: {error}") from None
    if not infos:
        raise InputError(f"{uri}: there is no such file, and no folder with files")
    for info in infos:
        if isinstance(files, pafs.LocalFileSystem):
            folder = os.path.dirname(info.path)
            yield Source(Path(info.path), info.path, folder if len(Path(folder).parts) > 1 else None)
        else:
            copy = staging / "source"
            _copy(files, info, copy)
            yield Source(copy, f"s3://{info.path}", f"s3://{os.path.dirname(info.path)}")


def _download(uri: str, to: Path, fetcher: Fetcher) -> Source:
    name = re.sub(r"^(https://)[^/]*@", r"\1...@", uri.partition("?")[0], flags=re.I)  # what follows may be a token
    with open(to, "wb") as file:

        def begin_again() -> None:
            file.seek(0)
            file.truncate()

        try:
            fetcher.fetch(uri, file.write, begin_again)
        except FetchError as error:
            raise InputError(f"{name}: {error.reason}: {error.detail.replace(uri, name)}") from None
    return Source(to, name, None)


def _files_at(files: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    info = files.get_file_info(path)
    if info.type != pafs.FileType.Directory:
        return [info] if info.type == pafs.FileType.File else []
    inside = files.get_file_info(pafs.FileSelector(path, recursive=False))
    return sorted(
        (each for each in inside if each.type == pafs.FileType.File and each.base_name[0] not in "._"), key=lambda i: i.path
    )


def _copy(files: pafs.FileSystem, info: pafs.FileInfo, to: Path) -> None:
    if info.size > MAX_BYTES:
        raise InputError(f"s3://{info.path}: has {info.size} bytes, limit {MAX_BYTES}")
    with files.open_input_stream(info.path) as source, open(to, "wb") as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
