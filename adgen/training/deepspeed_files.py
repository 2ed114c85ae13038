"""DeepSpeed's checkpoint files, read as data.

DeepSpeed unpickles its own files (`torch.load(weights_only=False)`), and a pickle runs whatever its writer liked. Inside
`data_only` torch takes tensors, plain values and the few record classes that DeepSpeed writes beside them; a file with
anything else is an error. A run folder that others can write to is still to be trusted no more than they are: they choose
the weights.

    python -m adgen.training.deepspeed_files INPUT OUTPUT [--inject_missing_state]      # to the universal form
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from adgen.errors import ModelError

TAG, UNIVERSAL = "deepspeed", "universal"
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextlib.contextmanager
def data_only() -> Iterator[None]:
    """Inside, every `torch.load` of this process and of those it starts is one of data, whatever its caller asked for."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        os.environ.pop(_FORCE) if before is None else os.environ.update({_FORCE: before})


def make_universal(folder: Path, zero_stage: int) -> None:
    """Turn a checkpoint into one that any number of workers can load, beside it; nothing where that was done. A conversion
    that is killed leaves `universal.part`, which the next one removes. ModelError with what the tool said."""
    target, part = folder / UNIVERSAL, folder / f"{UNIVERSAL}.part"
    if target.is_dir():
        return
    if not (folder / TAG).is_dir():
        raise ModelError(f"{folder}: cannot be made universal: no {TAG} folder in it")
    shutil.rmtree(part, ignore_errors=True)
    command = [
        sys.executable, "-m", "adgen.training.deepspeed_files", "--input_folder", str(folder / TAG), "--output_folder", str(part),
        *(["--inject_missing_state"] if zero_stage < 3 else []),
    ]  # fmt: skip
    # The child finds adgen where this process did, installed or not.
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    if done.returncode or not part.is_dir():
        raise ModelError(f"{folder}: cannot be made universal: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    part.rename(target)


def _convert() -> None:
    from deepspeed.checkpoint.ds_to_universal import main, parse_arguments

    with data_only():  # the converter's own processes are forks, and inherit it
        main(parse_arguments())


if __name__ == "__main__":
    _convert()
