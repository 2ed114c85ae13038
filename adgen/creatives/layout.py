"""Where everything is in a store: every key of the contract with consumers, and the patterns of its names."""

import re
import time
import uuid

from adgen.creatives import names
from adgen.errors import StoreError

_NAME = re.compile(names.NAME)
_RUN_ID = re.compile(names.RUN_ID)
_JOURNAL_PART = re.compile(names.JOURNAL_PART)
_OBJECT = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})\.([a-z0-9]{1,8})")
_MANIFEST_FILE = re.compile(rf"campaigns/[^/]+/runs/{_RUN_ID.pattern}/manifest/\d{{5}}-([0-9a-f]{{16}})\.parquet")
_RUN_FILE = re.compile(rf"private/campaigns/({names.NAME})/runs/({names.RUN_ID})/")
_SERVED = re.compile(r"(key-)?[0-9a-f]{32}")
_EXTENSION = re.compile(r"[a-z0-9]{1,8}")

CAMPAIGNS = "campaigns/"
OBJECTS = "objects/"
PRIVATE = "private/"
FORGOTTEN = "private/forgotten/"
PROBES = "private/probe/"
CANDIDATES = "private/clean-up/"
CATALOGS = "catalog/"


def new_run_id() -> str:
    """A run's name: UTC time to the microsecond, then 32 random bits; names sort by time."""
    now = time.time_ns() // 1000
    return f"{time.strftime('%Y%m%d%H%M%S', time.gmtime(now // 10**6))}-{now % 10**6:06d}-{uuid.uuid4().hex[:8]}"


def is_campaign(name: str) -> bool:
    """Whether a campaign may be called so."""
    return _NAME.fullmatch(name) is not None


def checked_campaign(campaign: str) -> str:
    """`campaign` itself; StoreError unless it is 1-64 letters, digits, _ or -, and starts with a letter or digit."""
    if not _NAME.fullmatch(campaign):
        raise StoreError(f"campaign {campaign!r}: use 1-64 letters, digits, _ or -, starting with a letter or digit")
    return campaign


def checked_run_id(run_id: str) -> str:
    """`run_id` itself; StoreError unless it looks like what `new_run_id` makes."""
    if not _RUN_ID.fullmatch(run_id):
        raise StoreError(f"run {run_id!r}: not a run id; `adgen runs STORE CAMPAIGN` lists them")
    return run_id


def object_key(sha256: str, extension: str) -> str:
    """Content-addressed, hash first, so that no prefix is hot."""
    if not _EXTENSION.fullmatch(extension):
        raise StoreError(f"extension {extension!r}: use 1-8 lower-case letters or digits")
    return f"objects/{sha256[:2]}/{sha256}.{extension}"


def manifest_file_hash(key: str) -> str | None:
    """The first 16 digits of the sha256 that a manifest file's key names; None if it is no such key."""
    match = _MANIFEST_FILE.fullmatch(key)
    return match.group(1) if match else None


def object_hash(key: str) -> str | None:
    """The sha256 that an object's key names; None if it is not the key of an object."""
    match = _OBJECT.fullmatch(key)
    return match.group(2) if match else None


def pointer(campaign: str) -> str:
    """The document that alone says what is published."""
    return f"campaigns/{checked_campaign(campaign)}/latest.json"


def runs(campaign: str) -> str:
    """Prefix of all runs."""
    return f"campaigns/{checked_campaign(campaign)}/runs/"


def run(campaign: str, run_id: str) -> str:
    """Prefix of what consumers read of a run."""
    return f"{runs(campaign)}{checked_run_id(run_id)}/"


def run_document(campaign: str, run_id: str) -> str:
    """Settings, state, counts, list of manifest files."""
    return f"{run(campaign, run_id)}run.json"


def manifest_file(campaign: str, run_id: str, index: int, sha256: str) -> str:
    """Named by content, so that a compaction done again never meets other bytes under its name."""
    return f"{run(campaign, run_id)}manifest/{index:05d}-{sha256[:16]}.parquet"


def private_campaign(campaign: str) -> str:
    """Prefix of what holds user ids and histories, under an access rule of its own."""
    return f"private/campaigns/{checked_campaign(campaign)}/"


def driver_slot(campaign: str) -> str:
    """The document that names the run being driven: the one thing two drivers that start at once both write."""
    return f"{private_campaign(campaign)}driver.json"


def private_run(campaign: str, run_id: str) -> str:
    """Prefix of a run's plan, journal, lineage and report."""
    return f"{private_campaign(campaign)}runs/{checked_run_id(run_id)}/"


def run_of(key: str) -> tuple[str, str] | None:
    """(campaign, run_id) of what a run holds below private/; None if it is of no run."""
    match = _RUN_FILE.match(key)
    return (match.group(1), match.group(2)) if match else None


def plan_document(campaign: str, run_id: str) -> str:
    """The commit of the plan."""
    return f"{private_run(campaign, run_id)}plan.json"


def plan_part(campaign: str, run_id: str, index: int, sha256: str) -> str:
    """The pairs of one shard; named by content, so that a planner thought dead changes nothing."""
    return f"{private_run(campaign, run_id)}shards/{index:08d}-{sha256[:16]}.parquet"


def journal(campaign: str, run_id: str) -> str:
    """Prefix of the journal parts."""
    return f"{private_run(campaign, run_id)}journal/"


def journal_part(campaign: str, run_id: str, index: int) -> str:
    """The manifest rows of one shard: that it exists means that the shard is done."""
    return f"{journal(campaign, run_id)}{index:08d}.parquet"


def lineage_part(campaign: str, run_id: str, index: int, sha256: str) -> str:
    """Named by content: two workers on one shard leave two files, and the journal part names its own."""
    return f"{private_run(campaign, run_id)}lineage/{index:08d}-{sha256[:16]}.parquet"


def report(campaign: str, run_id: str) -> str:
    """The contact sheet for people."""
    return f"{private_run(campaign, run_id)}report.html"


def unpasted_pictures(campaign: str, pair_id: str) -> str:
    """Prefix of what the model painted of a pair before the product was pasted; evaluations keep it."""
    return f"{private_campaign(campaign)}unpasted/{pair_id[:2]}/{pair_id}/"


def unpasted_picture(campaign: str, pair_id: str, fingerprint: str) -> str:
    """One of them. No run is in its name: a row that is carried to another run keeps its fingerprint."""
    return f"{unpasted_pictures(campaign, pair_id)}{fingerprint[:16]}.png"


def served_files(campaign: str) -> str:
    """Prefix of what was made on demand."""
    return f"{private_campaign(campaign)}served/"


def served(campaign: str, name: str) -> str:
    """A creative that was made on demand, by its public fingerprint; or a client's key for one, as key-<digest>."""
    if not _SERVED.fullmatch(name):
        raise StoreError(f"served {name!r}: not a fingerprint")
    return f"{served_files(campaign)}{name}.parquet"


def catalog(model_digest: str) -> str:
    """Prefix of the catalog made with one model."""
    return f"catalog/{model_digest}/"


def tombstone(key_id: str | None, user_hash: str) -> str:
    """The mark that a user was erased; `user_hash` is keyed, by the key of that id. Version 0.1 wrote no id."""
    return f"{_forgotten(key_id, user_hash)}.json"


def receipt(key_id: str | None, user_hash: str) -> str:
    """The proof that nothing of the user is left."""
    return f"{_forgotten(key_id, user_hash)}.receipt.json"


def scanned(key_id: str | None, user_hash: str) -> str:
    """That a later scan found the receipt true."""
    return f"{_forgotten(key_id, user_hash)}.scanned.json"


def _forgotten(key_id: str | None, user_hash: str) -> str:
    return f"{FORGOTTEN}{f'{key_id}/' if key_id else ''}{user_hash[:2]}/{user_hash}"


def journal_index(key: str) -> int | None:
    """The shard's number in the key of its journal part; None for any other key."""
    name = key.rpartition("/")[2]
    return int(name[:8]) if _JOURNAL_PART.fullmatch(name) else None


def candidates(shard: str) -> str:
    """The unnamed objects whose hash begins with `shard` (two hex digits) that a clean-up found; the next one removes them."""
    return f"{CANDIDATES}{shard}.parquet"
