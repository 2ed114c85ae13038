"""Batches for Ray Train's workers, made by Ray Data: places in, tensors out, in an order that is known beforehand.

A dataset row is a micro-batch and a block is a row, so no block splitting can cut it (as in `refresh`). With
`preserve_order` the streaming split hands rows out in turn, so row i goes to worker i modulo their number; workers check
that it did. The dataset is one wave of places, the same every time: where a wave begins is asked of the status
actor when its batches are made. So a run goes on at any place, and the driver's memory does not grow with its length.

torch is imported where batches are made and read: Ray Data's and Ray Train's own processes import this file as well.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions

from adgen.errors import AdgenError, RunError
from adgen.on_ray.training.settings import PretrainSettings
from adgen.on_ray.training.source import Source

WAVE_BATCHES = 256  # micro-batches of a worker in a wave


class MakeBatch:
    """A row's place in the wave -> its micro-batch as bytes."""

    def __init__(self, source: Source, status: Any):
        self.source, self.status = source, status
        with self._reported():
            self.reader = source.reader()
            self.order = source.order(self.reader)
            self.collator = source.collator()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Errors in settings or data go to the status actor: to Ray they would look like a crash, to be tried again."""
        try:
            yield
        except AdgenError as error:
            ray.get(self.status.fail.remote(type(error).__name__, str(error)))
            raise

    def __call__(self, row: dict) -> dict:
        with self._reported():
            return self.micro_batch(row)

    def micro_batch(self, row: dict) -> dict:
        """The row's tensors, and which examples they are."""
        number = ray.get(self.status.first_of_wave.remote()) + int(row["id"])
        share = self.source.settings.share
        drawn = self.order.at(share.place(number), share.micro_batch)
        rows = self.reader.rows([example for _, example in drawn])
        batch = self.collator(rows, [epoch for epoch, _ in drawn])
        import safetensors.torch

        tensors = safetensors.torch.save({name: tensor.contiguous() for name, tensor in batch.items()})
        return {"number": number, "examples": json.dumps([example for _, example in drawn]), "tensors": tensors}


def batches_dataset(source: Source, status: Any) -> ray.data.Dataset:
    """One wave of micro-batches for all workers."""
    data = DataContext.get_current()
    data.enable_progress_bars = False
    data.actor_task_retry_on_errors = False
    settings = source.settings
    rows = wave_size(settings) * settings.workers.num
    pool = ActorPoolStrategy(size=settings.workers.loaders)
    # Rows of our own, not ray.data.range: its read tasks would need a CPU, and workers may hold all of them.
    places = ray.data.from_items([{"id": number} for number in range(rows)], override_num_blocks=rows)
    return places.map(MakeBatch, fn_constructor_args=(source, status), compute=pool, num_cpus=0.5)


def wave_size(settings: PretrainSettings) -> int:
    """Micro-batches of a worker in a wave."""
    return min(WAVE_BATCHES, settings.steps * settings.share.accumulation)


def in_order() -> ray.train.DataConfig:
    """The split that hands rows out in turn."""
    return ray.train.DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False)


@dataclass(frozen=True)
class MicroBatch:
    """What a worker computes at once."""

    number: int
    examples: list[int]
    tensors: dict[str, Any]


def read_batches(shard: Any, status: Any, first: int, rank: int, settings: PretrainSettings, barrier: Any) -> Iterator[MicroBatch]:
    """A worker's micro-batches from global number `first` on, wave after wave. barrier(): waits for all workers.

    RunError when the split handed out another row than its turn's: going on would train on the wrong order.
    """
    import safetensors.torch

    world = settings.workers.num
    while True:
        if rank == 0:
            ray.get(status.begin_wave.remote(first))
        barrier()  # nobody asks for a batch before the status actor knows where the wave begins
        expected = first + rank
        for row in shard.iter_rows():
            if row["number"] != expected:
                raise RunError(f"worker {rank} was given micro-batch {row['number']}, and it is the turn of {expected}")
            yield MicroBatch(row["number"], json.loads(row["examples"]), safetensors.torch.load(row["tensors"]))
            expected += world
        first += wave_size(settings) * world
