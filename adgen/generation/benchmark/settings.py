"""What `jobs/benchmark.py engine`, `options` and `gpu` measure."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import UseAppendAction, arg

from adgen.config import Settings
from adgen.generation.engine_settings import EngineSettings

Dtype = Literal["float32", "bfloat16", "float16"]


class EngineBenchmarkSettings(Settings):
    """Every size with every batch, prompt length and dtype: give a flag again for a further value."""

    size: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """tiny, bench-30m (default), janus-pro-1b, janus-pro-7b; random weights."""
    batch: UseAppendAction[tuple[int, ...]] = ()
    """Creatives made at once: the engine's slots. Default 4."""
    prompt_tokens: UseAppendAction[tuple[int, ...]] = ()
    """Tokens before the first image token. Default 400."""
    dtype: UseAppendAction[tuple[Dtype, ...]] = ()
    """Of weights and caches, of all sides alike. Default float32 on a CPU, bfloat16 on a GPU."""
    against: UseAppendAction[tuple[Literal["hf", "published"], ...]] = ()
    """Baselines, measured in the same run: `hf` is transformers' Janus, `published` the loop of the published code."""
    pairs: int = Field(default=5, ge=1)
    """Interleaved measurements: a whole batch of ours between some steps of each baseline. Medians are reported."""
    baseline_steps: int = Field(default=32, ge=1)
    """Steps of a baseline at a time (and cache length), at most."""
    baseline_seconds: float = Field(default=3.0, gt=0)
    """A slow baseline stops after the step that crosses this (a cache length); it always makes one."""
    title_tokens: int = Field(default=16, ge=1)
    """Steps of the title loop: random weights never close a title."""
    layers: int | None = Field(default=None, ge=1)
    """Decoder layers instead of the size's own: to try a big model's path on a small machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    """Of torch on the CPU; default all cores."""
    engine: EngineSettings = EngineSettings()
    """Its num_slots and dtype are set by batch and dtype."""


class RooflineSettings(Settings):
    """A step of a batch, on paper."""

    size: str = "janus-pro-7b"
    """Of the model, as for `engine`."""
    batch: int = Field(default=64, ge=1)
    """Creatives made at once."""
    prompt_tokens: int = Field(default=1200, ge=1)
    """Tokens before the first image token, of a conditional row."""
    dtype: Dtype = "bfloat16"
    """Of weights and caches."""
    cache_dtype: Literal["same", "float8_e4m3fn"] = "same"
    """Of keys and values."""


class OptionsBenchmarkSettings(Settings):
    """The plain engine beside each lossy option."""

    size: str = "bench-30m"
    """Of the model, as for `engine`."""
    batch: int = Field(default=4, ge=1)
    """Creatives made at once."""
    prompt_tokens: int = Field(default=400, ge=1)
    """Tokens before the first image token."""
    pairs: int = Field(default=3, ge=1)
    """Interleaved batches, plain and with the option."""
    device: Literal["cpu", "cuda"] = "cpu"


class GpuBenchmarkSettings(Settings):
    """All measurements of a GPU: give a flag of several values again for a further one."""

    minutes: float = Field(default=10, gt=0)
    """No measurement begins that does not fit what is left of them."""
    out: Path = Path("gpu.json")
    """The one JSON; the same command goes on with what it lacks."""
    size: UseAppendAction[tuple[str, ...]] = ()
    """The smaller one first. Default janus-pro-1b, janus-pro-7b."""
    batch: UseAppendAction[tuple[int, ...]] = ()
    """Creatives made at once. Default 16, 64."""
    prompt_tokens: UseAppendAction[tuple[int, ...]] = ()
    """Tokens before the first image token. Default 1200, 600."""
    only: UseAppendAction[tuple[str, ...]] = ()
    """Measurements whose name begins so."""
    device: Literal["cpu", "cuda"] = "cuda"
