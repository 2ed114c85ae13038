"""The step over many workers: DeepSpeed's ZeRO shards optimizer, gradients and weights. Imports deepspeed when called.

The optimizer is torch's AdamW: DeepSpeed's own would compile an operator for a minute on each new machine. The learning
rate is set by the caller, so DeepSpeed keeps no schedule.
"""

import contextlib
import json
import logging
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from adgen.errors import ModelError, RunError, SettingsError
from adgen.training.deepspeed_files import TAG, UNIVERSAL, data_only
from adgen.training.optimizers import adamw, trainable_parameters
from adgen.training.settings import OptimizerSettings
from adgen.training.step import load_task, nonfinite_gradients
from adgen.training.task import Batch, Metrics, Task

_OWN = "moved.pt"  # tensors that the task updates outside the optimizer


class DeepSpeedStep:
    """As `TorchStep`; torch.distributed must be initialised, and each worker calls every method."""

    kind = "deepspeed"

    def __init__(
        self, task: Task, settings: OptimizerSettings, config: dict[str, Any], device: str = "cpu", universal: bool = False
    ):
        """config: DeepSpeed's, from `deepspeed_config`. universal: the checkpoint to load is of another number of workers."""
        deepspeed = _import_quietly()
        self.zero_stage = config["zero_optimization"]["stage"]
        self.dtype = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32
        self.task = task.to(device)
        self.device = torch.device(device)
        self.universal = universal
        if universal:
            config = config | {"checkpoint": {"load_universal": True}}
        with contextlib.redirect_stdout(sys.stderr):
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=self.task, optimizer=adamw(trainable_parameters(task), settings), config=config
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
        """Update the weights; returns the norm of all gradients before clipping. RunError on every worker, with no weight changed,
        when the norm is non-finite on any of them: DeepSpeed finds out before its optimizer's step, and then skips it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        if not self.engine.was_step_applied() or not math.isfinite(norm):
            raise RunError(nonfinite_gradients(norm))
        return norm

    def save(self, folder: Path) -> None:
        """Write this worker's shards into `folder`."""
        with contextlib.redirect_stdout(sys.stderr):
            self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=True)
        if self.zero_stage < 3 and self.task.self_updated and dist.get_rank() == 0:
            torch.save(self._own_tensors(), folder / _OWN)

    def load(self, folder: Path) -> None:
        """Take over a checkpoint. ModelError when there is none, or it does not fit."""
        tag = UNIVERSAL if self.universal else TAG
        try:
            with contextlib.redirect_stdout(sys.stderr), data_only():
                path, _ = self.engine.load_checkpoint(str(folder), tag=tag)
        except pickle.UnpicklingError as error:
            raise ModelError(f"{folder}: holds more than data, and is not unpickled: {str(error).splitlines()[0]}") from None
        except (RuntimeError, KeyError, AssertionError, FileNotFoundError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{folder}: the checkpoint does not fit this model, stage or DeepSpeed setting: {reason}") from None
        if path is None:
            raise ModelError(f"{folder}: no DeepSpeed checkpoint with tag {tag}")
        if (folder / _OWN).exists():
            own = torch.load(folder / _OWN, map_location=self.device, weights_only=True)
            load_task(self.task, self.task.state_dict() | own, str(folder))

    def _own_tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.task.state_dict().items() if name.startswith(self.task.self_updated)}

    @contextlib.contextmanager
    def whole_task(self, make: Callable[[], Task], exact: bool = False) -> Iterator[Task | None]:
        """The task with all its weights, to use outside of training: on the first worker, None on others where it needs a twin.

        exact: trainable weights as the optimizer keeps them, in fp32, and frozen ones as the start has them. Training itself uses
        both rounded where it is in bf16, and a rounded tokenizer finds other codes than those that were learned.

        ZeRO-3's hooks gather for every worker at once, which one worker alone must not set off: it gets a twin without
        hooks from `make`. So does whoever wants the exact weights of a bf16 task; that twin stays on the CPU.
        """
        if self.zero_stage < 3 and not (exact and self.dtype != torch.float32):
            yield self.task
            return
        twin = make() if dist.get_rank() == 0 else None
        self._take_masters(twin)
        if twin is not None:
            twin = twin.eval() if exact else twin.to(self.device, self.dtype).eval()
        yield twin

    @torch.no_grad()
    def _take_masters(self, twin: Task | None) -> None:
        """Fill in trainable weights from the fp32 copies, which are sharded over all workers; tasks that update tensors outside
        the optimizer never come here (fp32 and ZeRO 1 or 2 is all that they have)."""
        from deepspeed.utils import safe_get_full_fp32_param

        own = dict(twin.named_parameters()) if twin is not None else {}
        for name, parameter in self.task.named_parameters():
            if parameter.requires_grad:
                whole = safe_get_full_fp32_param(parameter)  # every worker gives its part
                if twin is not None:
                    own[name].copy_(whole)


def read_deepspeed_file(path: Path) -> dict[str, Any]:
    """What a DeepSpeed JSON file holds. SettingsError when it is none, or brings an optimizer, a schedule or fp16."""
    try:
        base = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: not a DeepSpeed JSON file: {error}") from None
    if not isinstance(base, dict):
        raise SettingsError(f"{path}: not a DeepSpeed JSON file: it holds no object, but {base!r:.40}")
    for name in ("fp16", "zero_optimization", "data_types"):
        if not isinstance(base.get(name, {}), dict):
            raise SettingsError(f"{path}: {name}: an object of settings, not {base[name]!r:.40}")
    for name in ("optimizer", "scheduler"):
        if name in base:
            raise SettingsError(f"{path}: {name}: torch's AdamW and our schedule are used; set optimizer.* instead")
    if base.get("fp16", {}).get("enabled"):
        raise SettingsError(f"{path}: fp16: training is in bf16 or fp32; set workers.bf16 instead")
    return base


def deepspeed_config(
    base: dict[str, Any] | None, zero_stage: int | None, micro_batch: int, accumulation: int, clip: float, bf16: bool
) -> dict[str, Any]:
    """The trainer's settings over those of a file, `base`, from `read_deepspeed_file`."""
    base = base or {}
    zero = dict(base.get("zero_optimization", {}))
    zero["stage"] = zero.get("stage", 1) if zero_stage is None else zero_stage
    return base | {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        # Sums of bf16 gradients lose their small terms in bf16.
        "data_types": ({"grad_accum_dtype": "fp32"} if bf16 else {}) | base.get("data_types", {}),
        "zero_optimization": zero,
        "steps_per_print": 10**9,
    }


def _import_quietly():
    """deepspeed, its loggers on stderr and at warnings. Its shared-memory all-reduce is off: it crashes where LOCAL_SIZE
    is not set, and hangs when a peer dies."""
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
