"""`adgen inspect`: what a model directory holds, and what it takes to run. Reads no weights."""

import dataclasses
from typing import Any

import torch

from adgen.generation.engine_settings import EngineSettings
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.sampling_settings import SamplingChoice
from adgen.generation.slots_per_device import bytes_per_slot, row_capacity, weight_bytes
from adgen.model.checkpoint import on_meta
from adgen.model.modules import module_of
from adgen.model.weight_files import TensorFile, weight_files

GB = 1e9
GPUS_GB = (24, 48, 80, 141)


@dataclasses.dataclass
class Inspected:
    """What is known of a model directory. GB are 1e9 bytes, of weights and caches on a GPU (bf16)."""

    model: str
    name: str
    digest: str | None
    parameters: int
    file_dtypes: str
    prompt_tokens: int
    """Of the prompt that the slots are computed with."""
    history: str
    history_items: int
    history_order: str
    sampling: dict[str, Any]
    weights_gb: float
    slot_mb: float
    slots: dict[str, int]
    """GPU of so many GB -> creatives at once."""
    tokenizer: dict[str, int]
    """Each token that prompts need, with its id."""
    modules: dict[str, str]
    """Each module: its parameters, and whether it is trained."""
    sources: list[str]
    stages: list[str]


def inspect_model(
    directory: ModelDirectory, prompt_tokens: int | None = None, gpu_gb: tuple[float, ...] = (), with_digest: bool = True
) -> Inspected:
    """Everything but the weights is read; for the digest, their bytes. ModelError: what is missing or wrong."""
    directory.check()
    config, prompter, facts = directory.config, directory.prompter, directory.facts
    sampling = SamplingChoice().of(directory.sampling)
    longest = row_capacity(config, prompter, sampling)
    pictured = sampling.max_title_tokens + config.image.tokens_per_picture
    capacity = min(prompt_tokens + pictured, config.decoder.max_positions) if prompt_tokens else longest
    counts = _parameters(directory)
    bf16, engine = torch.bfloat16, EngineSettings()
    names = prompter.template.tokens.model_dump()
    return Inspected(
        model=str(directory),
        name=config.name,
        digest=directory.digest if with_digest else None,
        parameters=sum(counts.values()),
        file_dtypes=", ".join(_dtypes(directory)),
        prompt_tokens=prompt_tokens or longest - pictured,
        history=f"{config.image.tokens_per_history_picture} image and {config.preference.tokens_per_title} title tokens an item",
        history_items=config.history_items,
        history_order=config.history_order,
        sampling=sampling.model_dump(),
        weights_gb=round(weight_bytes(config, bf16) / GB, 3),
        slot_mb=round(bytes_per_slot(config, capacity, bf16, bf16) / 1e6, 1),
        slots={f"{size:g} GB": engine.slots_in(int(size * GB), config, capacity) for size in gpu_gb or GPUS_GB},
        tokenizer={f"{field} {spelling}": prompter.token_id(spelling) for field, spelling in names.items()},
        modules={module: f"{count:,} {facts.modules[module]}" for module, count in counts.items()},
        sources=[f"{each.file} {each.sha256[:12]} {each.bytes:,} bytes: {', '.join(each.modules)}" for each in facts.sources],
        stages=[f"{each.stage}: {', '.join(each.modules)}" for each in facts.stages],
    )


def _parameters(directory: ModelDirectory) -> dict[str, int]:
    counts: dict[str, int] = {}
    for own, tensor in on_meta(directory.config).state_dict().items():
        counts[module_of(own)] = counts.get(module_of(own), 0) + tensor.numel()
    return dict(sorted(counts.items()))


def _dtypes(directory: ModelDirectory) -> list[str]:
    """Of the tensors in the weight files."""
    return sorted({dtype for path in weight_files(directory.path) for dtype in TensorFile(path).dtypes})
