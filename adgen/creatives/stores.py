"""The store that a URI names: a folder or S3."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from adgen.creatives.storage import NO_CREDENTIALS, S3Access, Storage
from adgen.errors import StoreError

_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|s3:", re.IGNORECASE)


def open_storage(uri: str | Path, access: S3Access | None = None) -> Storage:
    """The store at `uri`: a path, file:// or s3://bucket/prefix. StoreError names any other scheme. No request is made."""
    text = str(uri)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme and "@" in urlsplit(text).netloc:
        raise StoreError(f"a store's URI holds credentials before its bucket; {NO_CREDENTIALS}")
    if not scheme and _ONE_SLASH.match(text):  # surely no folder of that name was meant
        raise StoreError(f"{text}: not a store; write s3://bucket/prefix, file:///a/path, or ./{text} for a folder of that name")
    if scheme in ("", "file"):
        from adgen.creatives.folder import FolderStorage

        path = unquote(urlsplit(text).path) if scheme else text
        if not path or (scheme and urlsplit(text).netloc not in ("", "localhost")):
            raise StoreError(f"{text!r}: not a folder; write /a/path or file:///a/path")
        return FolderStorage(path)
    if scheme == "s3":
        from adgen.creatives.s3 import S3Storage

        return S3Storage(text, access or S3Access())
    raise StoreError(f"{text}: scheme {scheme!r} is not supported; use a folder, file:// or s3://")
