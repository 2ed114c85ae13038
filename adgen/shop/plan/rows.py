"""Pass 2 of the plan: one bucket's pairs become rows to generate, rows to carry, and rows that already failed.

A row to generate holds all that its worker needs but the pictures. A row to carry is the published manifest row with
tonight's user_key, and its lineage. A pair whose input is bad is a row too, with its reason; the engine never sees it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives.tombstones import user_hash
from adgen.records import (
    FAILED,
    LINEAGE,
    MANIFEST,
    pair_id,
    pair_seed,
    public_fingerprint,
    user_key,
    with_later_columns,
    with_public_fingerprints,
)
from adgen.shop.catalog.catalog import Catalog
from adgen.shop.inputs.text import BAD_TEXT, is_bad, readable
from adgen.shop.plan.buckets import PUBLISHED, Bucket
from adgen.shop.plan.fingerprint import VARIANT, Maker, is_carried, is_unchanged
from adgen.shop.plan.histories import Drawn, Histories

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
    ]
)
PLAN_CARRY = PUBLISHED

# An input that could not be read tonight; the others say that the pair shall not be advertised like that any more.
UNREADABLE = frozenset({"missing_file", "unreadable", "truncated", "too_large", "too_large_file", "too_small", BAD_TEXT})

IsForgotten = Callable[[Sequence[str]], Sequence[bool]]


@dataclass(frozen=True)
class ForgottenUsers:
    """The erased users as a planner asks for them; hashes from `Tombstones.hashes`."""

    hashes: frozenset[str]
    key: bytes = field(repr=False)

    def __call__(self, user_ids: Sequence[str]) -> list[bool]:
        return [bool(self.hashes) and user_hash(self.key, user) in self.hashes for user in user_ids]


@dataclass(frozen=True)
class PlanRules:
    """What of the settings decides a plan. Pickles, secrets included: keep it out of the store."""

    campaign_key: bytes = field(repr=False)
    user_secret: bytes = field(repr=False)
    campaign_seed: int
    maker: Maker
    history_items: int = 10
    history_order: Literal["keyed", "published"] = "keyed"
    when_unreadable: Literal["keep_previous", "drop"] = "keep_previous"
    base_run: str | None = None
    """The run whose creatives may be carried."""
    limit: int | None = None
    """Only the first `limit` pairs."""
    pairs_per_shard: int = 256
    carried_per_shard: int = 100_000
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
        return self.generate.num_rows + self.carry.num_rows

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
    published = _Published(with_public_fingerprints(bucket.published, rules.campaign_key), rules.base_run)
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
    """Manifest rows and lineage of a plan part of kind carry, ready for `Journal.commit_part`."""
    manifest, lineage = (with_later_columns(part, schema).select(schema.names).cast(schema) for schema in (MANIFEST, LINEAGE))
    return manifest, lineage


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


class _Published:
    """The base run's rows of a bucket, by pair."""

    def __init__(self, rows: pa.Table, base_run: str | None):
        self._rows, self._base_run = rows.select(PLAN_CARRY.names), base_run
        names = ("pair_id", "status", "fingerprint", "attempt")
        self._by_pair = {row["pair_id"]: row | {"index": i} for i, row in enumerate(rows.select(names).to_pylist())}

    def find(self, pair: str) -> dict[str, Any] | None:
        return self._by_pair.get(pair)

    def carry(self, indexes: list[int], user_keys: list[str], stale: list[bool]) -> pa.Table:
        """The rows as they were, but for whose they are now called and how fresh they are."""
        rows = self._rows.take(pa.array(indexes, pa.int64()))
        origins = pc.coalesce(rows["carried_from"], pa.scalar(self._base_run, pa.string()))  # the run that made it
        changed = {"user_key": pa.array(user_keys, pa.string()), "carried_from": origins, "stale": pa.array(stale, pa.bool_())}
        for name, values in changed.items():
            rows = rows.set_column(rows.schema.get_field_index(name), PLAN_CARRY.field(name), values)
        return rows.cast(PLAN_CARRY)


def _plan_some(
    rules: PlanRules, pairs: pa.Table, start: int, histories: Histories, published: _Published, catalog: Catalog
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
        private = rules.maker.fingerprint(row["product"]["product_hash"], drawn.hashes, row["seed"])
        row["fingerprint"] = public_fingerprint(rules.campaign_key, private)
    made, kept = [], []
    for order, row in enumerate(rows, start):
        before = published.find(row["pair_id"])
        stale = _is_stale(rules, row, before)
        if stale or is_carried(before, row.get("fingerprint")):
            kept.append((order, before["index"], row["user_key"], stale))
        else:
            again = is_unchanged(before, row.get("fingerprint")) and before["status"] == FAILED
            retry = before is not None and before["status"] == FAILED
            made.append((order, _plan_row(row, (before["attempt"] or 0) + 1 if again else 0) | {"tried_before": retry}))
    carry = published.carry([index for _, index, _, _ in kept], [key for _, _, key, _ in kept], [stale for *_, stale in kept])
    generate = pa.Table.from_pylist([row for _, row in made], PLAN_PAIRS)
    orders = [np.array([each[0] for each in some], np.int64) for some in (made, kept)]
    return generate, carry, *orders


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
    """Whether the previous creative stays because the input cannot be read tonight."""
    kept = before is not None and before["status"] != FAILED
    return kept and row["reason"] in UNREADABLE and rules.when_unreadable == "keep_previous"


def _plan_row(row: dict[str, Any], attempt: int) -> dict[str, Any]:
    product, drawn = row["product"], row.get("drawn") or Drawn([], [])
    return {
        **{name: row[name] for name in ("pair_id", "user_key", "locale", "channel", "seed", "reason", "detail")},
        **{name: product.get(name) for name in ("image", "cutout", "scale", "product_hash", "cutout_hash")},
        "variant": VARIANT,
        "user_id": row["user_id"] or "",
        "product_id": row["product_id"] or "",
        "fingerprint": row.get("fingerprint"),
        "attempt": attempt,
        "product_title": product.get("title"),
        "selling_points": [point for point in product.get("selling_points") or () if point is not None],
        "history_ids": drawn.ids,
        "history_hashes": drawn.hashes,
    }
