"""The whole way from Janus-Pro weights to pulled creatives, at the smallest size: each step is what a user would call."""

import json
from collections.abc import Iterator
from pathlib import Path

from adgen.cli import main
from adgen.creatives.pull import pull
from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.generation.model_directory import ModelDirectory
from adgen.model.checkpoint import load
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.replay import replay
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.training.job import pretrain
from adgen.on_ray.training.settings import PretrainSettings
from adgen.shop.synthetic.synth import synthesize
from support.janus import save_janus
from support.models import small_prompter
from support.progress import Silent

CAMPAIGN = "rehearsal"
SHORT = {"max_title_tokens": 8}


def converted(folder: Path) -> Path:
    """A shop, and a bare Janus directory that went through `adgen convert` and `adgen inspect`."""
    synthesize(folder / "shop", num_users=4, num_products=8, num_pairs=8, seed=3, picture_side=32)
    save_janus(folder / "janus", tied=False, max_positions=2048)
    small_prompter(config=load(folder / "janus").config).save(folder / "janus")
    assert main(["convert", str(folder / "janus"), str(folder / "start"), "--dtype", "fp32"]) == 0
    assert main(["inspect", str(folder / "start"), "--digest"]) == 0
    (folder / "start" / "sampling.json").write_text(json.dumps({"guidance": 3.0} | SHORT))
    return folder / "start"


def trained(folder: Path, start: Path, stages: list[dict]) -> Iterator[ModelDirectory]:
    """The model directory of each stage, each from the one before."""
    model, dinov2 = start, "random"
    for number, stage in enumerate(stages):
        workers = {"cpus": 0.5, "threads": 1, "micro_batch": 2, "max_failures": 0} | stage.pop("workers", {})
        values = {
            "inputs": str(folder / "shop"), "model": str(model), "out": str(folder / f"run-{number}"),
            "cache": str(folder / "cache"), "dinov2": dinov2, "steps": 2, "batch": 2, "device": "cpu", "checkpoint": {"every": 2},
            "evaluation": {"examples": 2, "samples": 0}, "workers": workers,
        }  # fmt: skip
        pretrain(PretrainSettings(**(values | stage)), Silent())
        model, dinov2 = folder / f"run-{number}" / "model", ""
        yield ModelDirectory(model)


def published(folder: Path, model: Path) -> Path:
    """A refresh with that model, nothing of it set: a creative of it is made again and all are pulled; the store."""
    settings = RefreshSettings(
        inputs=str(folder / "shop"),
        store=str(folder / "store"),
        campaign=CAMPAIGN,
        model=model,
        publish_partial=True,
        plan={"limit": 2},
        engine={"deepspeed": False, "num_slots": 2},
        finish={"width": 64, "height": 64, "gates": {"title_empty": "warn"}},
        keys={"allow_development_keys": True},
    )
    done = refresh(settings, Silent())
    assert done.published
    storage = open_storage(settings.store)
    run = open_published(storage, CAMPAIGN)
    rows = [row for row in run.rows() if row["status"] == "ok"]
    assert rows
    assert not any("model" in dict(row["gates"]) for row in rows)
    assert (run.run.settings["sampling"]["guidance"], run.run.settings["sampling"]["max_title_tokens"]) == (3.0, 8)
    assert replay(storage, CAMPAIGN, rows[0]["pair_id"]).outcome == "equal_bytes"
    assert not pull(storage, CAMPAIGN, folder / "pulled").problems
    return folder / "store"
