"""What everything around the engine costs: the refresh itself, with a null generator in the engine's place.

    synthetic inputs -> catalog -> plan -> look-up -> NULL -> finish -> store -> compact -> publish

Measured twice. `data`: every row, object and commit is real, but no product picture is decoded, pasted, judged or encoded;
an object is 8 KB of its pair's own. `finished`: all of it, at the given side. Not measured in either: the prompt, the
condition picture and the model pass, which are the engine's.

The null classes are chosen here, in code. No setting of a refresh can choose them.
"""

import hashlib
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adgen.config import FinishSettings
from adgen.errors import RunError
from adgen.finishing.encode import Encoded
from adgen.finishing.finish import Finished
from adgen.finishing.gates import GATES, Verdict
from adgen.generation.starter import write_starter_model
from adgen.on_ray.benchmark.processes import Memory, PhaseClock, PhaseCost, ProcessWatch
from adgen.on_ray.cluster import connected
from adgen.on_ray.refresh.commit import FinishAndCommit
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.generate import ASKED, MADE, SHOWN
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.look_up import LookUp
from adgen.on_ray.refresh.payload import pack, raw, unpack, with_columns
from adgen.on_ray.refresh.planning import build_run_catalog, prepare
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.refresh.stages import Stages
from adgen.on_ray.rows import Row
from adgen.records import OK
from adgen.shop.inputs.tables import PICTURE_ROOTS
from adgen.shop.synthetic.drawing.backgrounds import STYLES, draw_background
from adgen.shop.synthetic.synth import synthesize

PAIRS_PER_USER = 4
BACKGROUND_SIDE = 64  # what `tiny` paints
OBJECT_BYTES = 8192
RATED = ("plan", "generate", "publish")


class NullGenerate:
    """In the engine's place: one picture for all, and for each the product's own title."""

    def __init__(self, context: Context):
        background = draw_background(next(iter(STYLES)), BACKGROUND_SIDE, np.random.default_rng(0))
        self.picture = raw(np.asarray(background))

    def __call__(self, row: Row) -> Row:
        """As `Generate`."""
        shard = unpack(row["shard"])
        pairs = shard.select(ASKED).to_pylist()  # as `Generate` does, without its requests
        wanted = [pair for pair in pairs if pair["reason"] is None]
        for pair in wanted:
            pair |= {"title": pair["product_title"], "picture": self.picture, "seconds": 0.0}
        made = pack(with_columns(shard.drop_columns(SHOWN), pairs, MADE))
        return row | {"shard": made, "squares": b"", "engine_calls": len(wanted)}


class NullLookUp(LookUp):
    """All but the pixels of the products."""

    def square(self, pair: Row, picture: bytes) -> bytes:
        """None."""
        return b""


class NullFinish(FinishAndCommit):
    """Rows, objects and commits as they are, without a pixel."""

    def creative(self, pair: Row, pictures: dict[str, bytes]) -> Finished:
        """Bytes that no other creative has; no picture, so of no size."""
        data = hashlib.shake_128(f"{pair['pair_id']} {pair['variant']}".encode()).digest(OBJECT_BYTES)
        verdict = Verdict(OK, None, dict.fromkeys(GATES, "ok"), {"allowed_words": 1.0})
        return Finished(pair["title"], Encoded(data, "webp", None, None), (), verdict)


@dataclass(frozen=True)
class Measured:
    """One refresh: its phases and the memory of its processes."""

    pairs: int
    finishing: str
    """`data`, or `finished` at some side."""
    phases: dict[str, PhaseCost]
    memory: dict[str, Memory]
    cpu_by_kind: dict[str, float]

    def pairs_per_core_second(self, phase: str) -> float:
        """Pairs of the run by the CPU seconds that the phase took of all processes together, Ray's own included."""
        return self.pairs / self.phases[phase].cpu_seconds


def run_benchmark(
    sizes: tuple[int, ...], finished_pairs: int, side: int, products: int, pairs_per_shard: int, each: Callable[[Measured], None]
) -> list[Measured]:
    """A refresh of each size without pictures, and one of `finished_pairs` (0: none) with them at `side` pixels.

    `each` hears of a run as soon as it is measured: removing the objects of a large one takes minutes.

    Each runs in a process of its own with a Ray of its own, on one drawn shop, in folders that are removed afterwards.
    """
    runs = [(size, None) for size in sizes] + ([(finished_pairs, side)] if finished_pairs else [])
    with tempfile.TemporaryDirectory(prefix="adgen-benchmark-") as name:
        root = Path(name)
        most = max(pairs for pairs, _ in runs)
        synthesize(root / "shop", -(-most // PAIRS_PER_USER), products, num_pairs=most, num_references=0, workers=2)
        titles = pq.read_table(root / "shop" / "products.parquet", columns=["title"])["title"].to_pylist()
        write_starter_model(root / "model", titles)
        return [_apart(root, pairs, of_side, pairs_per_shard, each) for pairs, of_side in runs]


def _apart(root: Path, pairs: int, side: int | None, pairs_per_shard: int, each: Callable[[Measured], None]) -> Measured:
    """In a process of its own: peaks are of this run alone, and the store is gone before the next begins."""
    with (
        tempfile.TemporaryDirectory(prefix=f"{pairs}-", dir=root) as folder,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        inputs = cut_inputs(root / "shop", Path(folder) / "inputs", pairs)
        settings = RefreshSettings(
            inputs=str(inputs),
            store=str(Path(folder) / "store"),
            campaign="benchmark",
            model=root / "model",
            allow_untrained=True,
            finish=FinishSettings(width=side or 512, height=side or 512),
        )
        settings = settings.model_copy(update={"plan": settings.plan.model_copy(update={"pairs_per_shard": pairs_per_shard})})
        run = pool.submit(measure, settings, pairs, side).result()
        each(run)
        return run


def measure(settings: RefreshSettings, pairs: int, side: int | None) -> Measured:
    """One refresh from nothing to published. RunError when it did not publish every pair as ok."""
    stages = Stages(NullLookUp, NullGenerate, NullFinish) if side is None else Stages(LookUp, NullGenerate, FinishAndCommit)
    with ProcessWatch() as watch, connected(settings.cluster, settings.s3):
        clock = PhaseClock(watch)
        clock.phase("catalog")
        with tempfile.TemporaryDirectory(prefix="adgen-benchmark-") as scratch:
            build_run_catalog(prepare(settings), Path(scratch))
        summary = refresh(settings, clock, stages)
        phases = clock.close()
    if not summary.published or summary.generated != pairs or summary.rejected:
        raise RunError(f"the benchmark's refresh of {pairs} pairs is not whole: {summary.as_dict()}")
    finishing = "data" if side is None else f"finished {side}"
    return Measured(pairs, finishing, phases, dict(watch.memory), dict(watch.cpu_by_kind))


def cut_inputs(shop: Path, dest: Path, pairs: int) -> Path:
    """Inputs with the shop's first `pairs` pairs and their users; pictures stay where they are."""
    dest.mkdir(parents=True)
    users = -(-pairs // PAIRS_PER_USER)
    for table, rows in (("pairs", pairs), ("histories", users)):
        pq.write_table(pq.read_table(shop / f"{table}.parquet").slice(0, rows), dest / f"{table}.parquet")
    products = pq.read_table(shop / "products.parquet")
    for name in ("image", "cutout"):
        paths = pa.array([str(shop / path) for path in products[name].to_pylist()])
        products = products.set_column(products.schema.get_field_index(name), name, paths)
    pq.write_table(products, dest / "products.parquet")
    (dest / PICTURE_ROOTS).write_text(f'["{shop}"]')
    return dest


def marginal_rates(measured: list[Measured]) -> dict[str, dict[str, float]]:
    """Pairs a CPU second, with and without the kernel's share, between the smallest size and the largest.

    What starting up costs cancels out. Nothing where there are not two sizes.
    """
    sizes = sorted((run for run in measured if run.finishing == "data"), key=lambda run: run.pairs)
    if len(sizes) < 2 or sizes[0].pairs == sizes[-1].pairs:
        return {}
    few, many = sizes[0], sizes[-1]
    rates: dict[str, dict[str, float]] = {}
    for name in RATED:
        for kind in ("cpu_seconds", "user_seconds"):
            seconds = getattr(many.phases[name], kind) - getattr(few.phases[name], kind)
            rates.setdefault(name, {})[kind] = round((many.pairs - few.pairs) / seconds, 1)
    return rates


def as_record(measured: list[Measured]) -> list[dict[str, Any]]:
    """For JSON: rates in pairs a second and core, memory in MB."""
    return [
        {
            "pairs": run.pairs,
            "finishing": run.finishing,
            "seconds": {name: round(cost.seconds, 1) for name, cost in run.phases.items()},
            "user_seconds": {name: round(cost.user_seconds, 1) for name, cost in run.phases.items()},
            "system_seconds": {name: round(cost.system_seconds, 1) for name, cost in run.phases.items()},
            "pairs_per_core_second": {name: round(run.pairs_per_core_second(name), 1) for name in RATED},
            "cpu_seconds_by_kind": {kind: round(seconds, 1) for kind, seconds in sorted(run.cpu_by_kind.items())},
            "peak_rss_mb": {kind: peak.rss >> 20 for kind, peak in sorted(run.memory.items())},
            "peak_own_mb": {kind: peak.own >> 20 for kind, peak in sorted(run.memory.items())},
        }
        for run in measured
    ]
