"""How workers fetch a checkpoint, once a machine, and write one; a non-finite loss is refused, a failed write is explained."""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adgen.errors import RunError, StoreError
from adgen.local_cache import user_cache
from adgen.on_ray.training.run_folder import CHECKPOINTS, RunFolder, checkpoint_name
from adgen.records import digest

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TORCH_WRITER = "PytorchStreamWriter"  # in the message of torch's RuntimeError when a file takes no more


@contextlib.contextmanager
def checkpoint_here(
    folder: RunFolder, found: dict[str, Any], universal: bool, rank: int, local_rank: int, barrier: Callable[[], None]
) -> Iterator[Path]:
    """The checkpoint `found` as a local folder, until the block ends. Every worker of the run calls this; barrier():
    waits for all of them.

    A folder that all see is read in place, and the first worker makes the universal form that another number of workers
    needs. From S3 the first worker of each machine fetches (and converts) for the others there, into a folder of this
    user's that goes afterwards: one copy a machine, not one a GPU.
    """
    name = checkpoint_name(found["step"])
    first = (rank if folder.is_local else local_rank) == 0
    local = Path(folder.path) / CHECKPOINTS / name if folder.is_local else user_cache("resume") / digest(folder.uri, name)[:16]
    try:
        if first and not folder.is_local:
            shutil.rmtree(local, ignore_errors=True)  # of a process that was killed
            folder.fetch(f"{CHECKPOINTS}/{name}", local)
        if first and universal:
            from adgen.training.deepspeed_files import make_universal

            make_universal(local, found["zero_stage"])
        barrier()
        yield local
        barrier()
    finally:
        if first and not folder.is_local:
            shutil.rmtree(local, ignore_errors=True)


def require_number(held_out_loss: float | None, step: int) -> None:
    """RunError when the held-out loss is none: weights that give it are no checkpoint, and no model."""
    if held_out_loss is not None and not math.isfinite(held_out_loss):
        raise RunError(
            f"step {step}: the held-out loss is {held_out_loss}: nothing is saved of these weights, and the last checkpoint is "
            "kept; lower optimizer.learning_rate and train again from there"
        )


@contextlib.contextmanager
def writing(folder: RunFolder, step: int, last_good: int | None) -> Iterator[None]:
    """StoreError when the store, or this machine's disk, does not take a checkpoint. What else goes wrong here, such as
    another worker's end, is no StoreError: a restart cures it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _TORCH_WRITER not in str(error):
            raise
        kept = "none" if last_good is None else checkpoint_name(last_good)
        raise StoreError(
            f"the checkpoint of step {step} could not be written to {folder.uri}: {error}. The last good one ({kept}) stays. "
            f"{_what_to_do(error)} and run the same command again"
        ) from error


def _what_to_do(error: Exception) -> str:
    full = getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL)
    return "Make room" if full or _TORCH_WRITER in str(error) else "Mend what it names"
