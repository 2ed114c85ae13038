"""Where a shard's bytes become exactly-once: creatives are finished, objects put, then one conditional PUT commits the part."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageStat

from adgen.creatives.documents import PlanPart
from adgen.creatives.objects import put_object
from adgen.creatives.ranking import COLOUR
from adgen.errors import PairError
from adgen.finishing.fallbacks import usable_background
from adgen.finishing.finish import Finished, ProductFacts, finish
from adgen.images import holding, use_limits
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import painted, plan_part, product_facts, raw, unpack, unpack_files
from adgen.on_ray.rows import Row, as_row_error
from adgen.records import FAILED, LINEAGE, MANIFEST, MANIFEST_SCHEMA_VERSION, OK, SOURCES
from adgen.shop.plan.rows import carried_rows, with_carried


class FinishAndCommit:
    """Pairs with backgrounds -> objects in the store, then the shard's journal part."""

    def __init__(self, context: Context):
        self.context = context
        self.journal = context.journal()
        use_limits(context.settings.pictures)

    @as_row_error
    def __call__(self, row: Row) -> Row:
        """-> counts of the shard: {"index", "rows", "pairs", "engine_calls", "engine_seconds", "engine", "engine_started",
        "engine_ended", "floor_seconds", "made_ok", "failed", "judged", "judged_failed", "retried", "committed", "kernels_off"}."""
        planned, pictures = unpack(row["shard"]), unpack_files(row["pictures"])
        gone = self.journal.forgotten_users(
            pair["user_id"] for pair in planned
        )  # no picture of theirs is put; the commit asks again
        pairs = [pair for pair in planned if pair["user_id"] not in gone]
        with ThreadPoolExecutor(self.context.settings.cluster.upload_threads) as threads:
            rows = list(threads.map(lambda pair: self.manifest_row(pair, pictures), pairs))
        part = plan_part(row)
        table, lineage = pa.Table.from_pylist(rows, schema=MANIFEST), pa.Table.from_pylist(self.lineage(pairs), schema=LINEAGE)
        committed = self.journal.commit_part(part, *with_carried(self.journal.read_plan_part(part), table, lineage))
        failed = sum(r["status"] == FAILED for r in rows)
        return {
            "index": row["index"],
            "rows": part.rows,
            "pairs": len({pair["pair_id"] for pair in planned}),
            **{name: row.get(name, 0) for name in ("engine_calls", "engine_seconds")},
            **{name: row.get(name) for name in ("engine", "engine_started", "engine_ended")},
            "floor_seconds": row.get("floor_seconds"),
            "made_ok": sum(r["status"] == OK for r in rows),
            "failed": failed,
            **judged_counts(pairs, rows),
            "committed": committed,
            "kernels_off": row.get("kernels_off", ""),
        }

    def manifest_row(self, pair: Row, pictures: dict[str, bytes]) -> Row:
        """A generated pair's row, with its objects in the store."""
        base = {
            "schema_version": MANIFEST_SCHEMA_VERSION,
            "stale": False,
            "model_digest": self.context.model_digest,
            "generated_at": datetime.now(UTC),
            "gates": {MODEL_GATE: "warn: untrained"} if self.context.untrained else {},
            "scores": {},
            "renditions": [],
        } | {name: pair[name] for name in COPIED}
        if pair["reason"] is not None:
            return base | {"status": FAILED, "reason": pair["reason"]}
        try:
            with holding():
                done = self.creative(pair, pictures)
        except PairError as error:
            return base | {"status": FAILED, "reason": error.reason} | dict.fromkeys(SOURCES)
        made = base | done.manifest_fields() | {"seconds": pair["seconds"], "picture_source": pair["picture_source"]}
        made["gates"] = base["gates"] | made["gates"]
        if self.context.settings.plan.variants > 1:
            made["scores"] = made["scores"] | ranking_scores(pair)
        if done.verdict.status != OK:
            # A picture that a gate rejected is in no place where a consumer could take it for published.
            return made
        storage = self.journal.storage
        put = lambda encoded: put_object(storage, encoded.data, encoded.extension, encoded.content_type)  # noqa: E731
        main = put(done.picture)
        renditions = [
            {"ratio": r.ratio, "width": r.picture.width, "height": r.picture.height, "format": r.picture.format}
            | vars_of(put(r.picture))
            for r in done.renditions
        ]
        return made | vars_of(main) | {"renditions": renditions}

    def creative(self, pair: Row, pictures: dict[str, bytes]) -> Finished:
        """A pair with title and painted picture -> its creative. PairError: why there is none."""
        product = product_facts(pair, pictures[pair["product_id"]])
        return finish(self.background(pair, product), pair["title"], product, self.context.settings.finish)

    def background(self, pair: Row, product: ProductFacts) -> np.ndarray:
        """What the product is pasted on, (S, S, 3) uint8; from here on it is the pair's picture, and its source is known."""
        background, source = usable_background(painted(pair["picture"]), product, self.context.settings.finish)
        pair["picture_source"] = source
        if source == "plain":
            pair["picture"] = raw(background)
        return background

    def lineage(self, pairs: list[Row]) -> list[Row]:
        """How each pair was made."""
        digests = {"model_digest": self.context.model_digest, "settings_digest": self.context.settings_digest}
        return [{name: pair.get(name) for name in LINEAGE.names} | digests for pair in pairs]


MODEL_GATE = "model"
"""What a row says of the model that made it, among what gates say."""
COPIED = ("pair_id", "variant", "attempt", "user_key", "product_id", "locale", "channel", "seed", "fingerprint", *SOURCES)


def judged_counts(pairs: list[Row], rows: list[Row]) -> Row:
    """What `FailureWatch` asks of a shard: planned pairs that were meant for an engine and did not fail in the base run, how many
    of them failed (`rows` are the manifest rows of `pairs`), and how many pairs were retries."""
    retries = [bool(pair["tried_before"]) for pair in pairs]
    # The plan gives a pair whose input is bad a reason, and then no fingerprint.
    judged = [row for pair, row, retry in zip(pairs, rows, retries, strict=True) if not retry and pair["fingerprint"] is not None]
    return {"judged": len(judged), "judged_failed": sum(row["status"] == FAILED for row in judged), "retried": sum(retries)}


def ranking_scores(pair: Row) -> dict[str, float]:
    """What variants of a pair are ranked by, apart from the scores of gates (adgen/creatives/ranking.py)."""
    background = Image.fromarray(painted(pair["picture"]))
    scores = dict(zip(COLOUR, ImageStat.Stat(background).mean, strict=True))
    return scores if pair["style_agreement"] is None else scores | {"style_agreement": pair["style_agreement"]}


def commit_carried(context: Context, part: PlanPart) -> Row:
    """A bulk shard of carried rows: its plan part is its result."""
    journal = context.journal()
    committed = journal.commit_part(part, *carried_rows(journal.read_plan_part(part)))
    return {
        "index": part.index,
        "rows": part.rows,
        "pairs": part.rows,
        "engine_calls": 0,
        "engine_seconds": 0.0,
        "engine": None,
        "floor_seconds": None,
        "made_ok": 0,
        "failed": 0,
        **judged_counts([], []),
        "committed": committed,
        "kernels_off": "",
    }


def vars_of(reference: Any) -> Row:
    """The manifest's columns of a stored object."""
    return {"uri": reference.uri, "sha256": reference.sha256, "bytes": reference.bytes}
