"""Which parts of personalization earn their place: the stage `personal` five times, from one start and with one budget.

- no_history: the prompt shows none;
- random_history: each user is shown somebody else's;
- coarse_only: the drawn history as plain tokens, the fine step's weights standing still at nothing;
- published: masks and fusion as published, in the place of the history's embeddings;
- residual: masks and fusion added to them.

`jobs/evaluate.py proof --ablation OUT` measures OUT/<name>/model.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from adgen.config import Settings
from adgen.errors import SettingsError
from adgen.model.checkpoint import load, save
from adgen.model.initialize import initialize_part
from adgen.model.preference import Preference
from adgen.on_ray.pretraining import Progress, Summary, pretrain
from adgen.on_ray.pretraining_settings import PretrainSettings
from adgen.training.stages import load_prompter

VARIANTS = ("no_history", "random_history", "coarse_only", "published", "residual")


class Ablation(Settings):
    """Where the variants start, what they learn from, and the budget that each has."""

    start: str = "runs/tiny/general/model"
    """A local model directory of stage `general`, of a residual kind."""
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
        places = {"stage": "personal", "model": self.start, "inputs": self.shop, "cache": self.cache, "out": f"{self.out}/{name}"}
        if name == "no_history":
            places["dropout"] = own.dropout.model_copy(update={"history": 1.0})
        elif name == "random_history":
            places["inputs"] = f"{self.out}/strangers"
        elif name == "coarse_only":
            places["trainable"] = own.trainable.model_copy(update={"freeze": (*own.trainable.freeze, "preference.")})
        elif name == "published":
            places["model"] = f"{self.out}/published-start"
        return own.model_copy(update=places)


def follow_ablation(settings: Ablation, progress: Progress) -> list[Summary]:
    """Train what of it is not trained yet. Ray must be connected. SettingsError for a variant that there is none of."""
    if unknown := set(settings.variants) - set(VARIANTS):
        raise SettingsError(f"variants: {', '.join(sorted(unknown))}: known are {', '.join(VARIANTS)}")
    return list(_train(settings, progress))


def _train(settings: Ablation, progress: Progress) -> Iterator[Summary]:
    for name in settings.variants:
        progress.phase(name)
        if name == "random_history":
            give_strangers(Path(settings.shop), Path(settings.out) / "strangers", settings.seed)
        if name == "published":
            write_published_start(Path(settings.start), Path(settings.out) / "published-start", settings.seed)
        yield pretrain(settings.run(name), progress)


def give_strangers(shop: Path, dest: Path, seed: int) -> None:
    """A copy of the shop (pictures by hard link) in which nobody has their own history. The histories come last."""
    if (dest / "histories.parquet").exists():
        return
    shutil.rmtree(dest, ignore_errors=True)
    shutil.copytree(shop, dest, copy_function=os.link, ignore=shutil.ignore_patterns("histories.parquet"))
    table = pq.read_table(shop / "histories.parquet")
    order = np.random.default_rng(seed).permutation(len(table))
    owners = np.empty(len(table), dtype=np.int64)
    owners[order] = np.roll(order, 1)  # one cycle through all users: no fixed point
    users = table["user_id"].combine_chunks().take(pa.array(owners))
    pq.write_table(table.set_column(table.schema.get_field_index("user_id"), table.schema.field("user_id"), users), dest / ".part")
    os.replace(dest / ".part", dest / "histories.parquet")


@torch.no_grad()
def write_published_start(start: Path, dest: Path, seed: int) -> None:
    """The start with masks and fusion as published: no residual, and new weights, since the residual's end in zeros."""
    if dest.exists():
        return
    model = load(start, dtype=torch.float32)
    preference = model.config.preference.model_copy(update={"residual": False})
    model.config = model.config.model_copy(update={"preference": preference})
    model.preference = Preference(model.config.decoder.hidden_size, preference)
    initialize_part(model.preference, seed)
    staging = dest.with_name(f".{dest.name}")
    shutil.rmtree(staging, ignore_errors=True)
    save(model, staging)
    load_prompter(start).save(staging)
    staging.rename(dest)
