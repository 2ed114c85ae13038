"""What a stage is to the trainer: a module whose forward gives the loss of a batch, and what has to happen around it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adgen.generation.model_directory import ModelDirectory
from adgen.model.modules import ModelFacts, module_of
from adgen.model.names import current_name

Batch = dict[str, Tensor]
Collator = Callable[[Sequence[dict], Sequence[int] | None], Batch]
"""Examples, and the epoch of each (None: for evaluation, nothing is drawn by chance) -> a batch."""
Metrics = dict[str, Tensor]
"""Each a pair (sum, count), fp32: workers and micro-batches add them up; the value is sum / count."""


@dataclass(frozen=True)
class Start:
    """The model directory that a stage starts from."""

    directory: ModelDirectory
    facts: ModelFacts
    """Of the directory, and of the DINOv2 that was put under it."""
    stage: str


class Task(nn.Module):
    """Base of the stages. A subclass knows its model, its losses and its files; nothing of workers or storage."""

    largest_zero_stage = 3
    """Tasks that write to their own parameters need them whole."""
    self_updated: tuple[str, ...] = ()
    """Prefixes of tensors that are updated outside the optimizer: by `after_step`, or buffers."""
    on_host: tuple[str, ...] = ()
    """Tensors of a batch that stay on the host: small ones that Python reads, which would otherwise wait for the device."""
    start: Start | None = None
    """Where the weights came from; None: new ones, of which nothing is passed on."""
    earlier_names: tuple[tuple[str, str], ...] = ()
    """Prefixes of tensors' names in checkpoints of earlier versions, each with the present one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(rename_tensors)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss, a mean over the batch's samples of something that depends on each alone, and what to report."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """What follows optimizer step `step` on every worker: moving averages."""

    def state_metrics(self) -> dict[str, float]:
        """Numbers on what the task has learned so far, from its state alone."""
        return {}

    def step_flops(self, batch: Batch) -> float:
        """FLOPs of a forward pass and of the gradients that it needs, counted by running both: for stages without a formula."""
        training = self.training
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # Fused attention is not counted on CPUs; plain matrix products are. autograd.grad leaves every .grad as it is.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            torch.autograd.grad(self.eval()(batch)[0], trainable, allow_unused=True)
        self.train(training)
        return float(counter.get_total_flops())

    def tokens(self, batch: Batch) -> int:
        """How many tokens (positions, latents, patches) a batch has, for the rate."""
        raise NotImplementedError

    def samples(self, rows: Sequence[dict], collator: Collator, seed: int) -> tuple[list[Image.Image], list[str]]:
        """Pictures and a line of text for each of some held-out examples."""
        raise NotImplementedError

    def export(self, directory: Path) -> None:
        """Write what was learned as a model directory."""
        raise NotImplementedError

    def pass_on(self, directory: Path, trained: Collection[str]) -> None:
        """Write what the start says of itself beside its weights, and that these modules are trained now."""
        if self.start is not None:
            self.start.directory.pass_on(directory, self.start.facts.after(self.start.stage, trained))


def trained_modules(model: nn.Module) -> set[str]:
    """The modules of a model that have a trainable parameter."""
    return {module_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


def rename_tensors(task: Task, tensors: dict[str, Tensor], *_: Any) -> None:
    """torch's hook before `load_state_dict`: names of earlier versions become the present ones, in place."""
    for name in list(tensors):
        now = current_name(name)
        for before, after in task.earlier_names:
            now = after + now.removeprefix(before) if now.startswith(before) else now
        tensors[now] = tensors.pop(name)


def on_device(batch: Batch, task: Task, device: torch.device | str) -> Batch:
    """The batch where the task wants it."""
    return {name: each if name in task.on_host else each.to(device, non_blocking=True) for name, each in batch.items()}


def metric(values: Tensor, count: int | Tensor | None = None) -> Tensor:
    """(sum, count) of per-sample values."""
    total = values.detach().float().sum()
    number = torch.as_tensor(values.numel() if count is None else count, device=total.device, dtype=torch.float32)
    return torch.stack((total, number))
