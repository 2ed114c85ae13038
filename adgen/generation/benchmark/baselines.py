"""The other loops as something to time: seconds of one image step, at the cache lengths of a whole picture."""

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adgen.generation.benchmark.clock import StepClock
from adgen.generation.benchmark.published import Products, PublishedLoop
from adgen.generation.benchmark.settings import EngineBenchmarkSettings
from adgen.generation.generate import Request
from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.timings import PhaseTimings, now
from adgen.model.uniadgen import UniAdGen

NUM_LENGTHS = 3  # cache lengths at which a growing cache is measured: the middles of a picture's thirds


@dataclass(frozen=True)
class Batch:
    """What every side makes in a measurement."""

    model: UniAdGen
    prompter: Prompter
    sampling: SamplingSettings
    requests: Sequence[Request]
    settings: EngineBenchmarkSettings


class Baseline(ABC):
    """A loop to compare with. Where its caches do not fit the memory that the engine leaves, its batch is halved: compare
    seconds a step and creative then, which is what its user would get."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.num_rows = len(batch.requests)
        """Creatives a step."""

    def step_seconds(self) -> float:
        """Of one step of num_rows creatives."""
        while True:
            try:
                return self._step_seconds(self.batch.requests[: self.num_rows])
            except torch.OutOfMemoryError:
                if self.num_rows == 1:
                    raise
            # Outside the handler, whose traceback keeps the failed step's tensors alive.
            self.num_rows //= 2
            torch.cuda.empty_cache()

    @abstractmethod
    def _step_seconds(self, requests: Sequence[Request]) -> float: ...


class TransformersBaseline(Baseline):
    """`hf`: a static cache of the whole length, so each of its steps costs the same and a few of them tell all."""

    def __init__(self, batch: Batch):
        super().__init__(batch)
        self.prefill_seconds: list[float] = []
        """Of each measurement: its prefill, both branches, and what it prepares."""
        from adgen.generation.benchmark.transformers_janus import TransformersJanus  # transformers takes seconds

        self._janus = TransformersJanus(batch.model, batch.prompter, batch.sampling)

    def _step_seconds(self, requests: Sequence[Request]) -> float:
        """The median of some steps' seconds."""
        prompts = [self.batch.prompter.picture_prompt(request.facts, "").ids for request in requests]
        clock = StepClock(self.batch.model.device)
        clock.strike()
        self._janus.paint(prompts, self.batch.settings.baseline_steps + 1, clock)
        prefill, *steps = clock.seconds
        self.prefill_seconds.append(prefill)
        return statistics.median(steps)


class PublishedBaseline(Baseline):
    """`published`: a cache that grows, so steps are measured at several lengths; what is in the caches costs nothing."""

    def __init__(self, batch: Batch):
        super().__init__(batch)
        self.foreground_seconds: list[float] = []
        """Of each measurement: the foreground path, as every step computes it."""
        self.before_picture = PhaseTimings()
        """Title and both prefills of num_rows creatives, measured once."""
        self._loop = PublishedLoop(batch.model, batch.prompter, batch.sampling)

    @torch.inference_mode()
    def _step_seconds(self, requests: Sequence[Request]) -> float:
        """The mean over the cache lengths of the median of some steps' seconds."""
        if not self.foreground_seconds:
            self.before_picture = PhaseTimings()
            self._loop.before_picture(requests, self.before_picture)
        products = self._loop.products(requests)
        num_tokens = self.batch.model.config.image.tokens_per_picture
        middles = [num_tokens * (2 * third + 1) // (2 * NUM_LENGTHS) for third in range(NUM_LENGTHS)]
        seconds = statistics.mean(self._steps_from(first, requests, products) for first in middles)
        self.foreground_seconds.append(self._foreground(products))
        return seconds

    def _steps_from(self, first: int, requests: Sequence[Request], products: Products | None) -> float:
        """Seconds a step, from image token `first` on."""
        model, settings, rows = self.batch.model, self.batch.settings, 2 * len(requests)
        prompter = self.batch.prompter
        prompts = [prompter.negative_prompt(), *(prompter.picture_prompt(r.facts, "") for r in requests)]
        cache = self._loop.cache_of(rows, max(map(len, prompts)) + first)
        hidden = torch.randn(rows, model.config.decoder.hidden_size, device=model.device, dtype=model.dtype)
        last = min(first + settings.baseline_steps + 1, model.config.image.tokens_per_picture - 1)
        clock, started = StepClock(model.device), time.perf_counter()
        for _ in self._loop.paint(cache, hidden, products, range(first, last)):
            clock.strike()  # a step is: read the token, foreground, draw the next
            if clock.num_steps and time.perf_counter() - started > settings.baseline_seconds:
                break
        return statistics.median(clock.seconds)

    def _foreground(self, products: Products | None) -> float:
        model = self.batch.model
        started = now(model.device)
        if products is not None:
            tokens = model.foreground.condition_tokens(products.pixels, products.hidden)
            for layer in model.foreground.condition_layers:
                for _branch in range(2):
                    layer(tokens)
        return now(model.device) - started


BASELINES = {"hf": TransformersBaseline, "published": PublishedBaseline}
