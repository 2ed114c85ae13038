"""One setting, measured: a warm-up, then each whole batch of ours between some steps of each baseline before it and after
it, so that a machine that slows down slows both sides of a pair."""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from statistics import median

import torch

from adgen.errors import SettingsError
from adgen.generation.benchmark.baselines import BASELINES, Baseline, Batch
from adgen.generation.benchmark.machine import Machine, measure_gflops, measure_machine, peak_bytes, reset_peak
from adgen.generation.benchmark.requests import bench_prompter, bench_requests
from adgen.generation.benchmark.roofline import Workload
from adgen.generation.benchmark.settings import EngineBenchmarkSettings
from adgen.generation.benchmark.sizes import random_model, sharing_copy, size
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.timings import PhaseTimings
from adgen.model.device import pick_device

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    size: str
    batch: int
    prompt_tokens: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)


@dataclass
class Measurement:
    """What was seen; `report` makes numbers of it. Lists have an entry a pair."""

    setting: Setting
    workload: Workload
    engine: EngineSettings
    device: torch.device
    num_slots: int
    """What the engine ran with: the batch, or less where memory did not suffice."""
    warm_up_seconds: float
    peak_bytes: int = 0
    ours: list[PhaseTimings] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)
    step_seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of each baseline, for a step of the whole batch: the mean of just before ours and just after it."""
    baselines: dict[str, Baseline] = field(default_factory=dict)
    gflops: dict[str, float] = field(default_factory=dict)
    """1e9 operations a second of a matrix product, by dtype."""


def settings_of(settings: EngineBenchmarkSettings) -> Iterator[Setting]:
    """Every combination that is asked for."""
    sizes, batches = settings.size or ("bench-30m",), settings.batch or (4,)
    prompts = settings.prompt_tokens or (400,)
    dtypes = settings.dtype or ("bfloat16" if available_device(settings).type == "cuda" else "float32",)
    yield from (Setting(*values) for values in product(sizes, batches, prompts, dtypes))


def measure(setting: Setting, settings: EngineBenchmarkSettings, say: Callable[[str], None] = log.info) -> Measurement:
    """Measure one setting. SettingsError: it cannot be; RunError: it does not fit the memory."""
    device = available_device(settings)
    config = size(setting.size, settings.layers)
    sampling = SamplingSettings(max_title_tokens=settings.title_tokens)
    prompter = bench_prompter(config)
    requests = bench_requests(config, prompter, setting.batch, setting.prompt_tokens)
    say("weights")
    model = random_model(config, device, setting.torch_dtype)
    slots = settings.engine.model_copy(update={"num_slots": setting.batch, "dtype": setting.dtype})
    # Baselines need the weights as they are; without any, the engine may have the only copy.
    engine = Engine(sharing_copy(model) if settings.against else model, prompter, slots, sampling, device=device)
    say("warm-up")
    started = time.perf_counter()
    engine.generate(requests)
    found = Measurement(
        setting=setting,
        workload=Workload(
            config=config,
            element_bytes=setting.torch_dtype.itemsize,
            batch=engine.num_slots,
            prompt_tokens=setting.prompt_tokens,
            negative_tokens=len(prompter.negative_prompt()),
            title_tokens=settings.title_tokens,
            history_items=len(requests[0].history_titles),
            weight_bytes=None if slots.weights == "same" else 1,
            cache_bytes=slots.torch_cache_dtype(device).itemsize,
        ),
        engine=slots,
        device=device,
        num_slots=engine.num_slots,
        warm_up_seconds=time.perf_counter() - started,
    )
    baselines = {name: BASELINES[name](Batch(model, prompter, sampling, requests, settings)) for name in settings.against}
    found.baselines, found.step_seconds = baselines, {name: [] for name in baselines}
    found.gflops = {str(dtype).removeprefix("torch."): measure_gflops(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    before = _baseline_steps(found, lambda what: say(f"before: {what}"))
    for pair in range(settings.pairs):
        before = _measure_pair(
            found, engine, requests, before, lambda what, p=pair: say(f"pair {p + 1} of {settings.pairs}: {what}")
        )
    return found


def _measure_pair(
    found: Measurement, engine: Engine, requests: list, before: dict[str, float], say: Callable[[str], None]
) -> dict[str, float]:
    """The machine, a whole batch of ours, some steps of each baseline; the latter are the next pair's `before`."""
    found.machines.append(measure_machine(found.device, found.setting.torch_dtype))
    earlier = copy.copy(engine.timings)
    reset_peak(found.device)
    engine.generate(requests)
    found.peak_bytes = max(found.peak_bytes, peak_bytes(found.device))
    found.ours.append(ours := engine.timings - earlier)
    say(f"engine {1000 * ours.picture / ours.picture_steps:.2f} ms a step, {ours.seconds:.1f} s a batch of {engine.num_slots}")
    after = _baseline_steps(found, say)
    for name, seconds in after.items():
        found.step_seconds[name].append((before[name] + seconds) / 2)
    return after


def _baseline_steps(found: Measurement, say: Callable[[str], None]) -> dict[str, float]:
    """Seconds of a step of each baseline. One that does not fit the memory that the engine leaves runs as a smaller batch, and
    its step counts as often as the whole batch needs it."""
    seconds = {}
    for name, baseline in found.baselines.items():
        seconds[name] = baseline.step_seconds() * found.setting.batch / baseline.num_rows
        say(f"{name} {1000 * seconds[name]:.2f} ms a step")
    return seconds


def available_device(settings: EngineBenchmarkSettings) -> torch.device:
    """Where to run; SettingsError: a GPU that is not there."""
    device = torch.device(pick_device(settings.device))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError("device cuda: torch finds no GPU here")
    return device


def typical_machine(machines: list[Machine]) -> Machine:
    """The median of each speed over the pairs, as times are medians too: load that was there for both must not show."""
    names = Machine.__dataclass_fields__
    return Machine(**{name: median(getattr(machine, name) for machine in machines) for name in names})
