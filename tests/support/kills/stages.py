"""Engines for killed refreshes: a painter that costs nothing, and the real one; both note which shards they were given."""

import os
import time
from pathlib import Path

import numpy as np

from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.generate import MADE, Generate
from adgen.on_ray.refresh.payload import pack, raw, unpack, with_columns
from adgen.on_ray.refresh.stages import Stages
from adgen.on_ray.rows import Row

SHARD_SECONDS = 0.3  # that an engine waits over each shard: a wider target at no cost
SIDE = 16


def note(context: Context, row: Row) -> None:
    """Append the shard to the file of its run, where engines of all nodes write (they are on one machine)."""
    folder = Path(context.settings.inputs).parent / "generated"
    folder.mkdir(exist_ok=True)
    with open(folder / context.run_id, "a") as file:
        file.write(f"{row['index']}\n")


class Painter:
    """In the engine's place: noise of the pair's seed, and the product's own title."""

    def __init__(self, context: Context):
        self.context = context

    def __call__(self, row: Row) -> Row:
        """As `Generate`."""
        note(self.context, row)
        time.sleep(SHARD_SECONDS)
        shard = unpack(row["shard"])
        pairs = shard.to_pylist()
        wanted = [pair for pair in pairs if pair["reason"] is None]
        for pair in wanted:
            noise = np.random.default_rng(pair["seed"] % 2**63).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            pair |= {"title": pair["product_title"], "picture": raw(noise), "seconds": 0.0}
            pair |= {"attempt": 0, "title_source": "model"}
        return row | {"shard": pack(with_columns(shard, pairs, MADE)), "squares": b"", "engine_calls": len(wanted)}


class NotedGenerate(Generate):
    """The real engine."""

    def __call__(self, row: Row) -> Row:
        """As `Generate`."""
        note(self.context, row)
        time.sleep(SHARD_SECONDS)
        return super().__call__(row)


STAGES = {"painter": Stages(generate=Painter), "engine": Stages(generate=NotedGenerate)}


def generated(inputs: Path) -> dict[str, list[int]]:
    """Shards that engines were given, by run."""
    folder = inputs.parent / "generated"
    return (
        {name: [int(line) for line in (folder / name).read_text().split()] for name in os.listdir(folder)}
        if folder.exists()
        else {}
    )
