"""The four stages as tasks and collators: one place that knows which is which."""

from collections.abc import Sequence
from pathlib import Path

import torch

from adgen.errors import ModelError
from adgen.generation.model_directory import ModelDirectory
from adgen.model.checkpoint import load_dinov2
from adgen.model.config import CONFIG_FILE
from adgen.model.modules import ModelFacts
from adgen.model.pbs import PBS_CONFIG_FILE, load_pbs
from adgen.training.batches import LanguageCollator
from adgen.training.contrast import ContrastTask, SceneCollator, new_encoder
from adgen.training.language import LanguageTask
from adgen.training.pictures import PictureCollator, TokenizerTask
from adgen.training.settings import UNTRAINED, TrainingSettings
from adgen.training.task import Collator, Start, Task
from adgen.training.trainable import choose_trainable


def make_task(start: Path | None, settings: TrainingSettings, dinov2: str | Path | None = None) -> Task:
    """The task of a stage, from a model directory (`pbs`: from an encoder's, or new). dinov2: a directory in Hugging Face
    layout, or UNTRAINED, for a start that cannot see products yet. ModelError when it is another kind."""
    check_start(start, settings, dinov2)
    if settings.stage == "pbs":
        encoder = load_pbs(start, settings.contrast.encoder) if start else new_encoder(settings.contrast.encoder, settings.seed)
        return ContrastTask(encoder, settings)
    # In fp32 whatever the files are in: an optimizer that updates bf16 weights loses most of its small steps to rounding.
    directory = ModelDirectory(start)
    model = directory.load(dtype=torch.float32)
    if dinov2 and str(dinov2) != UNTRAINED:
        load_dinov2(model, dinov2)
    if settings.stage == "tokenizer":
        task: Task = TokenizerTask(model, directory.prompter, settings)
    else:
        choose_trainable(model, settings.stage, settings.trainable, settings.seed, reads_clicks=settings.losses.clicks > 0)
        task = LanguageTask(model, directory.prompter, settings)
    task.start = Start(directory, _facts_with(dinov2, directory.facts), settings.stage)
    return task


def _facts_with(dinov2: str | Path | None, facts: ModelFacts) -> ModelFacts:
    """The start's facts when a DINOv2 was put under its foreground path."""
    if not dinov2 or str(dinov2) == UNTRAINED:
        return facts
    return facts.model_copy(update={"modules": facts.modules | {"foreground.adapter": "trained"}})


def make_collator(start: Path | None, settings: TrainingSettings, backgrounds: Sequence[dict]) -> Collator:
    """The collator of a stage; it needs the start's sizes and tokenizer, not its weights."""
    if settings.stage == "pbs":
        return SceneCollator(backgrounds, settings)
    directory = ModelDirectory(start)
    if settings.stage == "tokenizer":
        return PictureCollator(directory.config, settings)
    return LanguageCollator(directory.prompter, directory.config, settings)


def check_start(start: Path | None, settings: TrainingSettings, dinov2: str | Path | None = None) -> None:
    """ModelError when a directory is of another stage's kind (an encoder for a model, or a model for an encoder), when it has
    no weights for seeing products and `dinov2` gives none, and when it has its own and `dinov2` would replace them."""
    if start is None:
        if dinov2:
            raise ModelError(f"dinov2 is {str(dinov2)!r}, but a new encoder of stage {settings.stage} has no use for it")
        return
    is_encoder = (start / PBS_CONFIG_FILE).exists() and not (start / CONFIG_FILE).exists()
    if settings.stage == "pbs" and not (start / PBS_CONFIG_FILE).exists():
        raise ModelError(f"{start}: no {PBS_CONFIG_FILE}: stage pbs starts from an encoder of that stage, or without --model")
    if settings.stage != "pbs" and is_encoder:
        raise ModelError(f"{start}: an encoder of stage pbs, but stage {settings.stage} starts from a model directory")
    _require_trained_foreground(start, settings, dinov2)


def _require_trained_foreground(start: Path, settings: TrainingSettings, dinov2: str | Path | None) -> None:
    seeing = settings.stage == "pbs" or _sees(ModelDirectory(start))
    if not seeing and not dinov2:
        size = ModelDirectory(start).config.foreground.hidden_size
        raise ModelError(
            f"{start}: it has no DINOv2 with trained weights, through which products are seen: give dinov2 = a DINOv2 directory in "
            f"Hugging Face layout (hidden_size {size}, such as facebook/dinov2-small), or dinov2 = {UNTRAINED!r} to begin with "
            "random weights"
        )
    if seeing and dinov2:
        raise ModelError(f"dinov2 is {str(dinov2)!r}, but {start} has its own weights for that: leave it out")


def _sees(start: ModelDirectory) -> bool:
    """Whether it has weights for seeing products. Where the decoder is new as well, everything is learned from nothing."""
    modules = start.facts.modules
    return modules["foreground.adapter"] != "untrained" or modules["decoder"] == "untrained"
