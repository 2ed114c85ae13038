"""Which parts of personalization earn their place: the stage `personal` once a variant, from one start and with one budget.

- no_history: the prompt shows none;
- random_history: as style_embedding, but each user is shown another user's;
- coarse_only: the drawn history as plain tokens; the fine step is frozen where it adds nothing;
- published: masks and fusion as published, in the place of the history's embeddings;
- residual: masks and fusion added to them;
- style_embedding: residual, and the style embedding of each click added where the picture begins; the form that ships, with the
  start's style encoder, which the general stage trained;
- untrained_encoder: as style_embedding, with a style encoder that was not trained before;
- no_clicks_loss: as untrained_encoder, without the auxiliary image prediction from each click (losses.clicks).

`jobs/evaluate.py proof --ablation OUT` measures OUT/<name>/model.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, field_validator

from adgen.config import Settings
from adgen.errors import SettingsError
from adgen.generation.model_directory import ModelDirectory
from adgen.model.checkpoint import load, save
from adgen.model.config import CONFIG_FILE
from adgen.model.initialize import initialize_part
from adgen.model.modules import ModelFacts, module_of
from adgen.model.preference import Preference
from adgen.model.uniadgen import UniAdGen
from adgen.on_ray.training.job import Summary, pretrain
from adgen.on_ray.training.settings import PretrainSettings
from adgen.progress import Progress
from adgen.records import digest

log = logging.getLogger(__name__)

Form = Literal["residual", "published", "fresh"]
VARIANTS = (
    "no_history",
    "random_history",
    "coarse_only",
    "published",
    "residual",
    "style_embedding",
    "untrained_encoder",
    "no_clicks_loss",
)
_EARLIER_NAMES = {"style_embedding": "taste", "untrained_encoder": "fresh_reader"}
"""Of variants before 0.2.0; read until 0.3.0."""
_FORMS: dict[str, Form] = {
    "coarse_only": "residual",
    "published": "published",
    "residual": "residual",
    "untrained_encoder": "fresh",
    "no_clicks_loss": "fresh",
}
"""Of the variants that start with another fine step than the start's."""

MADE_FROM = "made-from.txt"


class Ablation(Settings):
    """Where the variants start, what they learn from, and the budget that each has."""

    start: str = "runs/tiny/general/model"
    """A local model directory of stage `general`, with a residual and a style encoder."""
    shop: str = "runs/tiny/shop"
    """A local shop: products, histories, references and their pictures."""
    cache: str = "runs/tiny/examples"
    out: str = "runs/ablation"
    variants: tuple[str, ...] = VARIANTS
    seed: int = Field(default=0, ge=0)
    """Of the published form's new weights, and of who is shown whose history."""
    personal: PretrainSettings = PretrainSettings(stage="personal")
    """The budget."""

    def run(self, name: str) -> PretrainSettings:
        """A variant's settings."""
        own = self.personal
        out = self._folder(name, _EARLIER_NAMES.get(name, name))
        places = {"stage": "personal", "model": self.start, "inputs": self.shop, "cache": self.cache, "out": out}
        if name == "no_history":
            places["dropout"] = own.dropout.model_copy(update={"history": 1.0})
        elif name == "random_history":
            places["inputs"] = self._folder("other_users", "strangers")
        elif name == "coarse_only":
            places["trainable"] = own.trainable.model_copy(update={"freeze": (*own.trainable.freeze, "preference.")})
        if name in _FORMS:
            places["model"] = f"{self.out}/{_FORMS[name]}-start"
        if _FORMS.get(name) in ("residual", "published") or name == "no_clicks_loss":
            places["losses"] = own.losses.model_copy(update={"clicks": 0.0})
        return own.model_copy(update=places)

    def _folder(self, name: str, before: str) -> str:
        """OUT/name, or OUT/before where an earlier version made it."""
        return f"{self.out}/{before if Path(self.out, before).exists() else name}"

    @field_validator("variants", mode="before")
    @classmethod
    def _present_names(cls, variants: Any) -> Any:
        if "no_outlook" in variants:
            raise ValueError("no_outlook was removed in version 0.2.0, with losses.outlook: leave it out")
        now = {before: name for name, before in _EARLIER_NAMES.items()}
        for before in now.keys() & set(variants):
            log.warning("variants: %s is called %s; the old name is read until 0.3.0", before, now[before])
        return tuple(now.get(name, name) for name in variants)


def run_ablation(settings: Ablation, progress: Progress) -> list[Summary]:
    """Train the variants that are not trained yet. Ray must be connected. SettingsError for a variant that there is none of, a shop
    that is not there, or a start that its variants' names would be wrong for."""
    if unknown := set(settings.variants) - set(VARIANTS):
        raise SettingsError(f"variants: {', '.join(sorted(unknown))}: known are {', '.join(VARIANTS)}")
    if not (Path(settings.shop) / "histories.parquet").exists():
        raise SettingsError(f"shop: {settings.shop}: no histories.parquet in it")
    check_plain(Path(settings.start))
    return list(_train(settings, progress))


def _train(settings: Ablation, progress: Progress) -> Iterator[Summary]:
    for name in settings.variants:
        progress.phase(name)
        run = settings.run(name)
        if name == "random_history":
            shuffle_histories(Path(settings.shop), Path(run.inputs), settings.seed)
        if name in _FORMS:
            write_start(Path(settings.start), Path(run.model), settings.seed, _FORMS[name])
        yield pretrain(run, progress)


@torch.no_grad()
def check_plain(start: Path) -> None:
    """SettingsError unless masks and fusion add nothing yet: only then is a frozen fine step the coarse step alone."""
    model = load(start)
    for part, there in (("residual", model.config.preference.residual), ("style encoder", model.config.preference.style_layers)):
        if not there:
            raise SettingsError(f"start: {start}: its fine step has no {part}: take a model of stage general of such a size")
    if any(weights.any() for weights in model.preference.dual_modality_fusion_encoder.output_proj.parameters()):
        raise SettingsError(f"start: {start}: its fine step is trained already: take a model of stage general")


def shuffle_histories(shop: Path, dest: Path, seed: int) -> None:
    """A copy of the shop (pictures by hard link where the disk can) in which every user has another user's history. The
    histories come last."""
    made_from = digest(
        "strangers",  # as earlier versions wrote it
        str(shop.resolve()),
        str((shop / "histories.parquet").stat().st_mtime_ns),
        seed,
    )
    if _is_made(dest, "histories.parquet", made_from):
        return
    shutil.rmtree(dest, ignore_errors=True)
    shutil.copytree(shop, dest, copy_function=_link, ignore=shutil.ignore_patterns("histories.parquet", MADE_FROM))
    table = pq.read_table(shop / "histories.parquet")
    order = np.random.default_rng(seed).permutation(len(table))
    owners = np.empty(len(table), dtype=np.int64)
    owners[order] = np.roll(order, 1)  # one cycle through all users: no fixed point
    users = table["user_id"].combine_chunks().take(pa.array(owners))
    pq.write_table(table.set_column(table.schema.get_field_index("user_id"), table.schema.field("user_id"), users), dest / ".part")
    (dest / MADE_FROM).write_text(made_from)
    os.replace(dest / ".part", dest / "histories.parquet")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without hard links
        shutil.copy2(source, target)


def _is_made(folder: Path, last: str, made_from: str) -> bool:
    """Whether the folder is complete. SettingsError when it was made from something else."""
    if not (folder / last).exists():
        return False
    if (folder / MADE_FROM).read_text() != made_from:
        raise SettingsError(f"out: {folder} was made from another start, shop or seed: give another --out")
    return True


@torch.no_grad()
def write_start(start: Path, dest: Path, seed: int, form: Form) -> None:
    """The start with another fine step. `residual`: its masks and fusion as they are, without a style encoder; `published`:
    neither residual nor style encoder, and new weights, since the residual's end in zeros; `fresh`: all of it, with an untrained
    style encoder."""
    made_from = digest("start", ModelDirectory(start).digest, seed, form)
    if _is_made(dest, CONFIG_FILE, made_from):
        return
    model = load(start, dtype=torch.float32)
    changes = {} if form == "fresh" else {"residual": form == "residual", "style_layers": 0}
    preference = model.config.preference.model_copy(update=changes)
    model.config = model.config.model_copy(update={"preference": preference})
    before, model.preference = model.preference, Preference(model.config.decoder.hidden_size, preference)
    initialize_part(model.preference, seed)
    if form != "published":
        kept = {name: tensor for name, tensor in before.state_dict().items() if not name.startswith("style_encoder.")}
        model.preference.load_state_dict(kept, strict=False)
    staging = dest.with_name(f".{dest.name}")
    shutil.rmtree(staging, ignore_errors=True)
    save(model, staging)
    directory = ModelDirectory(start)
    directory.prompter.save(staging)
    directory.pass_on(staging, _facts_of(model, directory.facts, form))
    (staging / MADE_FROM).write_text(made_from)
    staging.rename(dest)


def _facts_of(model: UniAdGen, before: ModelFacts, form: Form) -> ModelFacts:
    """Of a start with another fine step: what of it is new weights is untrained."""
    new = {"published": "preference.", "fresh": "preference.style_encoder", "residual": " "}[form]
    names = {module_of(name) for name in model.state_dict()}
    states = {name: "untrained" if name.startswith(new) else before.modules[name] for name in names}
    return before.model_copy(update={"modules": states})
