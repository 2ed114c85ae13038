"""How fast a run is: tokens a second, the share of what the device could do (MFU), and the share of time without a batch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adgen.on_ray.training.settings import PretrainSettings
from adgen.training.task import Batch, Task

# Dense bf16 FLOP/s of the data sheets.
_KNOWN = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12}


class Speed:
    """Counts micro-batches; a lap is a step."""

    def __init__(self, settings: PretrainSettings, device: str):
        self.workers = settings.workers.num
        self.peak = (settings.workers.peak_tflops or 0) * 1e12 or peak_flops(device)
        self._flops: dict[tuple, float] = {}
        self.restart()

    def restart(self) -> None:
        """Leave out the time since the last lap: a checkpoint, an evaluation."""
        self.started, self.tokens, self.work, self.waited = time.monotonic(), 0, 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While it lasts, the worker has no batch."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def count(self, task: Task, on_host: Batch, batch: Batch) -> None:
        """A micro-batch was computed, forward and what gradients it needed: by formula, or one counted pass for each shape
        that comes. What checkpointing computes again does not count. `on_host` is the batch before it went to the device."""
        self.tokens += task.tokens(on_host)
        shape = tuple(tuple(tensor.shape) for tensor in batch.values())
        if shape not in self._flops:
            began = time.monotonic()
            self._flops[shape] = task.step_flops(batch)
            self.started += time.monotonic() - began
        self.work += self._flops[shape]

    def lap(self) -> dict[str, float]:
        """Of the step that ends now: seconds, tokens_per_second of all workers, mfu, data_wait (a share of the seconds)."""
        seconds = max(1e-9, time.monotonic() - self.started)
        rates = {
            "seconds": seconds,
            "tokens_per_second": self.tokens * self.workers / seconds,
            "mfu": self.work / seconds / self.peak,
            "data_wait": min(1.0, self.waited / seconds),
        }
        self.restart()
        return rates


def peak_flops(device: str) -> float:
    """FLOP/s of a GPU's data sheet, an A100's when it is not known; of a CPU what a matrix product reaches now."""
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
        return next((flops for part, flops in _KNOWN.items() if part in name), _KNOWN["A100"])
    a = torch.randn(768, 768)
    best = float("inf")
    for _ in range(5):
        began = time.monotonic()
        a @ a
        best = min(best, time.monotonic() - began)
    return 2 * 768**3 / best
