"""The step over many workers: DeepSpeed's ZeRO shards optimizer, gradients and weights. Imports deepspeed when called.

The optimizer is torch's AdamW: DeepSpeed's own would compile an operator for a minute on each new machine. The learning
rate is set by the caller, so DeepSpeed keeps no schedule.
"""

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from adgen.errors import ModelError, SettingsError
from adgen.training.settings import OptimizerSettings
from adgen.training.step import load_task
from adgen.training.task import Batch, Metrics, Task
from adgen.training.trainable import adamw

TAG, UNIVERSAL = "deepspeed", "universal"
_OWN = "moved.pt"


class DeepSpeedStep:
    """As `TorchStep`; torch.distributed must be initialised, and each worker calls every method."""

    kind = "deepspeed"

    def __init__(
        self, task: Task, settings: OptimizerSettings, config: dict[str, Any], device: str = "cpu", universal: bool = False
    ):
        """config: DeepSpeed's, from `deepspeed_config`. universal: the checkpoint to load is of another number of workers."""
        deepspeed = _import_quietly()
        self.zero_stage = config["zero_optimization"]["stage"]
        self.task = task.to(device)
        self.device = torch.device(device)
        self.universal = universal
        if universal:
            config = config | {"checkpoint": {"load_universal": True}}
        with contextlib.redirect_stdout(sys.stderr):
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=self.task, optimizer=adamw(task, settings), config=config
            )

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of one micro-batch."""
        return self.engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch; DeepSpeed divides by the accumulation."""
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the micro-batch

    def apply(self, learning_rate: float) -> float:
        """Move the weights; the norm of all gradients before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def save(self, folder: Path) -> None:
        """Write this worker's shards into `folder`."""
        with contextlib.redirect_stdout(sys.stderr):
            self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=True)
        if self.zero_stage < 3 and self.task.moves_itself and dist.get_rank() == 0:
            torch.save(self._own_tensors(), folder / _OWN)

    def load(self, folder: Path) -> None:
        """Take over a checkpoint. ModelError when there is none, or it does not fit."""
        tag = UNIVERSAL if self.universal else TAG
        try:
            with contextlib.redirect_stdout(sys.stderr):
                path, _ = self.engine.load_checkpoint(str(folder), tag=tag)
        except (RuntimeError, KeyError, AssertionError, FileNotFoundError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{folder}: the checkpoint does not fit this model, stage or DeepSpeed setting: {reason}") from None
        if path is None:
            raise ModelError(f"{folder}: no DeepSpeed checkpoint with tag {tag}")
        if (folder / _OWN).exists():
            own = torch.load(folder / _OWN, map_location=self.device, weights_only=True)
            load_task(self.task, self.task.state_dict() | own, str(folder))

    def _own_tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.task.state_dict().items() if name.startswith(self.task.moves_itself)}

    @contextlib.contextmanager
    def whole_task(self, make: Callable[[], Task]) -> Iterator[Task | None]:
        """The task with all its weights, to use outside of training: on the first worker with ZeRO-3, None on others.

        ZeRO-3's hooks gather for every worker at once, which one worker alone must not set off: it gets a twin without
        hooks from `make`.
        """
        if self.zero_stage < 3:
            yield self.task
            return
        deepspeed = _import_quietly()
        twin = None
        with deepspeed.zero.GatheredParameters(list(self.task.parameters())):
            if dist.get_rank() == 0:
                twin = make().to(self.device)
                twin.load_state_dict(self.task.state_dict())
        yield twin.eval() if twin is not None else None


def deepspeed_config(
    path: Path | None, zero_stage: int | None, micro_batch: int, accumulation: int, clip: float, bf16: bool
) -> dict[str, Any]:
    """The file's settings with the trainer's over them. SettingsError when the file is none, or brings an optimizer."""
    base: dict[str, Any] = {}
    if path is not None:
        try:
            base = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingsError(f"{path}: not a DeepSpeed JSON file: {error}") from None
        for name in ("optimizer", "scheduler"):
            if name in base:
                raise SettingsError(f"{path}: {name}: torch's AdamW and our schedule are used; set optimizer.* instead")
    zero = dict(base.get("zero_optimization", {}))
    zero["stage"] = zero.get("stage", 1) if zero_stage is None else zero_stage
    return base | {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }


def make_universal(folder: Path, zero_stage: int) -> None:
    """Turn a checkpoint into one that any number of workers can load, beside it. ModelError with what the tool said."""
    command = [
        sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal",
        "--input_folder", str(folder / TAG), "--output_folder", str(folder / UNIVERSAL),
        *(["--inject_missing_state"] if zero_stage < 3 else []),
    ]  # fmt: skip
    if not (folder / TAG).is_dir():
        raise ModelError(f"{folder}: cannot be made universal: no {TAG} folder in it")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (folder / UNIVERSAL).is_dir():
        raise ModelError(f"{folder}: cannot be made universal: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")


def _import_quietly():
    """deepspeed, its loggers on stderr and at warnings. Its shared-memory all-reduce is off: it crashes where LOCAL_SIZE
    is not set, and hangs when a peer dies."""
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
