"""Pass 2 of the plan: one bucket's pairs become rows to generate, rows to carry, and rows that already failed.

A row to generate holds all that its worker needs but the pictures. A row to carry is the published manifest row with
this run's user_key, and its lineage. A pair whose input is bad is a row too, with its reason; the engine never sees it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives.ranking import ranked
from adgen.creatives.tombstones import user_hash
from adgen.records import (
    FAILED,
    LINEAGE,
    MANIFEST,
    REJECTED,
    pair_id,
    pair_seed,
    public_fingerprint,
    user_key,
    variant_seed,
    with_later_columns,
    with_public_fingerprints,
)
from adgen.shop.catalog.catalog import Catalog
from adgen.shop.inputs.text import BAD_TEXT, is_bad, readable
from adgen.shop.plan.buckets import PUBLISHED, Bucket
from adgen.shop.plan.fingerprint import Maker, is_carried, is_unchanged
from adgen.shop.plan.histories import Drawn, Histories
from adgen.shop.plan.published import Kept, Published

PAIRS_AT_ONCE = 8192

PLAN_PAIRS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),  # "" where the input had none
        pa.field("user_key", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),  # "" where the input had none
        pa.field("locale", pa.string()),
        pa.field("channel", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.string()),  # null where a reason is given
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("product_title", pa.string()),
        pa.field("selling_points", pa.list_(pa.string())),
        pa.field("image", pa.string()),
        pa.field("cutout", pa.string()),
        pa.field("scale", pa.float32()),
        pa.field("product_hash", pa.string()),
        pa.field("cutout_hash", pa.string()),  # of the picture's bytes where there is no cut-out
        pa.field("history_ids", pa.list_(pa.string())),
        pa.field("history_hashes", pa.list_(pa.string())),
        pa.field("tried_before", pa.bool_()),  # the pair failed in the base run, too
        # A row that stays, beside other variants of its pair that are to be made; null for all others.
        pa.field("carried", pa.struct([field.with_nullable(True) for field in PUBLISHED])),
    ]
)
PLAN_CARRY = PUBLISHED

# An input that could not be read in this run; the others say that the pair shall not be advertised like that any more.
UNREADABLE = frozenset({"missing_file", "unreadable", "truncated", "too_large", "too_large_file", "too_small", BAD_TEXT})

IsForgotten = Callable[[Sequence[str]], Sequence[bool]]


@dataclass(frozen=True)
class ForgottenUsers:
    """The erased users as a planner asks for them; hashes from `Tombstones.hashes`."""

    hashes: frozenset[str]
    key: bytes = field(repr=False)

    def __call__(self, user_ids: Sequence[str]) -> list[bool]:
        return [bool(self.hashes) and user_hash(self.key, user) in self.hashes for user in user_ids]


class TitleRules(Protocol):
    """Judges a published title anew."""

    def reject(self, title: str, product_texts: tuple[str, ...], locale: str | None) -> bool:
        """Whether a creative with this title would be rejected."""


@dataclass(frozen=True)
class PlanRules:
    """What of the settings decides a plan. Pickles, secrets included: keep it out of the store."""

    campaign_key: bytes = field(repr=False)
    user_secret: bytes = field(repr=False)
    campaign_seed: int
    maker: Maker
    history_items: int = 10
    history_order: Literal["keyed", "published"] = "keyed"
    variants: int = 1
    """Creatives of each pair."""
    when_unreadable: Literal["keep_previous", "drop"] = "keep_previous"
    base_run: str | None = None
    """The run whose creatives may be carried."""
    limit: int | None = None
    """Only the first `limit` pairs."""
    pairs_per_shard: int = 256
    carried_per_shard: int = 100_000
    title_rules: TitleRules | None = None
    """Where the published rows were judged by other rules than today's: those rules."""
    is_forgotten: IsForgotten | None = None
    """User ids -> whether each was erased; their pairs are left out."""


@dataclass(frozen=True)
class BucketPlan:
    """One bucket's rows, both tables in the plan's order; `*_order` is each row's place among the bucket's pairs."""

    generate: pa.Table
    carry: pa.Table
    generate_order: np.ndarray
    carry_order: np.ndarray
    duplicates: int = 0
    forgotten: int = 0

    @property
    def num_pairs(self) -> int:
        """A pair's rows are all in one of the tables."""
        return sum(len(np.unique(order)) for order in (self.generate_order, self.carry_order))

    def first(self, count: int) -> "BucketPlan":
        """The rows of the first `count` pairs."""
        made, kept = self.generate_order < count, self.carry_order < count
        tables = self.generate.slice(0, int(made.sum())), self.carry.slice(0, int(kept.sum()))
        return BucketPlan(*tables, self.generate_order[made], self.carry_order[kept], self.duplicates, self.forgotten)


def plan_bucket(rules: PlanRules, bucket: Bucket, catalog: Catalog) -> BucketPlan:
    """Plan a bucket's pairs (at most the first `rules.limit`), ordered by user rank, user and pair_id."""
    pairs, duplicates = _distinct(bucket.pairs, rules.campaign_key)
    before = pairs.num_rows
    if rules.is_forgotten is not None:
        pairs = _without_forgotten(pairs, rules.is_forgotten)
    forgotten = before - pairs.num_rows
    pairs = pairs if rules.limit is None else pairs.slice(0, rules.limit)
    published = Published(with_public_fingerprints(bucket.published, rules.campaign_key), rules.base_run)
    parts = []
    for start in range(0, pairs.num_rows, PAIRS_AT_ONCE):
        some = pairs.slice(start, PAIRS_AT_ONCE)
        clicks = bucket.histories.filter(pc.is_in(bucket.histories["user_id"], value_set=pc.unique(some["user_id"])))
        parts.append(_plan_some(rules, some, start, Histories(clicks, catalog), published, catalog))
    parts = parts or [(PLAN_PAIRS.empty_table(), PLAN_CARRY.empty_table(), np.zeros(0, int), np.zeros(0, int))]
    generate, carry, generate_order, carry_order = zip(*parts, strict=True)
    return BucketPlan(
        pa.concat_tables(generate),
        pa.concat_tables(carry),
        np.concatenate(generate_order),
        np.concatenate(carry_order),
        duplicates,
        forgotten,
    )


def carried_rows(part: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Manifest rows and lineage that a plan part carries, ready for `Journal.commit_part`: all of a part of kind carry, and the
    variants of a part of kind generate that stay beside those to be made."""
    if "product_title" in part.column_names:
        part = with_later_columns(part, PLAN_PAIRS)
        part = pa.Table.from_struct_array(part.filter(part["carried"].is_valid())["carried"])
    manifest, lineage = (with_later_columns(part, schema).select(schema.names).cast(schema) for schema in (MANIFEST, LINEAGE))
    return manifest, lineage


def rows_to_make(part: pa.Table) -> pa.Table:
    """A plan part of kind generate without the rows that it carries."""
    return part.filter(part["carried"].is_null()).drop_columns("carried")


def with_carried(part: pa.Table, made: pa.Table, lineage: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Manifest rows and lineage that a worker made of a plan part of kind generate, with those that the part carries: all
    variants of its pairs, and their ranks."""
    if "carried" not in part.column_names:
        return ranked(made), lineage
    carried, lineage_of_carried = carried_rows(part)
    return ranked(pa.concat_tables([made, carried])), pa.concat_tables([lineage, lineage_of_carried])


def _distinct(pairs: pa.Table, campaign_key: bytes) -> tuple[pa.Table, int]:
    """The pairs in the plan's order, with pair_id, each once; how many were there again."""
    columns = [pairs[name].to_pylist() for name in ("user_id", "product_id", "locale", "channel")]
    ids = [pair_id(campaign_key, *row) for row in zip(*columns, strict=True)]
    pairs = pairs.append_column("pair_id", pa.array(ids, pa.string()))
    pairs = pairs.sort_by([(name, "ascending") for name in ("user_rank", "user_id", "pair_id")])
    names = pairs["pair_id"].to_numpy()
    first = np.ones(len(names), bool)
    first[1:] = names[1:] != names[:-1]
    return pairs.filter(pa.array(first)), int((~first).sum())


def _without_forgotten(pairs: pa.Table, is_forgotten: IsForgotten) -> pa.Table:
    users = pc.unique(pairs["user_id"]).drop_null().to_pylist()
    erased = [user for user, gone in zip(users, is_forgotten(users), strict=True) if gone]
    return pairs.filter(pc.invert(pc.is_in(pairs["user_id"], value_set=pa.array(erased, pa.string()))))


def _plan_some(
    rules: PlanRules, pairs: pa.Table, start: int, histories: Histories, published: Published, catalog: Catalog
) -> tuple[pa.Table, pa.Table, np.ndarray, np.ndarray]:
    rows = pairs.drop_columns("user_rank").to_pylist()
    products = _facts(rows, catalog)
    keys = {user: user_key(rules.user_secret, user) for user in {row["user_id"] for row in rows}}
    good = []
    for row in rows:
        product = products.get(row["product_id"])
        row |= {"product": product or {}, "user_key": keys[row["user_id"]], "seed": pair_seed(row["pair_id"], rules.campaign_seed)}
        row["reason"], row["detail"] = _trouble(row, product)
        if row["reason"] is None:
            good.append(row)
    asked = [(row["pair_id"], row["user_id"], row["product_id"], row["product"]["title"]) for row in good]
    for row, drawn in zip(good, histories.draw(asked, rules.history_items, rules.history_order), strict=True):
        row["drawn"] = drawn
    fresh, beside, whole = [], [], []
    for order, row in enumerate(rows, start):
        made, kept = _plan_pair(rules, row, published)
        fresh += [(order, each) for each in made]
        (beside if made else whole).extend((order, each) for each in kept)
    carry = ranked(published.carry([each for _, each in whole]))
    made_order, kept_order = (np.array([order for order, _ in some], np.int64) for some in (fresh + beside, whole))
    generate = pa.Table.from_pylist([each for _, each in fresh], PLAN_PAIRS)
    if beside:  # all rows of a pair into one shard, which gives them their ranks
        generate = pa.concat_tables([generate, _carried_beside(published.carry([each for _, each in beside]))])
        order = np.argsort(made_order, kind="stable")
        generate, made_order = generate.take(pa.array(order)), made_order[order]
    return generate, carry, made_order, kept_order


def _plan_pair(rules: PlanRules, row: dict[str, Any], published: Published) -> tuple[list[dict[str, Any]], list[Kept]]:
    """The rows of a pair that are to be made, and those of the base run that stay."""
    made, kept = [], []
    for variant in range(rules.variants):
        seed = variant_seed(row["seed"], variant)
        fingerprint = _fingerprint(rules, row, seed, variant)
        before = published.find(row["pair_id"], variant)
        stale = _is_stale(rules, row, before)
        if stale or (is_carried(before, fingerprint) and not _is_refused(rules, row, before)):
            kept.append(Kept(before["index"], row["user_key"], stale))
        else:
            failed = before is not None and before["status"] == FAILED
            attempt = (before["attempt"] or 0) + 1 if failed and is_unchanged(before, fingerprint) else 0
            own = {"variant": variant, "seed": seed, "fingerprint": fingerprint, "attempt": attempt, "tried_before": failed}
            made.append(_plan_row(row) | own)
    # Of an input that cannot be used one row tells, and none where creatives of it are kept.
    return (made if row["reason"] is None else [] if kept else made[:1]), kept


def _is_refused(rules: PlanRules, row: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether other rules than today's judged a published row, and today's refuse its title, or may accept what those rejected."""
    if rules.title_rules is None:
        return False
    product = row["product"]
    texts = (product["title"] or "", *(point for point in product["selling_points"] or () if point))
    return before["status"] == REJECTED or rules.title_rules.reject(before["title"] or "", texts, row["locale"])


def _fingerprint(rules: PlanRules, row: dict[str, Any], seed: int, variant: int) -> str | None:
    """What the manifest calls the creative; None where none can be made."""
    if row["reason"] is not None:
        return None
    private = rules.maker.fingerprint(row["product"]["product_hash"], row["drawn"].hashes, seed, variant)
    return public_fingerprint(rules.campaign_key, private)


def _facts(rows: list[dict[str, Any]], catalog: Catalog) -> dict[str, dict[str, Any]]:
    ids = sorted({row["product_id"] for row in rows} - {None})
    return {row["product_id"]: row for row in catalog.facts(ids).to_pylist() if row["product_id"] is not None}


def _trouble(row: dict[str, Any], product: dict[str, Any] | None) -> tuple[str | None, str | None]:
    """(reason, detail) why nothing can be made of this pair; (None, None) if it can."""
    if missing := [name for name in ("user_id", "product_id") if row[name] is None]:
        return "null_field", f"pairs: {missing[0]} is null"
    if product is None:
        return "unknown_product", f"product {row['product_id']!r} is not in table 'products'"
    for name in ("title", "selling_points", "image", "scale"):
        if product[name] is None and product[f"{name}_reason" if name == "image" else name] is None:
            return "null_field", f"products: {name} of {row['product_id']!r} is null"
    texts = {"title": [product["title"]], "selling_points": product["selling_points"]}
    if bad := [(name, text) for name, several in texts.items() for text in several if is_bad(text)]:
        return BAD_TEXT, f"products: {bad[0][0]} of {row['product_id']!r} is not UTF-8: {readable(bad[0][1])!r}"
    if not (math.isfinite(product["scale"]) and 0 < product["scale"] <= 1):
        return "invalid_scale", f"scale {product['scale']} of {row['product_id']!r} is not above 0 and at most 1"
    return product["cutout_reason"], product["cutout_detail"]


def _is_stale(rules: PlanRules, row: dict[str, Any], before: dict[str, Any] | None) -> bool:
    """Whether the previous creative stays because the input cannot be read in this run."""
    kept = before is not None and before["status"] != FAILED
    return kept and row["reason"] in UNREADABLE and rules.when_unreadable == "keep_previous"


def _carried_beside(kept: pa.Table) -> pa.Table:
    """Rows of PLAN_CARRY as rows of a shard that makes other variants of their pairs."""
    values = {name: kept[name] for name in PLAN_PAIRS.names if name in kept.column_names}
    values |= {"attempt": pa.repeat(0, kept.num_rows), "carried": kept.to_struct_array()}
    missing = {name: pa.nulls(kept.num_rows) for name in PLAN_PAIRS.names if name not in values}
    return pa.table({name: (values | missing)[name] for name in PLAN_PAIRS.names}).cast(PLAN_PAIRS)


def _plan_row(row: dict[str, Any]) -> dict[str, Any]:
    """What all variants of a pair have in common."""
    product, drawn = row["product"], row.get("drawn") or Drawn([], [])
    return {
        **{name: row[name] for name in ("pair_id", "user_key", "locale", "channel", "reason", "detail")},
        **{name: product.get(name) for name in ("image", "cutout", "scale", "product_hash", "cutout_hash")},
        "user_id": row["user_id"] or "",
        "product_id": row["product_id"] or "",
        "product_title": product.get("title"),
        "selling_points": [point for point in product.get("selling_points") or () if point is not None],
        "history_ids": drawn.ids,
        "history_hashes": drawn.hashes,
    }
