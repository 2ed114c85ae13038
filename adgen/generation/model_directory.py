"""A model's directory, opened once and passed on: sizes, prompts, its own sampling, its digest, and what its files hold.

Each part is read when it is first asked for, and kept. No torch until weights or a Janus-Pro directory's sizes are asked for.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adgen.errors import ModelError
from adgen.generation.sampling_settings import model_sampling
from adgen.model.config import CONFIG_FILE, ModelConfig

if TYPE_CHECKING:
    import torch

    from adgen.generation.prompt import Prompter
    from adgen.model.uniadgen import UniAdGen


class ModelDirectory:
    """A directory of ours (with `adgen.json`), or of Janus-Pro in Hugging Face layout. It pickles as its path.

    Every property raises ModelError, naming the file, where the directory lacks what is asked for.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def __reduce__(self) -> tuple:
        return ModelDirectory, (self.path,)

    @property
    def is_janus(self) -> bool:
        """Whether it is a Janus-Pro directory, which lacks what this package adds to the model."""
        return not (self.path / CONFIG_FILE).exists()

    @cached_property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        if not self.is_janus:
            return ModelConfig.load(self.path)
        from adgen.model.checkpoint import janus_config

        return janus_config(self.path)

    @cached_property
    def prompter(self) -> "Prompter":
        """Its tokenizer and template."""
        from adgen.generation.prompt import Prompter

        return Prompter.load(self.path, self.config)

    @cached_property
    def sampling(self) -> dict[str, Any]:
        """What it says of its own sampling (sampling.json); `SamplingChoice.of` takes it. SettingsError: a wrong value."""
        return model_sampling(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and bytes of all its files: what determines its output. Reads all of them."""
        return directory_digest(self.path)

    @cached_property
    def trained(self) -> frozenset[str]:
        """The parts of the model (`decoder`, `foreground`, `preference`, ...) that its weight files hold; `load` initialises the
        others. Reads headers only, where the files are safetensors."""
        from adgen.model.checkpoint import on_meta
        from adgen.model.names import from_janus_name, plain_name, published_name
        from adgen.model.weight_files import tensor_names, weight_files

        there = {plain_name(from_janus_name(name)) for path in weight_files(self.path) for name in tensor_names(path)}
        own = on_meta(self.config).state_dict()
        return frozenset(name.partition(".")[0] for name in own if published_name(name) in there)

    def load(self, device: str = "cpu", dtype: "torch.dtype | None" = None) -> "UniAdGen":
        """The model, as `checkpoint.load`."""
        from adgen.model.checkpoint import load

        return load(self.path, device, dtype)

    def check(self) -> None:
        """ModelError if it has no sizes, tokenizer or weights, or if a weight file is cut short; SettingsError if its own sampling
        is wrong. Loads no weights."""
        from adgen.model.weight_files import read_tensors, weight_files

        _ = self.prompter, self.sampling
        for path in weight_files(self.path):
            if path.suffix == ".safetensors":  # its header says how long it must be
                next(read_tensors(path), None)


def directory_digest(directory: str | Path) -> str:
    """SHA-256 over the names and bytes of every file in a directory, hidden ones left out. ModelError: there is none."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such model directory")
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith(".")):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(directory).as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
