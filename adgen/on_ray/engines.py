"""The engine that a worker process builds from the job's settings."""

import torch

from adgen.generation.engine import Engine
from adgen.generation.prompt import Prompter
from adgen.model.checkpoint import load
from adgen.on_ray.settings import RefreshSettings
from adgen.on_ray.stages import pick_device


def build_engine(settings: RefreshSettings) -> Engine:
    """The settings' engine, of one rank, on this process's device."""
    device = pick_device(settings.device)
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    model = load(settings.model, device, settings.engine.torch_dtype(device))
    prompter = Prompter.load(settings.model, model.config)
    return Engine(model, prompter, settings.engine, settings.sampling.of(settings.model), device=device)
