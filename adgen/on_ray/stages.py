"""What happens to a shard: look-up, generate, finish and commit. One function a stage; Ray Data strings them together.

A dataset row is a whole shard: its entry of plan.json, then in "shard" its tables as bytes. So no block splitting can cut
it (STACK.md section 3), a stage's memory is one shard's, and no stage reads plan.json, which grows with the campaign.
"""

import copy
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from adgen.creatives.documents import PlanPart
from adgen.creatives.journal import Journal
from adgen.creatives.objects import put_object
from adgen.creatives.storage import S3Access, open_storage
from adgen.errors import PairError
from adgen.finishing.finish import Finished, finish, product_cutout
from adgen.images import square_frame
from adgen.on_ray.payload import Row, lossless, pack, plan_part, product_facts, unpack
from adgen.on_ray.provenance import PROVENANCE, provenance
from adgen.on_ray.row_errors import telling
from adgen.on_ray.settings import RefreshSettings
from adgen.on_ray.speed import shard_speed
from adgen.records import FAILED, LINEAGE, MANIFEST, MANIFEST_SCHEMA_VERSION, OK
from adgen.shop.catalog import Catalog
from adgen.shop.locations import read_bytes
from adgen.shop.plan_rows import carried_rows

if TYPE_CHECKING:
    from adgen.generation.engine import Engine
    from adgen.model.config import ModelConfig


@dataclass(frozen=True)
class Context:
    """What every stage of a run needs; small and picklable."""

    settings: RefreshSettings
    access: S3Access
    run_id: str
    model_digest: str
    settings_digest: str

    def journal(self) -> Journal:
        """The run's plan and journal."""
        storage = open_storage(self.settings.store, self.access)
        return Journal(storage, self.settings.campaign, self.run_id)


# -- look-up -----------------------------------------------------------------------------------------------------------


class LookUp:
    """A shard's plan entry -> its pairs with everything that generation and finishing need."""

    def __init__(self, context: Context, catalog: Catalog):
        self.context = context
        self.journal = context.journal()
        self.catalog = catalog

    @telling
    def __call__(self, row: Row) -> Row:
        """Adds "shard"; a pair that cannot be made gets a reason and no picture."""
        pairs = self.journal.read_plan_part(plan_part(row)).to_pylist()
        return row | {"shard": pack(pairs, self.look_up(pairs))}

    def look_up(self, pairs: list[Row]) -> dict[str, bytes]:
        """Complete planned pairs, or give them a reason; the products' pictures."""
        pictures: dict[str, bytes] = {}
        for pair in pairs:
            # Every row has every column from here on: Arrow takes a table's columns from its first row.
            pair |= {"history_titles": [], "history_codes": [], "title": None, "picture": None, "seconds": None}
            pair |= dict.fromkeys(PROVENANCE)
            if pair["reason"] is None:
                self._look_up_product(pair, pictures)
        self._look_up_histories([pair for pair in pairs if pair["reason"] is None])
        return pictures

    def _look_up_product(self, pair: Row, pictures: dict[str, bytes]) -> None:
        product = pair["product_id"]
        try:
            if product not in pictures:
                pictures[product] = read_bytes(pair["cutout"] or pair["image"])
            if pair["cutout_hash"] not in (None, hashlib.sha256(pictures[product]).hexdigest()):
                raise PairError("input_changed", f"the picture of {product} is not the one that was planned")
        except PairError as error:
            pair["reason"], pair["detail"] = error.reason, error.detail

    def _look_up_histories(self, pairs: list[Row]) -> None:
        """All of a shard's clicks in one look-up: one a pair costs many times as much."""
        clicked = [product for pair in pairs for product in pair["history_ids"] or ()]
        titles, codes = iter(self.catalog.titles(clicked)), iter(self.catalog.codes(clicked).tolist())
        for pair in pairs:
            size = len(pair["history_ids"] or ())
            pair["history_titles"] = list(islice(titles, size))
            pair["history_codes"] = list(islice(codes, size))


# -- generate ----------------------------------------------------------------------------------------------------------


class Generate:
    """One engine, built once; its pictures are encoded here, without loss."""

    def __init__(self, context: Context, engine: "Engine | None" = None):
        """engine: one that is ready, for a rank of several; default one of our own."""
        self.context = context
        if engine is not None:
            self.engine = engine

    @cached_property
    def engine(self) -> "Engine":
        """Built for the first shard, so that `telling` can tell what goes wrong."""
        from adgen.on_ray.engines import build_engine

        return build_engine(self.context.settings)

    @cached_property
    def config(self) -> "ModelConfig":
        """The model's sizes."""
        from adgen.model.checkpoint import read_config

        return read_config(self.context.settings.model)

    @telling
    def __call__(self, row: Row) -> Row:
        """Adds title and picture to each pair without a reason."""
        pairs, pictures = unpack(row["shard"])
        conditions = self._conditions(pairs, pictures)
        wanted = [pair for pair in pairs if pair["reason"] is None]
        engine = self.engine
        before = copy.copy(engine.timings)
        results = engine.generate(self._requests(wanted, conditions))
        speed = shard_speed(engine, engine.timings - before, len(wanted))
        seconds = speed["engine_seconds"] / max(1, len(wanted))
        for pair, result in zip(wanted, results, strict=True):
            pair |= {"title": result.title, "picture": lossless(result.picture.numpy()), "seconds": seconds}
            pair |= provenance(result, self.context.settings)
        return row | speed | {"shard": pack(pairs, pictures), "engine_calls": len(wanted)}

    def _conditions(self, pairs: list[Row], pictures: dict[str, bytes]) -> dict[str, Any]:
        """What the model sees of each product; a pair whose product cannot be shown gets the reason."""
        from adgen.generation.pictures import condition_pixels

        conditions: dict[str, Any] = {}
        for pair in pairs:
            product = pair["product_id"]
            if pair["reason"] is not None or product in conditions:
                continue
            try:
                fact = product_facts(pair, pictures[product])
                conditions[product] = condition_pixels(
                    square_frame(product_cutout(fact)), fact.scale or 1.0, self.config.foreground
                )
            except PairError as error:
                pair["reason"], pair["detail"] = error.reason, error.detail
        return conditions

    def _requests(self, pairs: list[Row], conditions: dict[str, Any]) -> list:
        import torch

        from adgen.generation.generate import Request

        size = self.config.image.tokens_per_history_picture
        return [
            Request(
                product_title=pair["product_title"],
                seed=pair["seed"],
                selling_points=tuple(pair["selling_points"] or ()),
                history_titles=tuple(pair["history_titles"]),
                history_codes=torch.tensor(pair["history_codes"], dtype=torch.int64).reshape(-1, size),
                condition=conditions[pair["product_id"]],
            )
            for pair in pairs
        ]


def pick_device(wanted: str) -> str:
    """`auto` is the GPU where this process has one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


# -- finish and commit -------------------------------------------------------------------------------------------------


class FinishAndCommit:
    """Pairs with backgrounds -> objects in the store, then the shard's journal part."""

    def __init__(self, context: Context):
        self.context = context
        self.journal = context.journal()

    @telling
    def __call__(self, row: Row) -> Row:
        """-> counts of the shard: {"index", "rows", "engine_calls", "engine_seconds", "floor_seconds", "failed", "committed"}."""
        pairs, pictures = unpack(row["shard"])
        with ThreadPoolExecutor(self.context.settings.cluster.upload_threads) as threads:
            rows = list(threads.map(lambda pair: self._finish(pair, pictures), pairs))
        table = pa.Table.from_pylist(rows, schema=MANIFEST)
        committed = self.journal.commit_part(plan_part(row), table, self._lineage(pairs))
        failed = sum(r["status"] == FAILED for r in rows)
        return {
            "index": row["index"],
            "rows": len(rows),
            **{name: row.get(name, 0) for name in ("engine_calls", "engine_seconds", "floor_seconds")},
            "failed": failed,
            "committed": committed,
        }

    def _finish(self, pair: Row, pictures: dict[str, bytes]) -> Row:
        base = {
            "schema_version": MANIFEST_SCHEMA_VERSION,
            "rank": 0,
            "stale": False,
            "model_digest": self.context.model_digest,
            "generated_at": datetime.now(UTC),
            "gates": {},
            "scores": {},
            "renditions": [],
        } | {name: pair[name] for name in COPIED}
        if pair["reason"] is not None:
            return base | {"status": FAILED, "reason": pair["reason"]}
        try:
            done = self.creative(pair, pictures)
        except PairError as error:
            return base | {"status": FAILED, "reason": error.reason}
        if done.verdict.status != OK:
            # A picture that a gate rejected is in no place where a consumer could take it for published.
            return base | done.manifest_fields() | {"seconds": pair["seconds"]}
        storage = self.journal.storage
        put = lambda encoded: put_object(storage, encoded.data, encoded.extension, encoded.content_type)  # noqa: E731
        main = put(done.picture)
        renditions = [
            {"ratio": r.ratio, "width": r.picture.width, "height": r.picture.height, "format": r.picture.format}
            | vars_of(put(r.picture))
            for r in done.renditions
        ]
        return base | done.manifest_fields() | vars_of(main) | {"renditions": renditions, "seconds": pair["seconds"]}

    def creative(self, pair: Row, pictures: dict[str, bytes]) -> Finished:
        """A pair with title and picture (PNG) -> its creative. PairError: why there is none."""
        product = product_facts(pair, pictures[pair["product_id"]])
        background = np.array(Image.open(io.BytesIO(pair["picture"])))
        return finish(background, pair["title"], product, self.context.settings.finish)

    def _lineage(self, pairs: list[Row]) -> pa.Table:
        digests = {"model_digest": self.context.model_digest, "settings_digest": self.context.settings_digest}
        rows = [{name: pair.get(name) for name in LINEAGE.names} | digests for pair in pairs]
        return pa.Table.from_pylist(rows, schema=LINEAGE)


class Stages(NamedTuple):
    """The classes that a shard passes through. The data benchmark and evaluations put others in their place; no setting can."""

    look_up: type = LookUp
    generate: type = Generate
    finish: type = FinishAndCommit


STAGES = Stages()
COPIED = ("pair_id", "variant", "attempt", "user_key", "product_id", "locale", "channel", "seed", "fingerprint")


def commit_carried(context: Context, part: PlanPart) -> Row:
    """A bulk shard of carried rows: its plan part is its result."""
    journal = context.journal()
    committed = journal.commit_part(part, *carried_rows(journal.read_plan_part(part)))
    return {
        "index": part.index,
        "rows": part.rows,
        "engine_calls": 0,
        "engine_seconds": 0.0,
        "floor_seconds": 0.0,
        "failed": 0,
        "committed": committed,
    }


# -- small parts -------------------------------------------------------------------------------------------------------


def vars_of(reference: Any) -> Row:
    """The manifest's columns of a stored object."""
    return {"uri": reference.uri, "sha256": reference.sha256, "bytes": reference.bytes}
