"""A model's directory, opened once and passed on: sizes, prompts, its own sampling, its digest, and what its files hold.

Each part is read when it is first asked for, and kept. No torch until weights or a Janus-Pro directory's sizes are asked for.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adgen.errors import ModelError
from adgen.generation.sampling_settings import SAMPLING_FILE, model_sampling
from adgen.model.config import CONFIG_FILE, ModelConfig
from adgen.model.modules import MODULES_FILE, ModelFacts, module_of, stated_by_training

if TYPE_CHECKING:
    import torch

    from adgen.generation.prompt import Prompter
    from adgen.model.uniadgen import UniAdGen

TRAINING_FILE = "training.json"
"""How a model was trained: settings, losses and versions of its last stage, and of those before it."""

log = logging.getLogger(__name__)


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
        """SHA-256 over the names and bytes of its files (`directory_digest`): what determines its output. Reads all of them."""
        return directory_digest(self.path)

    @cached_property
    def facts(self) -> ModelFacts:
        """Which modules are trained, and from which files they are: what `modules.json` says, else what can be told without it. A
        module whose tensors are missing is untrained; one that a Janus-Pro directory holds, or that the stages in `training.json`
        trained, is trained; of any other nobody knows. ModelError: a damaged file. Of safetensors it reads headers only."""
        said = ModelFacts.load(self.path)
        if said and said.is_complete:
            return said  # without torch
        there = self._modules_there()
        if said:
            return said.model_copy(update={"modules": dict.fromkeys(there, "unknown") | said.modules})
        trained = {name for name, is_there in there.items() if is_there} if self.is_janus else self._modules_of_training(there)
        states = {name: "trained" if name in trained else "unknown" if there[name] else "untrained" for name in there}
        return ModelFacts(modules=states)

    def pass_on(self, directory: str | Path, facts: ModelFacts) -> None:
        """Write into the directory of a model that was made from this one what is said of it beside weights, sizes and prompts: its
        own sampling as it is here, and `facts`."""
        if (self.path / SAMPLING_FILE).exists():
            shutil.copyfile(self.path / SAMPLING_FILE, Path(directory) / SAMPLING_FILE)
        facts.save(directory)

    def require_trained(self, allow_untrained: bool = False) -> None:
        """ModelError where modules are untrained, unless that is allowed; a warning where nobody knows."""
        untrained, unknown = self.facts.having("untrained"), self.facts.having("unknown")
        if untrained and not allow_untrained:
            raise ModelError(
                f"{self.path}: untrained modules, so creatives would be noise: {', '.join(untrained)}. Put a released fine-tune "
                "over the model (adgen convert BASE DEST --finetune FILE), or train it (jobs/pretrain.py, docs/training.md). "
                "--allow-untrained takes it as it is, to try the machinery"
            )
        if unknown:
            log.warning("%s: no %s says whether these modules are trained: %s", self.path, MODULES_FILE, ", ".join(unknown))

    def _modules_there(self) -> dict[str, bool]:
        """The model's modules -> whether the weight files hold all of its tensors."""
        from adgen.model.checkpoint import on_meta
        from adgen.model.names import from_janus_name, plain_name, published_name
        from adgen.model.weight_files import tensor_names, weight_files

        names = {plain_name(from_janus_name(name)) for path in weight_files(self.path) for name in tensor_names(path)}
        there: dict[str, bool] = {}
        for own in on_meta(self.config).state_dict():
            module, is_there = module_of(own), published_name(own) in names or own == "decoder.lm_head.weight"  # it may be tied
            there[module] = there.get(module, True) and is_there
        return there

    def _modules_of_training(self, modules: Iterable[str]) -> set[str]:
        path = self.path / TRAINING_FILE
        try:
            return stated_by_training(json.loads(path.read_text(encoding="utf-8")), modules)
        except FileNotFoundError:
            return set()
        except ValueError as error:
            raise ModelError(f"{path}: not JSON: {error}") from None

    def load(self, device: str = "cpu", dtype: "torch.dtype | None" = None) -> "UniAdGen":
        """The model, as `checkpoint.load`."""
        from adgen.model.checkpoint import load

        return load(self.path, device, dtype)

    def check(self) -> None:
        """ModelError if it has no sizes, tokenizer or weights, or if a weight file is cut short; SettingsError if its own sampling
        is wrong. Loads no weights."""
        from adgen.model.weight_files import tensor_names, weight_files

        _ = self.prompter, self.sampling
        for path in weight_files(self.path):
            if path.suffix == ".safetensors":  # its header says how long it must be
                tensor_names(path)


def directory_digest(directory: str | Path) -> str:
    """SHA-256 over the names and bytes of every file in a directory, without hidden ones and without `modules.json`, which
    decides nothing of what is generated. ModelError: there is none."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such model directory")
    total = hashlib.sha256()
    facts = directory / MODULES_FILE
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith(".") and p != facts):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(directory).as_posix()}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
