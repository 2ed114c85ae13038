"""Where a shard's bytes become exactly-once: creatives are finished, objects put, then one conditional PUT commits the part."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageStat

from adgen.creatives.documents import PlanPart
from adgen.creatives.journal import without_pairs
from adgen.creatives.objects import put_object
from adgen.creatives.ranking import COLOUR
from adgen.errors import PairError
from adgen.finishing.fallbacks import usable_background
from adgen.finishing.finish import Finished, ProductFacts, finish
from adgen.images import holding, use_limits
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import PRODUCT_FACTS, painted, plan_part, product_facts, raw, unpack, unpack_files
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
        "engine_ended", "roofline_seconds", "made_ok", "failed", "judged", "judged_failed", "retried", "committed",
        "kernels_off"}."""
        shard = unpack(row["shard"])
        # No picture of a forgotten user is put. Whoever is forgotten from here on: the commit asks again.
        planned = without_pairs(shard, self.journal.forgotten_pairs_of(shard))
        pairs = planned.select([name for name in ASKED if name in planned.column_names]).to_pylist()
        rows = self.creative_rows(pairs, unpack_files(row["pictures"]))
        part = plan_part(row)
        made = self.manifest(planned, rows), self.lineage(planned)
        committed = self.journal.commit_part(part, *with_carried(self.journal.read_plan_part(part), *made))
        failed = sum(r["status"] == FAILED for r in rows)
        return {
            "index": row["index"],
            "rows": part.rows,
            "pairs": pc.count_distinct(shard["pair_id"]).as_py(),
            **{name: row.get(name, 0) for name in ("engine_calls", "engine_seconds")},
            **{name: row.get(name) for name in ("engine", "engine_started", "engine_ended")},
            "roofline_seconds": row.get("roofline_seconds"),
            "made_ok": sum(r["status"] == OK for r in rows),
            "failed": failed,
            **judged_counts(pairs, rows),
            "committed": committed,
            "kernels_off": row.get("kernels_off", ""),
        }

    def manifest(self, pairs: pa.Table, rows: list[Row]) -> pa.Table:
        """The manifest's rows of a shard's pairs; `rows` are their `creative_row`s."""
        count, same = pairs.num_rows, self._same
        columns = [
            pairs[field.name].cast(field.type)
            if field.name in COPIED
            else pa.repeat(pa.scalar(same[field.name], field.type), count)
            if field.name in same
            else pa.array([row.get(field.name) for row in rows], field.type)
            for field in MANIFEST
        ]
        return pa.Table.from_arrays(columns, schema=MANIFEST)

    @property
    def _same(self) -> Row:
        """What all of a run's new rows have in common."""
        return {"schema_version": MANIFEST_SCHEMA_VERSION, "stale": False, "model_digest": self.context.model_digest}

    def creative_rows(self, pairs: list[Row], pictures: dict[str, bytes]) -> list[Row]:
        """A `creative_row` for each pair, from as many threads as may upload at once. Each takes its share: a hand-over each
        pair would cost more than its row."""
        rows: list[Row] = [{}] * len(pairs)
        shares = min(self.context.settings.cluster.upload_threads, len(pairs))

        def share(first: int) -> None:
            for place in range(first, len(pairs), shares):
                rows[place] = self.creative_row(pairs[place], pictures)

        with ThreadPoolExecutor(max(1, shares)) as threads:
            list(threads.map(share, range(shares)))
        return rows

    def manifest_row(self, pair: Row, pictures: dict[str, bytes]) -> Row:
        """A generated pair's row, with its objects in the store."""
        return self._same | {name: pair[name] for name in COPIED} | self.creative_row(pair, pictures)

    def creative_row(self, pair: Row, pictures: dict[str, bytes]) -> Row:
        """The columns of a pair's row that finishing decides; its objects are in the store."""
        base = {
            "generated_at": datetime.now(UTC),
            "gates": {MODEL_GATE: "warn: untrained"} if self.context.untrained else {},
            "scores": {},
            "renditions": [],
            **dict.fromkeys(SOURCES),
        }
        if pair["reason"] is not None:
            return base | {"status": FAILED, "reason": pair["reason"]}
        try:
            with holding():
                done = self.creative(pair, pictures)
        except PairError as error:
            return base | {"status": FAILED, "reason": error.reason}
        made = base | done.manifest_fields() | {name: pair.get(name) for name in ("seconds", *SOURCES)}
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

    @property
    def digests(self) -> Row:
        """What the lineage of all of a run's rows has in common."""
        return {"model_digest": self.context.model_digest, "settings_digest": self.context.settings_digest}

    def lineage(self, pairs: pa.Table) -> pa.Table:
        """How each pair was made."""
        count, there, same = pairs.num_rows, pairs.column_names, self.digests
        columns = [
            pa.repeat(pa.scalar(same[field.name], field.type), count)
            if field.name in same
            else pairs[field.name].cast(field.type)
            if field.name in there
            else pa.nulls(count, field.type)
            for field in LINEAGE
        ]
        return pa.Table.from_arrays(columns, schema=LINEAGE)


MODEL_GATE = "model"
"""What a row says of the model that made it, among what gates say."""
COPIED = ("pair_id", "variant", "attempt", "user_key", "product_id", "locale", "channel", "seed", "fingerprint")
_OF_PAIR = ("pair_id", "variant", "fingerprint", "reason", "tried_before")
_OF_CREATIVE = ("title", "title_source", "picture", "seconds", "style_agreement")
ASKED = (*PRODUCT_FACTS, *_OF_PAIR, *_OF_CREATIVE)


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
    agreement = pair.get("style_agreement")
    return scores if agreement is None else scores | {"style_agreement": agreement}


def commit_carried(context: Context, part: PlanPart) -> Row:
    """Commit a shard that has carried rows alone: the rows of its plan part are the rows of its manifest."""
    journal = context.journal()
    committed = journal.commit_part(part, *carried_rows(journal.read_plan_part(part)))
    return {
        "index": part.index,
        "rows": part.rows,
        "pairs": part.rows,
        "engine_calls": 0,
        "engine_seconds": 0.0,
        "engine": None,
        "roofline_seconds": None,
        "made_ok": 0,
        "failed": 0,
        **judged_counts([], []),
        "committed": committed,
        "kernels_off": "",
    }


def vars_of(reference: Any) -> Row:
    """The manifest's columns of a stored object."""
    return {"uri": reference.uri, "sha256": reference.sha256, "bytes": reference.bytes}
