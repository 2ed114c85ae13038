"""How long each phase of generation took, on a clock that waits for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch

Phase = Literal["prefill", "title", "picture", "vq"]


@dataclass
class PhaseTimings:
    """Seconds of each phase over all batches so far, and the steps that the decode loops took.

    A step is one token of every row of a batch: batches that run 576 steps each count 576 each, whatever their size.
    """

    prefill: float = 0.0
    """Everything before a first token: history, foreground, and what prompts put into the caches."""
    title: float = 0.0
    picture: float = 0.0
    vq: float = 0.0
    """Codes to pixels."""
    title_steps: int = 0
    picture_steps: int = 0
    rows: int = 0
    """Rows of all batches, those included that only fill slots."""
    prompt_tokens: int = 0
    """Of all rows, before their first image token."""

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return self.prefill + self.title + self.picture + self.vq

    def __sub__(self, earlier: Self) -> Self:
        """What has been added since `earlier`."""
        return type(self)(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    @contextmanager
    def measure(self, phase: Phase, device: torch.device) -> Iterator[None]:
        """Add the block's seconds to a phase. Waits for a CUDA device at both ends, so keep blocks long: a phase, not a
        step."""
        started = now(device)
        yield
        setattr(self, phase, getattr(self, phase) + now(device) - started)


def now(device: torch.device) -> float:
    """Monotonic clock in seconds, read after the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
