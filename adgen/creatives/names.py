"""Which names in a store are ours. What else lies there is not seen by readers, and not removed by clean-up and erasure.

Consoles leave zero-byte keys that end in "/", desktops leave .DS_Store and Thumbs.db, network storage leaves @eaDir, and
people leave files of their own. A new kind of key needs a line here, or nothing ever removes it.
"""

import re
from collections.abc import Iterator

from adgen.creatives.storage import Entry, Storage

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
RUN_ID = r"\d{14}-\d{6}-[0-9a-f]{8}"
JOURNAL_PART = r"\d{8}\.parquet"
_HH, _HASH, _GENERATION = "[0-9a-f]{2}", "[0-9a-f]{64}", r"\d{8,}\.json"
_PART = r"\d{5,}-[0-9a-f]{16}\.parquet"
_RUN = ("campaigns", NAME, "runs", RUN_ID)

# A pattern for each segment of a key. A document's folder next to it holds its generations in a local store.
_KEYS = (
    ("objects", _HH, rf"{_HASH}\.[a-z0-9]{{1,8}}"),
    ("campaigns", NAME, r"latest\.json"),
    ("campaigns", NAME, "latest", _GENERATION),
    (*_RUN, r"run\.json"),
    (*_RUN, "run", _GENERATION),
    (*_RUN, "manifest", _PART),
    ("private", "campaigns", NAME, r"[a-z_]+\.json"),
    ("private", "campaigns", NAME, "[a-z_]+", _GENERATION),
    ("private", "campaigns", NAME, "unpasted", _HH, "[0-9a-f]+", r"[0-9a-f]{16}\.png"),
    ("private", *_RUN, r"[a-z_]+\.(json|html|parquet)"),
    ("private", *_RUN, "(shards|lineage)", _PART),
    ("private", *_RUN, "journal", JOURNAL_PART),
    ("private", "forgotten", _HH, rf"{_HASH}(\.[a-z]+)?\.json"),  # of version 0.1, without the key's id
    ("private", "forgotten", "[0-9a-f]+", _HH, rf"{_HASH}(\.[a-z]+)?\.json"),
    ("private", "campaigns", NAME, "served", r"[A-Za-z0-9._-]+\.parquet"),
    ("private", r"pairs\.parquet"),
    ("private", "clean-up", rf"{_HH}\.parquet"),
    ("private", "probe", r"[0-9a-f]{32}\.(txt|json)"),
    ("private", "probe", "[0-9a-f]{32}", _GENERATION),
    ("catalog", _HASH, "files", rf"{_HASH}\.arrow"),
    ("catalog", _HASH, "indexes", rf"{_HASH}\.json"),
    ("catalog", _HASH, "last", rf"{NAME}\.json"),
    ("catalog", _HASH, "last", NAME, _GENERATION),
)
_IS_KEY = re.compile("|".join(f"(?:{'/'.join(segments)})" for segments in _KEYS))
_FOLDERS = {segments[:depth] for segments in _KEYS for depth in range(1, len(segments))}
_IS_FOLDER = re.compile("|".join(f"(?:{'/'.join(segments)})" for segments in sorted(_FOLDERS)))


def is_ours(key: str) -> bool:
    """Whether `key` is one that a part of adgen writes."""
    return _IS_KEY.fullmatch(key) is not None


def is_our_folder(path: str) -> bool:
    """Whether keys of ours may lie directly or deeper below `path`, which is relative to the store's root."""
    return _IS_FOLDER.fullmatch(path) is not None


def own_entries(storage: Storage, prefix: str) -> Iterator[Entry]:
    """What of ours lies below `prefix`."""
    return (entry for entry in storage.entries(prefix) if is_ours(entry.key))


def campaigns(storage: Storage) -> list[str]:
    """The campaigns of the store, by name."""
    return [name for name in storage.children("campaigns/") if re.fullmatch(NAME, name)]


def run_ids(storage: Storage, prefix: str) -> list[str]:
    """The runs that have a folder below `prefix`, oldest first."""
    return [name for name in storage.children(prefix) if re.fullmatch(RUN_ID, name)]
