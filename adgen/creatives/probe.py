"""Whether a store keeps the promises that publishing rests on. Asked before any model work."""

import uuid
from collections.abc import Callable
from contextlib import suppress

from adgen.creatives import layout
from adgen.creatives.storage import NO_CONDITIONS, Storage, Taken
from adgen.errors import StoreError


def probe(storage: Storage) -> None:
    """Write, read and delete two small keys; StoreError if the store is not writable or ignores preconditions."""
    name = f"{layout.PROBES}{uuid.uuid4().hex}"
    object_key, document_key = f"{name}.txt", f"{name}.json"
    try:
        storage.create(object_key, b"first")
        if not _refuses(lambda: storage.create(object_key, b"second")):
            raise StoreError(_ignored(storage, "If-None-Match: *"))
        if storage.read(object_key) != b"first":
            raise StoreError(f"{storage.uri}: gives back other bytes than were written; use another store")
        etag = storage.swap(document_key, b'{"turn": 1}', None)
        storage.swap(document_key, b'{"turn": 2}', etag)
        if not _refuses(lambda: storage.swap(document_key, b'{"turn": 3}', etag)):
            raise StoreError(_ignored(storage, "If-Match"))
    except Taken as error:
        raise StoreError(f"{storage.uri}: refused a write that nobody else made: {error}; use another store") from None
    finally:
        for remove, key in ((storage.delete, object_key), (storage.drop, document_key)):
            with suppress(StoreError, OSError):  # what is said above matters more than a leftover key, which clean-up takes
                remove(key)


def _refuses(write: Callable[[], object]) -> bool:
    try:
        write()
    except Taken:
        return True
    return False


def _ignored(storage: Storage, condition: str) -> str:
    return f"{storage.uri}: ignores {condition}, {NO_CONDITIONS}"
