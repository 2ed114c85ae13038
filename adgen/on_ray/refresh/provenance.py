"""What a creative's bytes may depend on apart from its inputs, as the lineage keeps it: where it was made, and its tokens."""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from adgen.records import digest

if TYPE_CHECKING:
    from adgen.generation.generate import Result
    from adgen.on_ray.refresh.settings import RefreshSettings

PROVENANCE = ("num_slots", "num_threads", "device", "versions", "tokens", "kernels_off")
"""Columns of a lineage row that the engine's worker fills."""

_LIBRARIES = ("torch", "transformers", "deepspeed", "triton", "torchao")


def provenance(result: "Result", settings: "RefreshSettings") -> dict[str, Any]:
    """The columns of a row that an engine of this process has just generated."""
    import torch

    from adgen.model.device import pick_device

    return {
        "num_slots": result.num_slots,
        "num_threads": torch.get_num_threads(),
        "device": device_text(pick_device(settings.device), settings.engine.tensor_parallel),
        "versions": versions_text(),
        "tokens": tokens_digest(result),
        "kernels_off": result.kernels_off,
    }


def tokens_digest(result: "Result") -> str:
    """A hash of what the model drew: its title, and the image tokens."""
    return digest("tokens", result.title, int(result.title_closed), *result.codes.tolist())


@lru_cache
def device_text(device: str, ranks: int = 1) -> str:
    """`cpu` or `cuda` and what its maker calls it; how many of them where ranks share a model."""
    import torch

    from adgen.generation.benchmark.machine import device_name

    return (f"{ranks} x " if ranks > 1 else "") + f"{device} {device_name(torch.device(device))}"


@lru_cache
def versions_text() -> str:
    """The engine's version and those of the libraries that compute, as `engine/1 torch/2.11.0`."""
    from adgen.generation.engine_settings import ENGINE_VERSION
    from adgen.generation.kernels import cpu

    found = {"engine": ENGINE_VERSION}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    found["kernels"] = cpu.library_name()
    return " ".join(f"{name}/{number}" for name, number in found.items())


def version_in(text: str | None, name: str) -> str | None:
    """One of the versions that `versions_text` wrote."""
    return dict(part.split("/", 1) for part in (text or "").split()).get(name)
