"""A finished run without a model: a drawn shop, its reference pictures for backgrounds, the real finishing, a real journal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from safetensors.torch import save_file

from adgen.config import FinishSettings
from adgen.creatives import layout
from adgen.creatives.journal import Journal, from_parquet
from adgen.creatives.objects import put_object
from adgen.creatives.publish import read_pointer
from adgen.creatives.reading import open_published
from adgen.creatives.runs import Run
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.evaluation.results.features import FEATURES
from adgen.evaluation.results.rows import ROWS
from adgen.evaluation.scoring.networks import NetworkPaths
from adgen.finishing.finish import ProductFacts, finish
from adgen.model.pbs import PBS_CONFIG_FILE, PBS_FILE, PBSEncoder, initialize_pbs
from adgen.model.pbs_config import PBSConfig
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.evaluation.settings import RunEvaluationSettings
from adgen.on_ray.refresh.commit import vars_of
from adgen.on_ray.refresh.payload import lossless
from adgen.on_ray.rows import Row, raise_row_error
from adgen.on_ray.scoring.sampling import read_panel
from adgen.on_ray.scoring.workers import Scored, ScoreShard, ScoringContext, packed, whole_parts
from adgen.records import FAILED, LINEAGE, MANIFEST, OK, pair_id, user_key
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.synthetic.synth import synthesize
from support.runs import CAMPAIGN, begin

SECRET, ROWS_PER_SHARD, CLICKS = b"a secret for tests", 5, 4


def draw_shop(folder: Path) -> Path:
    """Six users, twelve references."""
    synthesize(folder, num_users=6, num_products=30, num_pairs=12, num_references=12, seed=3, picture_side=64)
    return folder


def save_small_encoder(folder: Path) -> Path:
    """A PBS encoder of the smallest size, random."""
    config = PBSConfig(image_size=32, resize_to=32, patch_size=8, hidden_size=16, num_layers=1, num_heads=2, feature_size=8)
    folder.mkdir()
    (folder / PBS_CONFIG_FILE).write_text(config.model_dump_json())
    save_file(initialize_pbs(PBSEncoder(config)).state_dict(), folder / PBS_FILE)
    return folder


def plan_run(store: Path, shop: Path, resume_key: str = "tonight") -> Run:
    """A planned run, its shards not done."""
    storage = open_storage(str(store))
    run = begin(storage, resume_key)
    if run.resumed:
        return run
    journal, rows = Journal(storage, CAMPAIGN, run.run_id), pq.read_table(shop / "references.parquet").to_pylist()
    pairs = [pair_id(SECRET, row["user_id"], row["product_id"], None, None) for row in rows]
    parts = [
        journal.write_plan_part(index, pa.table({"pair_id": pairs[start : start + ROWS_PER_SHARD]}))
        for index, start in enumerate(range(0, len(pairs), ROWS_PER_SHARD))
    ]
    pointer, etag = read_pointer(storage, CAMPAIGN)
    generation = pointer.generation if pointer else 0
    base = pointer.run_id if pointer else None
    journal.commit_plan(parts, settings_digest="s", inputs={}, base_run=base, pointer_etag=etag, pointer_generation=generation)
    return run


def do_shards(run: Run, shop: Path, title: str | None = None, failed: int = 1, painted: bool = False, seed: int = 0) -> Journal:
    """Creatives of the references: their picture is the background, their first title (or `title`) the title. The first
    `failed` rows of the run fail. Where `painted`, what was pasted over is kept: of every second creative the reference, which
    shows the product, of the others its mirror image. Each `seed` turns the backgrounds."""
    journal, products = Journal(run.storage, CAMPAIGN, run.run_id), _by_id(shop, "products", "product_id")
    clicks = {user: row["clicks"] for user, row in _by_id(shop, "histories", "user_id").items()}
    references = pq.read_table(shop / "references.parquet").to_pylist()
    for part in journal.unfinished():
        start = part.index * ROWS_PER_SHARD
        manifest, lineage = [], []
        for number, row in enumerate(references[start : start + ROWS_PER_SHARD], start):
            pair = pair_id(SECRET, row["user_id"], row["product_id"], None, None)
            made = _creative(run.storage, shop, row, products[row["product_id"]], title, seed) if number >= failed else {}
            base = {"schema_version": 1, "pair_id": pair, "variant": 0, "rank": 0}
            base |= {"user_key": user_key(SECRET, row["user_id"])}
            base |= {"product_id": row["product_id"], "stale": False, "status": FAILED, "reason": "engine"}
            base |= {"fingerprint": f"{number:064x}"}
            if painted:
                picture = Image.open(shop / row["image"]).convert("RGB")
                shown = np.asarray(picture if number % 2 else ImageOps.mirror(picture))
                run.storage.put(layout.unpasted_picture(CAMPAIGN, pair, base["fingerprint"]), lossless(shown))
            manifest.append(base | made)
            history = [click["product_id"] for click in clicks[row["user_id"]][:CLICKS]]
            ids = {"pair_id": pair, "variant": 0, "user_id": row["user_id"], "product_id": row["product_id"]}
            lineage.append(ids | {"history_ids": history})
        journal.commit_part(part, pa.Table.from_pylist(manifest, MANIFEST), pa.Table.from_pylist(lineage, LINEAGE))
    return journal


def score_here(context: ScoringContext, items: Sequence[Row], cluster: ClusterSettings) -> Iterator[Scored]:
    """`score` in this process: what workers do, without Ray."""
    stage = ScoreShard(context)
    for done in map(raise_row_error, (stage(packed(item)) for item in items)):
        yield Scored(done["index"], from_parquet(done["scores"]), from_parquet(done["features"]))


def _creative(storage: Storage, shop: Path, reference: dict, product: dict, title: str | None, seed: int) -> dict:
    facts = ProductFacts(
        title=product["title"],
        selling_points=tuple(product["selling_points"]),
        cutout=(shop / product["cutout"]).read_bytes() if product["cutout"] else None,
        image=(shop / product["image"]).read_bytes(),
        scale=product["scale"],
    )
    background = np.rot90(np.asarray(Image.open(shop / reference["image"]).convert("RGB")), seed)
    done = finish(background, title or reference["titles"][0], facts, FinishSettings(width=128, height=128))
    stored = put_object(storage, done.picture.data, done.picture.extension, done.picture.content_type)
    return done.manifest_fields() | {"status": OK, "reason": None} | vars_of(stored)


def _by_id(shop: Path, table: str, key: str) -> dict[str, dict]:
    return {row[key]: row for row in pq.read_table(shop / f"{table}.parquet").to_pylist()}


def rows_of(out: Path) -> list[dict]:
    return [row for part in sorted((out / ROWS).iterdir()) for row in pq.read_table(part).to_pylist()]


def context(store: Path, shop: Path, **networks: Path | None) -> ScoringContext:
    inputs = open_inputs(str(shop), ["products"], optional=["references"])
    run = open_published(open_storage(str(store)), CAMPAIGN).run
    run_id, networks = run.run_id, NetworkPaths(**networks)
    panel = read_panel(Journal(open_storage(str(store)), CAMPAIGN, run_id))
    return ScoringContext(str(store), S3Access(), CAMPAIGN, run_id, inputs, networks, "cpu", panel)


def scored(store: Path, shop: Path, out: Path, encoder: Path | None = None, **networks: Path | None) -> list[dict]:
    """The rows of an evaluation, which then lies in `out`."""
    stage = ScoreShard(context(store, shop, encoder=encoder, **networks))
    for folder in (ROWS, FEATURES):
        (out / folder).mkdir(parents=True)
    rows = []
    for item in whole_parts(stage.journal.read_plan().parts):
        done = stage(packed(item))
        assert done.keys() == {"index", "scores", "features"}, done
        table = pq.read_table(pa.BufferReader(done["scores"]))
        pq.write_table(table, out / ROWS / f"{item['index']:06d}.parquet")
        (out / FEATURES / f"{item['index']:06d}.parquet").write_bytes(done["features"])
        rows += table.to_pylist()
    return rows


def rewritten(folder: Path, table: str, change) -> Path:
    """`change` gets the table's rows, and returns those that are to be there; ids may be missing."""
    there = pq.read_table(folder / f"{table}.parquet")
    schema = pa.schema([field.with_nullable(True) for field in there.schema])
    pq.write_table(pa.Table.from_pylist(change(there.to_pylist()), schema), folder / f"{table}.parquet")
    return folder


def run_settings(store: Path, shop: Path, out: Path, **given) -> RunEvaluationSettings:
    return RunEvaluationSettings(store=str(store), campaign=CAMPAIGN, inputs=str(shop), out=str(out), resamples=100, **given)
