"""The plan of a refresh: which pairs are generated, which are carried, and in which shards.

    clear_buckets(folder)
    split_inputs(inputs, "pairs", folder, n); split_inputs(inputs, "histories", folder, n)
    if base: split_published(base, folder, n)                                   # pass 1: rows by user
    for plan in run(partial(plan_bucket, rules, catalog=catalog), read_buckets(folder, n)):  # pass 2: a bucket, a task
        shards.add(plan)
    parts, summary = shards.close()                                             # then journal.commit_plan(parts, ...)

`make_plan` is that loop. It knows no Ray; `run` is `map`, or something parallel that keeps the order. Buckets are read here
and handed over, so that workers need no folder in common with the planner.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives.documents import PlanPart
from adgen.creatives.journal import Journal
from adgen.records import digest
from adgen.shop.catalog.catalog import Catalog
from adgen.shop.inputs.tables import Inputs
from adgen.shop.plan.buckets import (
    clear_buckets,
    coarse_bucket_count,
    plan_bucket_count,
    read_buckets,
    split_inputs,
    split_published,
)
from adgen.shop.plan.rows import PLAN_CARRY as PLAN_CARRY
from adgen.shop.plan.rows import PLAN_PAIRS as PLAN_PAIRS
from adgen.shop.plan.rows import BucketPlan, PlanRules, plan_bucket
from adgen.shop.plan.rows import carried_rows as carried_rows

_UPLOADS = 16


@dataclass(frozen=True)
class PlanSummary:
    """to_generate + planned_failures + carried is the number of rows: all variants of each of `pairs`, one row where the input is
    bad. With a limit, duplicates are those of the buckets that were read."""

    pairs: int
    to_generate: int
    tried_again: int
    carried: int
    stale: int
    planned_failures: int
    duplicates: int
    forgotten: int
    reasons: dict[str, int] = field(default_factory=dict)
    shards: int = 0

    @property
    def creatives(self) -> int:
        """Rows that the manifest will have."""
        return self.to_generate + self.planned_failures + self.carried


def resume_key(campaign: str, settings_digest: str, input_stamps: Mapping[str, str]) -> str:
    """What two commands share that may continue each other's run. No file outside `private/` may say it: `public_resume_key`."""
    stamps = (part for uri in sorted(input_stamps) for part in (uri, input_stamps[uri]))
    return digest("resume", campaign, settings_digest, *stamps)


class ShardWriter:
    """Packs bucket plans, in order, into plan parts; every part but the last of its kind has as many pairs as it may have.

    A pair's variants are all in one part, which knows their ranks. A user's rows are neighbours, so at most one user is cut at each
    end of a shard. Holds less than one shard of each kind, and uploads from some threads.
    """

    def __init__(self, journal: Journal, rules: PlanRules):
        self._journal, self._left = journal, rules.limit
        self._sizes = {"generate": rules.pairs_per_shard, "carry": max(1, rules.carried_per_shard // rules.variants)}
        self._waiting = {"generate": PLAN_PAIRS.empty_table(), "carry": PLAN_CARRY.empty_table()}
        self._pool = ThreadPoolExecutor(_UPLOADS)
        self._uploads: list[Future[PlanPart]] = []
        self._parts: list[PlanPart] = []
        self._index = 0
        self._tally: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached: later buckets add nothing."""
        return self._left == 0

    def add(self, plan: BucketPlan) -> None:
        """Append a bucket's rows."""
        if self._left is not None:
            plan = plan.first(self._left)
            self._left -= plan.num_pairs
        self._count(plan)
        for kind, table in (("generate", plan.generate), ("carry", plan.carry)):
            rows = pa.concat_tables([self._waiting[kind], table])
            starts = _starts_of_pairs(rows)[:: self._sizes[kind]]
            is_full = len(_starts_of_pairs(rows)) % self._sizes[kind] == 0
            for start, end in zip(starts, [*starts[1:], *([rows.num_rows] if is_full else [])], strict=False):
                self._write(rows.slice(start, end - start), kind)
            self._waiting[kind] = rows.slice(rows.num_rows if is_full else starts[-1]).combine_chunks()

    def close(self) -> tuple[list[PlanPart], PlanSummary]:
        """Write what is left; all parts for `Journal.commit_plan`, and what they hold."""
        for kind in ("generate", "carry"):
            if self._waiting[kind].num_rows:
                self._write(self._waiting[kind], kind)
        self._collect(0)
        self._pool.shutdown()
        names = ("pairs", "to_generate", "tried_again", "carried", "stale", "planned_failures", "duplicates", "forgotten")
        counts = {name: self._tally[name] for name in names}
        return self._parts, PlanSummary(**counts, reasons=dict(sorted(self._reasons.items())), shards=len(self._parts))

    def _write(self, rows: pa.Table, kind: Literal["generate", "carry"]) -> None:
        self._collect(2 * _UPLOADS)
        if kind == "generate" and rows["carried"].null_count == rows.num_rows:
            rows = rows.drop_columns("carried")
        self._uploads.append(self._pool.submit(self._journal.write_plan_part, self._index, rows.combine_chunks(), kind))
        self._index += 1

    def _collect(self, leave: int) -> None:
        while len(self._uploads) > leave:
            self._parts.append(self._uploads.pop(0).result())

    def _count(self, plan: BucketPlan) -> None:
        failures = plan.generate["reason"].drop_null()
        beside = plan.generate.num_rows - plan.generate["carried"].null_count
        self._tally.update(
            pairs=plan.num_pairs,
            to_generate=plan.generate.num_rows - len(failures) - beside,
            tried_again=pc.sum(pc.greater(plan.generate["attempt"], 0)).as_py() or 0,
            carried=plan.carry.num_rows + beside,
            stale=pc.sum(plan.carry["stale"]).as_py() or 0,
            planned_failures=len(failures),
            duplicates=plan.duplicates,
            forgotten=plan.forgotten,
        )
        for found in pc.value_counts(failures).to_pylist():
            self._reasons[found["values"]] += found["counts"]


def _starts_of_pairs(rows: pa.Table) -> list[int]:
    """Where each pair's rows begin."""
    names = rows["pair_id"].to_numpy()
    return np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]])[: len(names)]).tolist()


def make_plan(
    rules: PlanRules,
    inputs: Inputs,
    catalog: Catalog,
    journal: Journal,
    folder: str | Path,
    base: Journal | None = None,
    run: Callable[[Callable, Iterable], Iterable] = map,
) -> tuple[list[PlanPart], PlanSummary]:
    """Write the plan parts of all pairs (of the first `rules.limit`); for `journal.commit_plan`. `folder` is local scratch room.

    `base` is the journal of the run that the pointer names (`rules.base_run`); none: nothing is carried.
    """
    num_buckets = plan_bucket_count(inputs["pairs"].num_rows)
    coarse = coarse_bucket_count(num_buckets)
    clear_buckets(folder)
    for table in ("pairs", "histories"):
        split_inputs(inputs, table, folder, coarse)
    if base is not None:
        split_published(base, folder, coarse)
    one = partial(plan_bucket, rules, catalog=catalog)
    shards = ShardWriter(journal, rules)
    for plan in run(one, read_buckets(folder, num_buckets)):
        shards.add(plan)
        if shards.is_full:
            break
    clear_buckets(folder)
    return shards.close()
