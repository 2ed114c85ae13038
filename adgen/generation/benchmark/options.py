"""What each option of the engine costs and brings: its speed against the plain engine in the same run, and how far it moves the
distributions of image tokens.

The change is measured by teacher forcing: both engines read the same prompts and the same codes, and step by step the
guided distributions are compared. `moved` is their total variation distance, the share of draws that even the best coupling
makes differently; `argmax_kept` the share of steps whose likeliest code stays. Neither measures what a person sees.
"""

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adgen.generation.benchmark.requests import bench_prompter, bench_requests
from adgen.generation.benchmark.sizes import random_model, sharing_copy, size
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import Request
from adgen.generation.painting import Painter
from adgen.generation.sampling import guided, truncated
from adgen.generation.sampling_settings import SamplingSettings

OPTIONS: dict[str, tuple[dict, dict]] = {
    "float8 cache": ({"cache_dtype": "float8_e4m3fn"}, {}),
    "int8 weights": ({"weights": "int8"}, {}),
    "float8 weights": ({"weights": "float8_e4m3fn"}, {}),
    "top-k 256": ({}, {"picture_top_k": 256}),
    "top-p 0.95": ({}, {"picture_top_p": 0.95}),
    "bfloat16": ({"dtype": "bfloat16"}, {}),
}
"""Name -> changes of engine and sampling settings."""


@dataclass(frozen=True)
class OptionCost:
    """One option against the plain engine."""

    name: str
    speed_up: float
    """Seconds of a plain batch over seconds of one with the option, phases all together; median of interleaved pairs."""
    step_speed_up: float
    """The same of the picture alone."""
    moved: float
    """Mean total variation distance (0..1)."""
    argmax_kept: float


def measure_options(
    size_name: str, batch: int, prompt_tokens: int, pairs: int, device: torch.device, say: Callable[[str], None]
) -> list[OptionCost]:
    """Every option on one model with random weights, in turn."""
    config = size(size_name)
    base = EngineSettings(num_slots=batch)
    model = random_model(config, device, base.torch_dtype(device))
    prompter = bench_prompter(config)
    requests = bench_requests(config, prompter, batch, prompt_tokens)
    # A title of one token never closes, so both sides paint from the same prompt.
    sampling = SamplingSettings(max_title_tokens=1)

    def engine(changes: dict, draws: dict) -> Engine:
        settings, drawn = base.model_copy(update=changes), sampling.model_copy(update=draws)
        return Engine(sharing_copy(model).to(settings.torch_dtype(device)), prompter, settings, drawn, device=device)

    plain = engine({}, {})
    codes = torch.stack([result.codes for result in plain.generate(requests)])
    expected = forced_distributions(plain, requests, codes)
    costs = []
    for name, (changes, draws) in OPTIONS.items():
        say(name)
        optional = engine(changes, draws)
        optional.generate(requests)
        ratios = [_pair(plain, optional, requests) for _ in range(pairs)]
        difference = _difference(expected, forced_distributions(optional, requests, codes))
        whole, picture = (statistics.median(each) for each in zip(*ratios, strict=True))
        costs.append(OptionCost(name, whole, picture, *difference))
    return costs


def forced_distributions(engine: Engine, requests: list[Request], codes: Tensor) -> Tensor:
    """What the engine would draw each code from (B, N, V), had it drawn `codes` (B, N) so far."""
    runner = engine._ready_runner()
    usual = runner._painter
    runner._painter = forced = _ForcedPainter(engine._model, runner._layers, runner.slots, engine.sampling, codes)
    engine.generate(requests)
    runner._painter = usual
    return torch.stack(forced.seen, dim=1)


class _ForcedPainter(Painter):
    """Reads given codes instead of drawing, and keeps the distributions."""

    def __init__(self, model, layers, slots, sampling: SamplingSettings, codes: Tensor):
        super().__init__(model, layers, slots, sampling, capture=False)
        self._codes = codes.to(slots.codes.device)
        self.seen: list[Tensor] = []

    def _draw(self, hidden: Tensor) -> None:
        slots, sampling = self._slots, self._sampling
        logits = guided(*self._head(hidden).chunk(2), sampling.guidance)
        kept = truncated(logits, sampling.picture_temperature, sampling.picture_top_k, sampling.picture_top_p)
        self.seen.append((kept / sampling.picture_temperature).softmax(-1).cpu())
        slots.code.copy_(self._codes.gather(1, slots.steps[:, None])[:, 0])
        slots.codes.scatter_(1, slots.steps[:, None], slots.code[:, None])
        slots.steps += 1


def _pair(plain: Engine, optional: Engine, requests: list[Request]) -> tuple[float, float]:
    """A batch of each, one after the other: how many times as fast, as a whole and in the picture."""
    spent = []
    for engine in (plain, optional):
        before = copy.copy(engine.timings)
        engine.generate(requests)
        spent.append(engine.timings - before)
    return spent[0].seconds / spent[1].seconds, spent[0].picture / spent[1].picture


def _difference(expected: Tensor, found: Tensor) -> tuple[float, float]:
    moved = (expected - found).abs().sum(-1).mean() / 2
    return float(moved), float((expected.argmax(-1) == found.argmax(-1)).float().mean())
