"""How fast a run's engines were, and the least time that their machines could have taken (the roofline)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.rows import Row

if TYPE_CHECKING:
    import torch

    from adgen.generation.benchmark.machine import Rates
    from adgen.generation.engine import Engine
    from adgen.generation.timings import PhaseTimings


ENOUGH_SECONDS = 5.0
"""An engine that has worked for less is not compared with its machine: measuring that takes a second or more."""


def shard_speed(engine: "Engine", spent: "PhaseTimings", num_pictures: int) -> Row:
    """{"engine_seconds", "roofline_seconds"} of a shard: what its pictures took, and what they must take on this machine (None: not
    compared). The pictures that were asked for count; rows that only fill the slots are time lost."""
    if not spent.rows or engine.timings.seconds < ENOUGH_SECONDS:
        return {"engine_seconds": spent.seconds, "roofline_seconds": None}
    from adgen.generation.benchmark.roofline import Workload, roofline

    model, settings = engine.model_config, engine.settings
    num_batches = spent.rows / engine.num_slots
    work = Workload(
        config=model,
        element_bytes=engine.dtype.itemsize,
        batch=engine.num_slots,
        prompt_tokens=round(spent.prompt_tokens / spent.rows),
        negative_tokens=engine.num_negative_tokens,
        title_tokens=round(spent.title_steps / num_batches),
        weight_bytes=None if settings.weights == "same" else 1,
        cache_bytes=settings.torch_cache_dtype(engine.device).itemsize,
    )
    least = roofline(work, machine_rates(engine.device.type, engine.dtype)).seconds / engine.num_slots / settings.tensor_parallel
    return {"engine_seconds": spent.seconds, "roofline_seconds": least * num_pictures}


@dataclass
class EngineSpan:
    """When an engine worked, in seconds since 1970 by its own machine's clock."""

    first: float
    """Start of its first shard: loading comes before."""
    last: float
    """End of its last shard."""
    busy: float = 0.0
    """Seconds within."""

    def add(self, started: float, ended: float) -> None:
        """A shard more."""
        self.first, self.last = min(self.first, started), max(self.last, ended)
        self.busy += ended - started


def busy_share(spans: Iterable[EngineSpan]) -> float | None:
    """The share of engines' time in which they worked, 0..1; None where none did.

    An engine that began after another had ended (its process died, or the next wave started it) stands in its place: the time
    between them is idle time, too.
    """
    ends: list[float] = []
    busy = there = 0.0
    for span in sorted(spans, key=lambda span: span.first):
        place = next((place for place, end in enumerate(ends) if end <= span.first), None)
        since = span.first if place is None else ends.pop(place)
        ends.append(span.last)
        busy, there = busy + span.busy, there + span.last - since
    return min(1.0, busy / there) if there else None


class EngineCost(NamedTuple):
    """What an engine's time comes to. The time of rejected creatives is in what one that is ok costs; None where none is."""

    cost: float
    """In the price's currency."""
    device_seconds_per_1000: float | None
    """Of all devices of an engine, for 1,000 creatives that are ok."""
    cost_per_1000: float | None
    """Of 1,000 creatives that are ok."""


def engine_cost(engine_seconds: float, num_ok: float, settings: RefreshSettings) -> EngineCost:
    """Of `engine_seconds` of one engine in which `num_ok` creatives were made that are ok. The price is that of an engine's
    machine, with all devices that the engine spans."""
    cost = engine_seconds / 3600 * settings.forecast.price_an_hour
    if not num_ok:
        return EngineCost(cost, None, None)
    return EngineCost(cost, 1000 * engine_seconds * settings.engine.tensor_parallel / num_ok, 1000 * cost / num_ok)


@dataclass
class RunSpeed:
    """Of all shards that this driver saw done."""

    settings: RefreshSettings
    engine_seconds: float = 0.0
    compared_seconds: float = 0.0
    """Of engine_seconds, those of shards with roofline_seconds."""
    roofline_seconds: float = 0.0
    pictures: int = 0
    num_ok: int = 0
    spans: dict[str, EngineSpan] = field(default_factory=dict)
    """Of engines, by name."""
    kernels_off: set[str] = field(default_factory=set)
    """What engines switched off on their devices (adgen/generation/device_check.py)."""

    def count(self, done: Row) -> None:
        """Take a shard's counts."""
        self.engine_seconds += done["engine_seconds"]
        if done.get("engine") is not None:
            started, ended = done["engine_started"], done["engine_ended"]
            self.spans.setdefault(done["engine"], EngineSpan(started, ended)).add(started, ended)
        if done["roofline_seconds"] is not None:
            self.compared_seconds += done["engine_seconds"]
            self.roofline_seconds += done["roofline_seconds"]
        self.pictures += done["engine_calls"]
        self.num_ok += done["made_ok"]
        self.kernels_off |= set(filter(None, done.get("kernels_off", "").split(",")))

    def report(self) -> Row:
        """engine_busy and share_of_roofline (0..1), device_seconds_per_1000 creatives that are ok, their cost_per_1000 in the
        price's currency; null where none was generated, engines worked for seconds only, or no price is known. share_of_floor is
        share_of_roofline's name until 0.3.0."""
        if not self.pictures or not self.engine_seconds:
            return dict.fromkeys(("engine_busy", "share_of_roofline", "share_of_floor", "device_seconds_per_1000", "cost_per_1000"))
        spent = engine_cost(self.engine_seconds, self.num_ok, self.settings)
        share = round(self.roofline_seconds / self.compared_seconds, 4) if self.compared_seconds else None
        busy = busy_share(self.spans.values())
        return {
            "engine_busy": None if busy is None else round(busy, 4),
            "share_of_roofline": share,
            "share_of_floor": share,
            "device_seconds_per_1000": round(spent.device_seconds_per_1000, 1) if self.num_ok else None,
            "cost_per_1000": round(spent.cost_per_1000, 4) if spent.cost and self.num_ok else None,
        }


@lru_cache
def machine_rates(device: str, dtype: "torch.dtype") -> "Rates":
    """Those of this process's machine, measured once."""
    import torch

    from adgen.generation.benchmark.machine import measure_rates

    return measure_rates(torch.device(device), dtype)
