"""What a worker is made of: its device, the stage's task, and the step that fits both."""

import os
from typing import Any

import ray.train.torch
import torch

from adgen.errors import RunError
from adgen.model.device import pick_device
from adgen.on_ray.training.resume import needs_universal, require_same_engine
from adgen.on_ray.training.settings import PretrainSettings
from adgen.on_ray.training.source import Source
from adgen.training.settings import LANGUAGE_STAGES
from adgen.training.stages import make_task
from adgen.training.step import TorchStep
from adgen.training.task import Task


def worker_device(settings: PretrainSettings, on_this_machine: int) -> str:
    """The worker's GPU, or the CPU with its share of threads: Ray would leave it one for each logical CPU."""
    if pick_device(settings.device) == "cuda":
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)  # NCCL and DeepSpeed take the current one
        return str(device)
    torch.set_num_threads(settings.workers.threads or max(1, (os.cpu_count() or 1) // on_this_machine))
    return "cpu"


def fresh_task(source: Source) -> Task:
    """The stage's task as it starts."""
    task = make_task(source.directory, source.settings, source.dinov2_here)
    model = getattr(task, "model", None)
    if model is not None:
        model.decoder.gradient_checkpointing = source.settings.workers.gradient_checkpointing
    return task


def make_step(
    task: Task, settings: PretrainSettings, found: dict[str, Any] | None, device: str, deepspeed: dict[str, Any] | None = None
) -> Any:
    """The engine's step. deepspeed: what the file workers.deepspeed holds.

    RunError when the checkpoint `found` is another engine's, or ZeRO shards what must be whole."""
    own, optimizer, share = settings.workers, settings.optimizer, settings.share
    require_same_engine(found, settings)
    bf16 = (device != "cpu" and settings.stage in LANGUAGE_STAGES) if own.bf16 is None else own.bf16
    if settings.engine == "torch":
        return TorchStep(task, optimizer, share.accumulation, device, bf16)
    from adgen.training.deepspeed_step import DeepSpeedStep, deepspeed_config

    config = deepspeed_config(deepspeed, own.zero_stage, share.micro_batch, share.accumulation, optimizer.clip, bf16)
    stage = config["zero_optimization"]["stage"]
    if stage > task.largest_zero_stage:
        raise RunError(f"stage {settings.stage} needs its weights whole: ZeRO {task.largest_zero_stage} at most, not {stage}")
    return DeepSpeedStep(task, optimizer, config, device, universal=needs_universal(found, settings))
