"""How long an engine waits for its shards: the refresh itself, with an engine that takes a known time for each batch.

Look-up, cut-outs, requests, finishing and commits are real, so that whatever happens on the engine's time shows. The stand-in
paints what finishing cannot make short work of: a drawn background.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adgen.config import FinishSettings
from adgen.generation.starter import write_starter_model
from adgen.on_ray.benchmark.refresh import BACKGROUND_SIDE
from adgen.on_ray.benchmark.settings import WaitingBenchmarkSettings
from adgen.on_ray.cluster import connected
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.refresh.generate import Generate
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.settings import PlanSettings, RefreshSettings
from adgen.on_ray.refresh.stages import Stages
from adgen.progress import Progress
from adgen.shop.synthetic.drawing.backgrounds import STYLES, draw_background
from adgen.shop.synthetic.synth import synthesize

if TYPE_CHECKING:
    from adgen.generation.generate import Request, Result


class TimedEngine:
    """Takes `seconds` for each batch of `num_slots` creatives, and paints the same background for all."""

    switched_off: frozenset[str] = frozenset()

    def __init__(self, seconds: float, num_slots: int):
        from adgen.generation.timings import PhaseTimings

        self.seconds, self.num_slots = seconds, num_slots
        self.timings = PhaseTimings()
        self.picture = np.asarray(draw_background(next(iter(STYLES)), BACKGROUND_SIDE, np.random.default_rng(0)))

    def generate(self, requests: "Sequence[Request]") -> "list[Result]":
        """A result for each request."""
        import torch

        from adgen.generation.generate import Result

        for _ in range(0, len(requests), self.num_slots):
            time.sleep(self.seconds)
            self.timings.picture += self.seconds
        codes, picture = torch.zeros(1, dtype=torch.int64), torch.tensor(self.picture)
        return [Result(request.product_title, True, codes, picture, self.num_slots) for request in requests]


def timed_stages(seconds: float, num_slots: int) -> Stages:
    """The refresh's own, around such an engine."""

    class TimedGenerate(Generate):
        """Pickled by value: it knows its seconds."""

        engine = property(lambda self: self.timed)

        def __init__(self, context: Any):
            super().__init__(context)
            self.timed = TimedEngine(seconds, num_slots)

    return Stages(generate=TimedGenerate)


def run_benchmark(settings: WaitingBenchmarkSettings, progress: Progress) -> list[dict[str, Any]]:
    """One refresh for each number of seconds, in one Ray: [{"seconds", "batches", "engine_busy", "wall_over_engine"}], the last one
    the wall clock from the first batch's start to the last one's end over the batches' own time."""
    found = []
    with tempfile.TemporaryDirectory(prefix="adgen-benchmark-") as name, connected(ClusterSettings()):
        root, pairs = Path(name), settings.batch * settings.shards
        synthesize(root / "shop", -(-pairs // 4), settings.products, num_pairs=pairs, num_references=0)
        write_starter_model(root / "model", ["red cup", "blue lamp"])
        for seconds in settings.seconds:
            asked = RefreshSettings(
                inputs=str(root / "shop"),
                store=str(root / f"store-{seconds}"),
                campaign="waiting",
                model=root / "model",
                allow_untrained=True,
                finish=FinishSettings(width=settings.side, height=settings.side),
                plan=PlanSettings(pairs_per_shard=settings.batch),
                cluster=ClusterSettings(actors=1),
            )
            made = refresh(asked, progress, timed_stages(seconds, settings.batch))
            row = {"seconds": seconds, "batches": settings.shards, "engine_busy": made.engine_busy}
            found.append(row | {"wall_over_engine": round(1 / made.engine_busy, 4) if made.engine_busy else None})
    return found
