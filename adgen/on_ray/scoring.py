"""Scores of a run's creatives on Ray Data: shards of its journal in, tables of scores out, as they come.

The journal and not the manifest is read, since beside each of its parts lies the lineage: which user a row is for, and which
clicks its prompt held. Neither leaves the worker: an evaluation names pairs, products and the run's own user keys.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from adgen.creatives import layout
from adgen.creatives.journal import Journal, from_parquet, to_parquet
from adgen.creatives.storage import S3Access, Storage, open_storage
from adgen.errors import PairError, StoreError
from adgen.evaluation.creative_scores import SCORED, CreativeFacts, CreativeScorer
from adgen.evaluation.encoders import device_of
from adgen.evaluation.pbs import load_pbs
from adgen.evaluation.shop_rows import ShopRows
from adgen.evaluation.titles import ProductTexts
from adgen.on_ray.cluster import slot_resources
from adgen.on_ray.payload import Row
from adgen.on_ray.row_errors import raise_told, telling
from adgen.on_ray.settings import ClusterSettings
from adgen.records import FAILED
from adgen.shop.tables import Inputs, read_bytes

ROWS_AT_ONCE = 128
WORKERS_A_GPU = 4  # reading and placing pictures is most of the work, and a CPU's


@dataclass(frozen=True)
class ScoringContext:
    """What every scoring worker needs; small and picklable."""

    store: str
    access: S3Access
    campaign: str
    run_id: str
    inputs: Inputs
    """products, and references where there are any."""
    encoder: Path | None
    device: str
    """cpu or cuda; without an encoder cpu, as there is no network to run."""


def whole_run(journal: Journal) -> list[Row]:
    """Every row of a run, a shard a work item."""
    return [{"index": part.index, "parts": [part.index], "offsets": [[]]} for part in journal.read_plan().parts]


def score(context: ScoringContext, items: Sequence[Row], cluster: ClusterSettings) -> Iterator[pa.Table]:
    """The scores of work items (`index`, `parts`, `offsets` of a part's rows; [] is all), SCORED tables in any order."""
    for start in range(0, len(items), cluster.shards_per_wave):
        wave = list(items[start : start + cluster.shards_per_wave])
        for done in map(raise_told, _dataset(context, wave, cluster).iter_rows()):
            yield from_parquet(done["scores"])


def _dataset(context: ScoringContext, items: list[Row], cluster: ClusterSettings) -> ray.data.Dataset:
    data = DataContext.get_current()
    data.enable_progress_bars = False
    data.actor_task_retry_on_errors = False
    slot = slot_resources(context.device)
    kind = "GPU" if "GPU" in slot else "CPU"
    share = WORKERS_A_GPU if kind == "GPU" else 1
    workers = share * (cluster.actors or max(1, int(ray.cluster_resources().get(kind, 1))))
    return ray.data.from_items([packed(item) for item in items], override_num_blocks=len(items)).map(
        ScoreShard,
        fn_constructor_args=(context,),
        compute=ActorPoolStrategy(min_size=1, max_size=min(workers, len(items))),
        num_cpus=0.9,  # Ray Data's own tasks need some room beside them
        num_gpus=slot.get("GPU", 0) / share,
    )


def packed(item: Row) -> Row:
    """A work item as Ray Data carries it: lists of lists it would take for tensors, or for nothing where they are empty."""
    return {"index": item["index"], "item": json.dumps(item)}


class ScoreShard:
    """A packed work item -> its rows' scores, as the bytes of a Parquet file in "scores"."""

    def __init__(self, context: ScoringContext):
        self.context = context

    @cached_property
    def journal(self) -> Journal:
        """Of the run."""
        return Journal(open_storage(self.context.store, self.context.access), self.context.campaign, self.context.run_id)

    @cached_property
    def shop(self) -> ShopRows:
        """Built for the first item, so that `telling` can tell what goes wrong."""
        return ShopRows(self.context.inputs)

    @cached_property
    def scorer(self) -> CreativeScorer:
        """With its encoder on the device."""
        import torch

        if self.context.device == "cpu":
            torch.set_num_threads(1)  # as many workers as cores
        encoder = self.context.encoder and load_pbs(self.context.encoder).to(device_of(self.context.device))
        return CreativeScorer(encoder, read_bytes)

    @telling
    def __call__(self, row: Row) -> Row:
        """One work item."""
        item = json.loads(row["item"])
        rows = [
            each
            for part, offsets in zip(item["parts"], item["offsets"], strict=True)
            for each in journal_rows(self.journal, part, offsets)
        ]
        scored: list[Row] = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            scored += self.score(rows[start : start + ROWS_AT_ONCE])
        return {"index": row["index"], "scores": to_parquet(pa.Table.from_pylist(scored, SCORED))}

    def score(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of SCORED for rows of `journal_rows`."""
        clicks = {click for row in rows for click in row["history_ids"] or ()}
        products = self.shop.products({row["product_id"] for row in rows} | clicks)
        pairs = [(row["user_id"], row["product_id"]) for row in rows if row["user_id"] is not None]
        references = self.shop.references(pairs)
        facts = [self._facts(row, products, references.get((row["user_id"], row["product_id"]))) for row in rows]
        self.scorer.score(facts)
        return [_scored(row, products.get(row["product_id"]), each) for row, each in zip(rows, facts, strict=True)]

    def _facts(self, row: Row, products: dict[str, Row], reference: Row | None) -> CreativeFacts:
        product, clicks = products.get(row["product_id"]), row["history_ids"]
        picture, problems = picture_of(self.journal.storage, row)
        return CreativeFacts(
            user_key=row["user_key"],
            title=None if row["status"] == FAILED else row["title"] or "",
            picture=picture,
            product=product and ProductTexts.of(product),
            cutout=product and self._resolved(product["cutout"] or product["image"]),
            scale=product and product["scale"],
            reference_titles=reference and tuple(reference["titles"] or ()),
            reference_picture=reference and self._resolved(reference["image"]),
            clicked=None if clicks is None else tuple(self._resolved(products.get(click, {}).get("image")) for click in clicks),
            problems=problems,
        )

    def _resolved(self, uri: str | None) -> str | None:
        try:
            return self.context.inputs.resolve(uri) if uri else None
        except PairError:
            return None  # as good as not there: the tables may not name this place


def journal_rows(journal: Journal, index: int, offsets: Sequence[int]) -> list[Row]:
    """Manifest rows of a shard with `user_id` and `history_ids` of their lineage; both None where that is gone."""
    table = journal.read_part(index)
    rows = (table.take(list(offsets)) if len(offsets) else table).to_pylist()
    try:
        lineage = journal.read_lineage(index)
    except StoreError:
        lineage = None
    known = {} if lineage is None else {each["pair_id"]: each for each in lineage.to_pylist()}
    for row in rows:
        there = known.get(row["pair_id"])
        row["user_id"] = there and there["user_id"]
        row["history_ids"] = None if there is None else there["history_ids"] or []
    return rows


def picture_of(storage: Storage, row: Row) -> tuple[bytes | None, list[str]]:
    """The creative's bytes, or why there are none."""
    if row["uri"] is None:
        return None, [f"{row['status']}_{row['reason']}"]
    if layout.object_hash(row["uri"]) != row["sha256"]:
        return None, ["picture_mismatched"]
    stored = storage.get(row["uri"])
    return (stored.data, []) if stored else (None, ["picture_missing"])


def _scored(row: Row, product: Row | None, facts: CreativeFacts) -> Row:
    given: dict[str, Any] = {name: row[name] for name in ("pair_id", "variant", "user_key", "product_id", "channel", "status")}
    return given | facts.scores | {
        "locale": row["locale"] or (product and product["locale"]),
        "category": product and product["category"],
        "history_length": None if row["history_ids"] is None else len(row["history_ids"]),
        "reason": row["reason"],
        "title": row["title"],
        "uri": row["uri"],
        "left_out": list(dict.fromkeys(facts.problems)),
    }  # fmt: skip
