"""Rows, their Arrow schemas, and how ids and seeds are derived. A leaf: pyarrow and the standard library only.

Every id is a hash over a canonical encoding of its parts, so that ("a", "bc") and ("ab", "c") never meet
and a null differs from an empty string.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

MANIFEST_SCHEMA_VERSION = 1

# -- input tables (docs/design.md 2) ---------------------------------------------------------------------------

PRODUCTS = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("selling_points", pa.list_(pa.string())),
        pa.field("image", pa.string()),
        pa.field("cutout", pa.string()),
        pa.field("scale", pa.float32()),
        pa.field("category", pa.string()),
        pa.field("brand", pa.string()),
        pa.field("locale", pa.string()),
    ]
)
CLICK = pa.struct([pa.field("product_id", pa.string()), pa.field("clicked_at", pa.timestamp("us", tz="UTC"))])
HISTORIES = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("clicks", pa.list_(CLICK))])
PAIRS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("locale", pa.string()),
        pa.field("channel", pa.string()),
    ]
)
REFERENCES = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("image", pa.string()),
        pa.field("titles", pa.list_(pa.string())),
    ]
)
INPUT_TABLES = {"products": PRODUCTS, "histories": HISTORIES, "pairs": PAIRS, "references": REFERENCES}

# -- outputs (docs/design.md 4) --------------------------------------------------------------------------------

OK, REJECTED, FAILED = "ok", "rejected", "failed"

RENDITION = pa.struct(
    [
        pa.field("ratio", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
    ]
)
# One schema for success and failure; (pair_id, variant) is the key. `uri` is relative to the store's root, so that a
# store can be copied or mounted elsewhere and stay true.
# A new column: at the end, with an entry in LATER_COLUMNS below; docs/design.md 1 says what else.
MANIFEST = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("rank", pa.int32()),
        pa.field("attempt", pa.int32()),
        pa.field("user_key", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("locale", pa.string()),
        pa.field("channel", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("stale", pa.bool_(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("format", pa.string()),
        pa.field("renditions", pa.list_(RENDITION)),
        pa.field("seed", pa.int64()),
        pa.field("fingerprint", pa.string()),
        pa.field("model_digest", pa.string()),
        pa.field("carried_from", pa.string()),
        pa.field("arm", pa.string()),
        pa.field("propensity", pa.float64()),
        pa.field("gates", pa.map_(pa.string(), pa.string())),
        pa.field("scores", pa.map_(pa.string(), pa.float32())),
        pa.field("generated_at", pa.timestamp("us", tz="UTC")),
        pa.field("seconds", pa.float32()),
        pa.field("title_source", pa.string()),  # model | template; null: no creative, or of a version that knew no attempts
        pa.field("picture_source", pa.string()),  # model | plain
    ]
)
# Private, kept as long as the run: replay and "why did it change" read it.
LINEAGE = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("product_hash", pa.string()),
        pa.field("history_ids", pa.list_(pa.string())),
        pa.field("history_hashes", pa.list_(pa.string())),
        pa.field("fingerprint", pa.string()),
        pa.field("model_digest", pa.string()),
        pa.field("settings_digest", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("attempt", pa.int32()),
        # What the last bit of a logit may depend on, and what came of it (on_ray/refresh/provenance.py); null where no engine ran.
        pa.field("num_slots", pa.int32()),
        pa.field("num_threads", pa.int32()),
        pa.field("device", pa.string()),
        pa.field("versions", pa.string()),
        pa.field("tokens", pa.string()),
        pa.field("history_items", pa.int32()),  # that the prompt showed: the drawn clicks, repeated; null: as drawn
        pa.field("variant", pa.int32()),
        pa.field("kernels_off", pa.string()),  # switched off on that device, with commas; null: of a version that checked none
    ]
)
SOURCES = ("title_source", "picture_source")
_NULL_BEFORE = ("num_slots", "num_threads", "device", "versions", "tokens", "history_items", "carried", "kernels_off", *SOURCES)
LATER_COLUMNS: Mapping[str, Any] = dict.fromkeys(_NULL_BEFORE) | {
    "tried_before": False,
    "variant": 0,
}
"""Columns that came after the first tables were written, with the value that a table without them is read with: of manifests,
journal parts, lineage and plan parts. A new column stands at the end of its schema and has an entry here; schema_version stays."""


def with_later_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table that this version or an earlier one wrote, in the order of `schema`, later columns filled with their defaults.
    Columns that `schema` does not know follow. ValueError names a column that is missing and no later one."""
    for field in schema:
        if field.name in table.column_names:
            continue
        if field.name not in LATER_COLUMNS:
            raise ValueError(f"column {field.name} is missing")
        default = pa.scalar(LATER_COLUMNS[field.name], field.type)
        column = pa.repeat(default, table.num_rows) if default.is_valid else pa.nulls(table.num_rows, field.type)
        table = table.append_column(field, column)
    known = schema.names
    return table if table.column_names == known else table.select([*known, *(n for n in table.column_names if n not in known)])


# -- ids and seeds ---------------------------------------------------------------------------------------------


def canonical_bytes(parts: Iterable[str | bytes | int | None]) -> bytes:
    """Each part as type tag, length and bytes: no two different sequences share an encoding."""
    return b"".join(map(_canonical, parts))


def _canonical(part: str | bytes | int | None) -> bytes:
    if isinstance(part, str):
        # surrogatepass: a title cut inside an emoji by some upstream tool must still hash, not raise.
        raw = part.encode("utf-8", "surrogatepass")
        return b"s%d:%b" % (len(raw), raw)
    if part is None:
        return b"n"
    if isinstance(part, bytes):
        return b"b%d:%b" % (len(part), part)
    raw = b"%d" % int(part)
    return b"i%d:%b" % (len(raw), raw)


def digest(*parts: str | bytes | int | None) -> str:
    """SHA-256 of the parts, 64 hex digits."""
    return hashlib.sha256(canonical_bytes(parts)).hexdigest()


def pair_id(campaign_key: bytes, user_id: str, product_id: str, locale: str | None, channel: str | None) -> str:
    """The pair's public name, 32 hex digits. Its key belongs to the campaign and never rotates."""
    return _keyed(campaign_key, "pair", user_id, product_id, locale, channel)


def user_key(user_secret: bytes, user_id: str) -> str:
    """The user's public name in one run's manifest, 32 hex digits; its secret may rotate from run to run."""
    return _keyed(user_secret, "user", user_id)


def bound_key(key: bytes, campaign: str) -> bytes:
    """The campaign key bound to a campaign, so that two campaigns never share a pair id or a fingerprint."""
    return bytes.fromhex(digest("campaign key", key, campaign))


def public_fingerprint(campaign_key: bytes, fingerprint: str | None) -> str | None:
    """What a manifest says of the digest of all that determines a creative (64 hex digits): its HMAC, 32 hex digits.

    The digest itself can be guessed from a table of products, and tells what the user clicked; version 0.1 published it. What
    is public already stays as it is.
    """
    if fingerprint is None or len(fingerprint) < 64:
        return fingerprint
    return _keyed(campaign_key, "fingerprint", fingerprint)


def public_resume_key(campaign_key: bytes, resume_key: str) -> str:
    """What run.json says of the digest that two commands share which may go on with each other's run (64 hex digits): its HMAC, 32
    hex digits.

    Stamps of the histories' files enter the digest; on S3 they are hashes of the files. Up to version 0.1 run.json said the digest
    itself. What is public already, and what an erasure calls its copies, stays as it is.
    """
    return _keyed(campaign_key, "resume", resume_key) if len(resume_key) == 64 else resume_key


def with_public_fingerprints(table: pa.Table, campaign_key: bytes) -> pa.Table:
    """Rows with a column `fingerprint`, each made public; the table itself where they are."""
    before = table["fingerprint"].to_pylist()
    after = [public_fingerprint(campaign_key, each) for each in before]
    if after == before:
        return table
    index = table.schema.get_field_index("fingerprint")
    return table.set_column(index, table.schema.field(index), pa.array(after, pa.string()))


def key_id(key: bytes) -> str:
    """What run.json may say of a key: eight hex digits that identify it and do not reveal it."""
    return hmac.new(key, b"key id", hashlib.sha256).hexdigest()[:8]


def pair_seed(pair: str, campaign_seed: int) -> int:
    """The row's seed, 0 <= seed < 2**63: a constant of the campaign, so that a re-run makes the same picture."""
    return int(digest("seed", pair, campaign_seed)[:16], 16) >> 1


def variant_seed(seed: int, variant: int, attempt: int = 0) -> int:
    """The seed of one attempt at one variant of the pair with this `pair_seed`, 0 <= seed < 2**63; the first attempt at variant 0
    has the pair's own, as it had before there were variants.

    Attempts follow from their variant's seed alone: variant_seed(variant_seed(s, v), 0, a) is variant_seed(s, v, a).
    """
    for what, number in (("variant", variant), ("attempt", attempt)):
        seed = int(digest(f"{what} seed", seed, number)[:16], 16) >> 1 if number else seed
    return seed


def unit_interval(*parts: str | bytes | int | None) -> float:
    """A number in (0, 1) that is a function of the parts alone; 53 bits, never 0 nor 1."""
    [number] = unit_intervals(parts[:-1], parts[-1:])
    return number


def unit_intervals(first: Iterable[str | bytes | int | None], last: Iterable[str | bytes | int | None]) -> list[float]:
    """`unit_interval(*first, each)` for each of `last`; what they share is hashed once."""
    shared, found = hashlib.sha256(canonical_bytes(("unit", *first))), []
    for part in last:
        own = shared.copy()
        own.update(_canonical(part))
        found.append(((int.from_bytes(own.digest()[:7]) >> 3) + 0.5) / 2.0**53)
    return found


def _keyed(key: bytes, *parts: str | None) -> str:
    if not key:
        raise ValueError("an empty key would make ids that anyone can compute")
    return hmac.digest(key, canonical_bytes(parts), "sha256").hex()[:32]
