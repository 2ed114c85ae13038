"""Scores of a run's creatives on Ray Data: shards of its journal in, tables of scores and features out, as they come.

The journal and not the manifest is read, since each of its parts has a lineage part: which user a row is for, and which
clicks its prompt held. Neither leaves the worker: an evaluation names pairs, products and the run's own user keys.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from adgen.creatives import layout
from adgen.creatives.documents import PlanPart
from adgen.creatives.journal import Journal, from_parquet, to_parquet
from adgen.creatives.reading import is_wanted
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.errors import PairError
from adgen.evaluation.results.features import FEATURE_ROWS, to_bytes
from adgen.evaluation.scoring.creatives import SCORED, CreativeScorer
from adgen.evaluation.scoring.facts import CreativeFacts
from adgen.evaluation.scoring.networks import NetworkPaths, load_networks
from adgen.evaluation.scoring.other_users import OtherUser
from adgen.evaluation.scoring.shop_pictures import ShopPicture
from adgen.evaluation.scoring.shop_rows import ShopRows
from adgen.evaluation.titles.scores import ProductTexts
from adgen.model.device import pick_device
from adgen.on_ray.cluster import slot_resources
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.rows import Row, as_row_error, raise_row_error
from adgen.on_ray.scoring.sampling import journal_rows
from adgen.on_ray.scoring.unpasted_pictures import read_unpasted
from adgen.records import OK
from adgen.shop.inputs.locations import read_bytes
from adgen.shop.inputs.tables import Inputs

ROWS_AT_ONCE = 128
ROWS_AN_ITEM = 2000
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
    networks: NetworkPaths
    device: str
    """cpu or cuda; without networks cpu, as there is no network to run."""
    other_users: tuple[OtherUser, ...] = ()
    """The run's panel (`read_panel`); clicks are products."""
    first_variant: int = 0
    """Added to the variants of its rows, where other runs hold other creatives of the same pairs."""
    only_best: bool = True
    """Of each pair only the variant that ranks first, as number 0, so that runs are compared by what their consumers show; else all
    under their own numbers."""
    has_unpasted: bool = False
    """Whether what the model painted was kept (`FinishKeepingUnpasted`)."""


class Scored(NamedTuple):
    """A work item, done."""

    index: int
    rows: pa.Table
    """SCORED"""
    features: pa.Table
    """FEATURE_ROWS; only of rows that have some."""


def whole_parts(parts: Iterable[PlanPart], rows_an_item: int = ROWS_AN_ITEM) -> list[Row]:
    """Every row of shards as work items, numbered through. A shard of carried rows has a hundred thousand: in one item they would
    be one worker's, all in its memory at once, and lost together where it is stopped."""
    items: list[Row] = []
    for part in parts:
        for start in range(0, part.rows, rows_an_item):
            offsets = [] if part.rows <= rows_an_item else list(range(start, min(start + rows_an_item, part.rows)))
            items.append({"index": len(items), "parts": [part.index], "offsets": [offsets], "rows": len(offsets) or part.rows})
    return items


def score(context: ScoringContext, items: Sequence[Row], cluster: ClusterSettings) -> Iterator[Scored]:
    """The scores of work items (`index`, `parts`, `offsets` of a part's rows; [] is all), in any order."""
    for start in range(0, len(items), cluster.shards_per_wave):
        wave = list(items[start : start + cluster.shards_per_wave])
        for done in map(raise_row_error, _dataset(context, wave, cluster).iter_rows()):
            yield Scored(done["index"], from_parquet(done["scores"]), from_parquet(done["features"]))


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
        num_cpus=0.9,  # Ray Data's own tasks need some room
        num_gpus=slot.get("GPU", 0) / share,
    )


def packed(item: Row) -> Row:
    """A work item as Ray Data carries it: lists of lists it would take for tensors, or for nothing where they are empty."""
    return {"index": item["index"], "item": json.dumps(item)}


class ScoreShard:
    """A packed work item -> its rows' scores and features, as the bytes of Parquet files."""

    def __init__(self, context: ScoringContext):
        self.context = context

    @cached_property
    def journal(self) -> Journal:
        """Of the run."""
        return Journal(open_storage(self.context.store, self.context.access), self.context.campaign, self.context.run_id)

    @cached_property
    def shop(self) -> ShopRows:
        """Built for the first item, so that `as_row_error` reports what goes wrong."""
        return ShopRows(self.context.inputs)

    @cached_property
    def scorer(self) -> CreativeScorer:
        """With its networks on the device."""
        import torch

        if self.context.device == "cpu":
            torch.set_num_threads(1)  # as many workers as cores
        networks = load_networks(self.context.networks, torch.device(pick_device(self.context.device)))
        return CreativeScorer(networks, read_bytes, self._panel())

    def _panel(self) -> list[OtherUser]:
        """The panel with places of pictures."""
        panel = self.context.other_users
        products = self.shop.products({click for each in panel for click in each.clicked})
        return [OtherUser(each.user_key, self._pictures(each.clicked, products)) for each in panel]

    def _pictures(self, clicks: Sequence[str], products: dict[str, Row]) -> tuple[ShopPicture, ...]:
        known = (products.get(click, {}) for click in clicks)
        return tuple(ShopPicture(self._resolved(each.get("image")), self._resolved(each.get("cutout"))) for each in known)

    @as_row_error
    def __call__(self, row: Row) -> Row:
        """One work item."""
        item = json.loads(row["item"])
        only_best, first = self.context.only_best, self.context.first_variant
        rows = [
            each | {"variant": first + (0 if only_best else each["variant"])}
            for part, offsets in zip(item["parts"], item["offsets"], strict=True)
            for each in journal_rows(self.journal, part, offsets)
            if is_wanted(each, 1 if only_best else None)
        ]
        scored, features = [], []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            done = self.score(part)
            scored += [scores for scores, _ in done]
            features += [seen for _, seen in done if seen is not None]
        return {
            "index": row["index"],
            "scores": to_parquet(pa.Table.from_pylist(scored, SCORED)),
            "features": to_parquet(pa.Table.from_pylist(features, FEATURE_ROWS)),
        }

    def score(self, rows: Sequence[Row]) -> list[tuple[Row, Row | None]]:
        """Rows of SCORED for rows of `journal_rows`, and where they have features rows of FEATURE_ROWS."""
        clicks = {click for row in rows for click in row["history_ids"] or ()}
        products = self.shop.products({row["product_id"] for row in rows} | clicks)
        pairs = [(row["user_id"], row["product_id"]) for row in rows if row["user_id"] is not None]
        references = self.shop.references(pairs)
        facts = [self._facts(row, products, references.get((row["user_id"], row["product_id"]))) for row in rows]
        self.scorer.score(facts)
        return [
            (_scored(row, products.get(row["product_id"]), each), _features(row, each))
            for row, each in zip(rows, facts, strict=True)
        ]

    def _facts(self, row: Row, products: dict[str, Row], reference: Row | None) -> CreativeFacts:
        product, clicks = products.get(row["product_id"]), row["history_ids"]
        picture, problems = picture_of(self.journal.storage, row)
        problems += _duplicates(product=product, reference=reference)
        cutout = product and self._resolved(product["cutout"] or product["image"])
        shown = reference and self._resolved(reference["image"])
        return CreativeFacts(
            pair_id=row["pair_id"],
            variant=row["variant"],
            user_key=row["user_key"],
            title=row["title"] or "" if row["status"] == OK else None,
            picture=picture,
            unpasted=self._unpasted(row, problems),
            product=product and ProductTexts.of(product),
            cutout=cutout,
            scale=product and product["scale"],
            reference_titles=reference and tuple(reference["titles"] or ()),
            reference_picture=ShopPicture(shown, cutout) if shown else None,
            clicked=None if clicks is None else self._pictures(clicks, products),
            problems=problems,
        )

    def _unpasted(self, row: Row, problems: list[str]) -> bytes | None:
        if not self.context.has_unpasted or row["uri"] is None:
            return None
        if (painted := read_unpasted(self.journal.storage, self.context.campaign, row)) is None:
            problems.append("no_unpasted_picture")
        return painted

    def _resolved(self, uri: str | None) -> str | None:
        try:
            return self.context.inputs.resolve(uri) if uri else None
        except PairError:
            return None  # as good as not there: the tables may not name this place


def _duplicates(**found: Row | None) -> list[str]:
    """What the tables hold twice: the first row of it is taken."""
    return [f"duplicate_{what}" for what, row in found.items() if row is not None and row["listed"] > 1]


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
        "left_out": facts.problems,
        "bleu_counts": facts.bleu_counts,
    }  # fmt: skip


def _features(row: Row, facts: CreativeFacts) -> Row | None:
    if not facts.features:
        return None
    given = {name: row[name] for name in ("pair_id", "variant", "user_key", "product_id")}
    return given | {name: to_bytes(feature) for name, feature in facts.features.items()}
