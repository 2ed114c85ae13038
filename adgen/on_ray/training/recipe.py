"""A recorded recipe: a synthetic shop and a run of `pretrain` for each stage, each from the last one's model.

What is finished is not done again: the shop when its tables are there, a stage when its model is. A stage that was
interrupted goes on from its checkpoint.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from adgen.config import Settings
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.sampling_settings import SAMPLING_FILE, SamplingChoice
from adgen.model.checkpoint import load, save
from adgen.model.modules import MODULES_FILE
from adgen.model.pbs import PBS_FILE
from adgen.on_ray.training.job import Summary, pretrain
from adgen.on_ray.training.run_folder import FACTS, MODEL
from adgen.on_ray.training.settings import PretrainSettings
from adgen.progress import Progress
from adgen.shop.synthetic.synth import synthesize
from adgen.training.settings import UNTRAINED, StyleSettings


class ShopSettings(StyleSettings):
    """The synthetic shop that a recipe is trained on."""

    ADDED = StyleSettings.ADDED | {"words"}

    users: int = Field(default=1500, gt=0)
    products: int = Field(default=800, gt=0)
    references: int = Field(default=3000, gt=0)
    """Reference creatives: examples of an epoch."""
    seed: int = 0
    split: str | None = "train"
    """`train` keeps the users, products and looks of `eval` unseen."""
    picture_side: int = Field(default=64, ge=16)
    """Pixels."""
    words: Literal["shop", "open", "mixed"] = "shop"
    """Of titles: a grammar's, any, or half of each."""


class Recipe(Settings):
    """A model's recorded recipe; `stages` are done in this order."""

    ADDED = frozenset({"titles"})

    out: str = "runs/tiny"
    """Folder of the shop and of a run for each stage."""
    model: str = "tiny"
    """Where the first stage starts: the name of a size, or a model directory."""
    shop: ShopSettings = ShopSettings()
    tokenizer: PretrainSettings = PretrainSettings(stage="tokenizer")
    titles: PretrainSettings | None = None
    """A run of stage general on titles alone (losses.image = 0), before that with pictures: words are learned faster so."""
    general: PretrainSettings = PretrainSettings(stage="general")
    personal: PretrainSettings = PretrainSettings(stage="personal")
    pbs: PretrainSettings = PretrainSettings(stage="pbs")
    sampling: SamplingChoice = SamplingChoice()
    """What a shipped model says of how it is sampled best (sampling.json); chosen on a shop that no proof is made on."""

    def runs(self) -> Iterator[PretrainSettings]:
        """Each stage's settings with its places filled in."""
        model = self.model
        for name in ("tokenizer", "titles", "general", "personal", "pbs"):
            own = getattr(self, name)
            if own is None:
                continue
            stage, out = "general" if name == "titles" else name, f"{self.out}/{name}"
            places: dict[str, Any] = {"stage": stage, "inputs": f"{self.out}/shop", "out": out, "cache": f"{self.out}/examples"}
            if name == "titles":
                places["losses"] = own.losses.model_copy(update={"image": 0.0})
            elif name == "general" and self.titles is not None:
                places["dinov2"] = own.dinov2 or UNTRAINED  # the decoder is trained, and no product was seen yet
            elif name == "pbs":  # of the shop's own styles: it learns which of its pictures are of one
                shown = {field: getattr(self.shop, field) for field in StyleSettings.ADDED}
                places["contrast"] = own.contrast.model_copy(update=shown)
            yield own.model_copy(update=places | {"model": "" if stage == "pbs" else model})
            model = f"{out}/{MODEL}"


def run_recipe(recipe: Recipe, progress: Progress) -> list[Summary]:
    """Train the stages that are not trained yet. Ray must be connected."""
    progress.phase("shop")
    draw_shop(recipe.shop, Path(recipe.out) / "shop", workers=os.cpu_count() or 1)
    return [pretrain(settings, progress) for settings in recipe.runs()]


def ship(recipe: Recipe, dest: Path) -> None:
    """What a finished recipe made, as it lies in the package: DEST/model in bf16 and DEST/pbs with fp16 matrices, each with its
    training facts."""
    last = {name: Path(recipe.out) / name / MODEL for name in ("personal", "pbs")}
    model = load(last["personal"], dtype=torch.bfloat16)
    for folder in ("model", "pbs"):
        shutil.rmtree(dest / folder, ignore_errors=True)
    save(model, dest / "model")
    ModelDirectory(last["personal"]).prompter.save(dest / "model")
    shutil.copy(last["personal"] / FACTS, dest / "model" / FACTS)
    shutil.copy(last["personal"] / MODULES_FILE, dest / "model" / MODULES_FILE)
    if said := recipe.sampling.model_dump(exclude_none=True):
        (dest / "model" / SAMPLING_FILE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    shutil.copytree(last["pbs"], dest / "pbs")
    encoder = dest / "pbs" / PBS_FILE
    save_file({name: _narrow(tensor) for name, tensor in load_file(encoder).items()}, encoder, metadata={"format": "pt"})
    for path in dest.rglob("*.*"):  # safetensors writes for one user only
        path.chmod(0o644)


def _narrow(tensor: Tensor) -> Tensor:
    """A weight matrix in fp16; what is one number a feature (norms, biases, running statistics) as it is."""
    return tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 else tensor


def draw_shop(settings: ShopSettings, dest: Path, workers: int = 1) -> None:
    """The shop, unless it is there; its tables come last, so a shop that was cut short has none."""
    if (dest / "references.parquet").exists():
        return
    values: dict[str, Any] = settings.model_dump()
    synthesize(
        dest,
        values["users"],
        values["products"],
        num_pairs=values["references"],
        seed=values["seed"],
        split=values["split"],
        num_references=values["references"],
        picture_side=values["picture_side"],
        workers=workers,
        styles=settings.style_set(settings.split),
        words=settings.words,
    )
