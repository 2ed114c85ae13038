"""Where bytes come from: local paths, file:// and s3:// URIs, and which of them a table's rows may name.

A row's URI is not to be trusted. It is resolved once, by `resolve_uri`, which lets it name only files under the
allowed roots; `read_bytes` and `stat` then take what `resolve_uri` returned.
"""

import os
import re
import stat as stat_module
from collections.abc import Iterable
from contextlib import closing
from functools import lru_cache
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from adgen.creatives.storage import NO_CREDENTIALS, S3Access
from adgen.errors import PairError

SCHEMES = ("file", "s3")
MAX_PICTURE_BYTES = 64 * 2**20
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def is_s3(uri: str) -> bool:
    """Whether `uri` is an s3:// URI, not a local one."""
    return uri.startswith("s3://")


def local_path(uri: str) -> str:
    """The path of a plain or file:// URI; ValueError for any other scheme or for a file on another host."""
    if not uri.startswith("file:"):
        if _SCHEME.match(uri):
            raise ValueError(f"{uri}: not a local path")
        return uri
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{uri}: a file on another host")
    return unquote(parts.path)


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of an operator's `uri` and the path in it. ValueError when it is neither local nor S3."""
    if not is_s3(uri):
        return pafs.LocalFileSystem(), os.path.abspath(local_path(uri))
    path = uri.removeprefix("s3://").rstrip("/")
    bucket = path.split("/", 1)[0]
    if "@" in bucket:
        raise ValueError(f"an s3:// URI holds credentials before its bucket; {NO_CREDENTIALS}")
    if not bucket:
        raise ValueError(f"{uri}: no bucket")
    from adgen.creatives.s3 import s3_filesystem

    return s3_filesystem(bucket, S3Access()), path


def resolve_uri(uri: str, base: str, allowed_roots: Iterable[str] = (), allowed_schemes: Iterable[str] = SCHEMES) -> str:
    """What a row's `uri` means in the table folder `base`: an absolute real path or an s3:// URI.

    Only files under `base` or one of `allowed_roots` (folders or URIs) are named, `..` and symlinks followed first.
    PairError: missing_file (empty), scheme_not_allowed, outside_roots, unreadable (no possible path).
    """
    if not uri:
        raise PairError("missing_file", "empty URI")
    named = _SCHEME.match(uri)
    scheme = named.group(1).lower() if named else ("file" if uri.startswith("/") else "")
    if scheme and scheme not in allowed_schemes:
        raise PairError("scheme_not_allowed", f"{uri}: only {', '.join(allowed_schemes)} and relative paths")
    try:
        if scheme == "s3" or (not scheme and is_s3(base)):
            return _resolve_s3(uri if scheme else f"{base.rstrip('/')}/{uri.removeprefix('./')}", (base, *allowed_roots))
        path = local_path(uri) if scheme else os.path.join(local_path(base), uri)
        return _resolve_local(path, (base, *allowed_roots))
    except ValueError as error:  # a NUL or half a surrogate in the path, or a file on another host
        raise PairError("unreadable", f"{uri!r}: {error}") from None


def _resolve_s3(uri: str, roots: Iterable[str]) -> str:
    # Keys are taken literally, two slashes and single dots too. No query is read, or a row could send our credentials to an
    # endpoint of its own.
    if not uri[len("s3:") :].startswith("//"):
        raise ValueError("not s3://bucket/key")
    bucket, _, key = uri[len("s3://") :].partition("/")
    path = f"{bucket}/{_climbed(key)}"
    for root in roots:
        root_path = root.removeprefix("s3://").rstrip("/")
        if is_s3(root) and path.startswith(root_path + "/"):
            return f"s3://{path}"
    raise PairError("outside_roots", uri)


def _climbed(key: str) -> str:
    """The key with each `..` and the name before it taken away. PairError: outside_roots, where there is none before it."""
    names: list[str] = []
    for name in key.split("/"):
        if name != "..":
            names.append(name)
        elif names:
            names.pop()
        else:
            raise PairError("outside_roots", key)
    return "/".join(names)


def _resolve_local(path: str, roots: Iterable[str]) -> str:
    real = os.path.realpath(path)
    for root in roots:
        if not is_s3(root) and real.startswith(_real_folder(local_path(root))):
            return real
    raise PairError("outside_roots", path)


@lru_cache(maxsize=256)
def _real_folder(root: str) -> str:
    return os.path.join(os.path.realpath(root), "")


def read_bytes(uri: str, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
    """One file's bytes, for a URI from `resolve_uri`. PairError: missing_file, unreadable, too_large_file."""
    if is_s3(uri):
        answer = _ask_s3(uri, "get_object")
        with closing(answer["Body"]) as body:
            _check_size(uri, answer["ContentLength"], max_bytes)
            return _read_s3(uri, body)
    try:
        _check_size(uri, _regular_file(uri).st_size, max_bytes)
        with open(uri, "rb") as file:
            data = file.read(max_bytes + 1)
        _check_size(uri, len(data), max_bytes)
        return data
    except OSError as error:
        raise _pair_error(uri, error) from None


def stat(uri: str) -> str:
    """What changes when the file does: its ETag, or size and modification time. PairError as `read_bytes`."""
    if is_s3(uri):
        return "etag:" + _ask_s3(uri, "head_object")["ETag"].strip('"')
    try:
        found = _regular_file(uri)
        return f"size:{found.st_size},mtime_ns:{found.st_mtime_ns}"
    except OSError as error:
        raise _pair_error(uri, error) from None


def _ask_s3(uri: str, act: str) -> dict[str, Any]:
    """boto3, not pyarrow: it takes every key as it is."""
    from botocore.exceptions import BotoCoreError, ClientError

    from adgen.creatives.s3 import s3_client

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        return getattr(s3_client(S3Access()), act)(Bucket=bucket, Key=key)
    except ClientError as error:
        missing = error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey", "NotFound")
        raise PairError("missing_file" if missing else "unreadable", f"{uri}: {error}") from None
    except BotoCoreError as error:  # also a bucket or key that cannot be
        raise PairError("unreadable", f"{uri}: {error}") from None


def _read_s3(uri: str, body: Any) -> bytes:
    from botocore.exceptions import BotoCoreError

    try:
        return body.read()
    except (BotoCoreError, OSError) as error:
        raise PairError("unreadable", f"{uri}: {error}") from None


def _regular_file(path: str) -> os.stat_result:
    found = os.stat(path)
    if not stat_module.S_ISREG(found.st_mode):  # opening a FIFO might never return
        raise PairError("unreadable", f"{path} is not a regular file")
    return found


def _check_size(uri: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise PairError("too_large_file", f"{uri} has {size} bytes, limit {max_bytes}")


def _pair_error(uri: str, error: OSError) -> PairError:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return PairError("missing_file" if missing else "unreadable", f"{uri}: {error}")
