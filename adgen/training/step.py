"""One optimizer step, in plain torch for one worker. `deepspeed_step.DeepSpeedStep` does the same over many.

for batch in micro_batches:            # as many as are accumulated
    loss, metrics = step.forward(batch)
    step.backward(loss)
norm = step.apply(learning_rate)
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adgen.errors import ModelError, RunError
from adgen.training.optimizers import make_optimizer
from adgen.training.settings import OptimizerSettings
from adgen.training.task import Batch, Metrics, Task, rename_tensors

STATE_FILE = "state.pt"


class TorchStep:
    """A task, its optimizer and what was accumulated. Weights stay in fp32; bf16 is autocast's."""

    kind = "torch"

    def __init__(self, task: Task, settings: OptimizerSettings, accumulation: int, device: str = "cpu", bf16: bool = False):
        self.task = task.to(device)
        self.optimizer = make_optimizer(task, settings)
        self.clip, self.accumulation = settings.clip, accumulation
        self.device = torch.device(device)
        self._autocast = torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of one micro-batch."""
        with self._autocast:
            return self.task(batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch."""
        (loss / self.accumulation).backward()

    def apply(self, learning_rate: float) -> float:
        """Update the weights; returns the norm of all gradients before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        trainable = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trainable, self.clip)
        if not torch.isfinite(norm):
            raise RunError(nonfinite_gradients(float(norm)))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state into `folder`."""
        torch.save({"task": self.task.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote. ModelError names what does not fit."""
        state = torch.load(folder / STATE_FILE, map_location=self.device, weights_only=True)
        load_task(self.task, state["task"], str(folder))
        self.optimizer.load_state_dict(state["optimizer"])

    @contextlib.contextmanager
    def whole_task(self, make: Callable[[], Task], exact: bool = False) -> Iterator[Task | None]:
        """The task with all its weights, to use outside of training; here it always has them."""
        yield self.task


def load_task(task: Task, tensors: dict[str, Tensor], source: str) -> None:
    """`load_state_dict` whose error names the first tensor that does not fit, in one line."""
    own, tensors = task.state_dict(), dict(tensors)
    rename_tensors(task, tensors)
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors:
            where = "the checkpoint lacks" if name not in tensors else "the checkpoint alone has"
            raise ModelError(f"{source}: {where} {name}: it was made by another stage or for another model")
        if own[name].shape != tensors[name].shape:
            raise ModelError(
                f"{source}: {name} has shape {list(tensors[name].shape)}, the model needs {list(own[name].shape)}: "
                "it was made for a model of other sizes"
            )
    task.load_state_dict(tensors)


def nonfinite_gradients(norm: float) -> str:
    """The message for non-finite gradients."""
    return (
        f"the norm of the gradients is {norm}: the weights are left as they were, and the last checkpoint is kept; "
        "lower optimizer.learning_rate and train again from there"
    )


def first_nonfinite(losses: Sequence[Tensor]) -> int | None:
    """The place of the first loss that is no finite number. One look at the device for all of them."""
    bad = (~torch.stack([loss.detach() for loss in losses]).isfinite()).tolist()
    return bad.index(True) if any(bad) else None
