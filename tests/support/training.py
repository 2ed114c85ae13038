"""Small training runs for tests: a shop, a model of the smallest size, and settings that leave nothing to chance.

    cd tests; python -m support.training        # writes tests/golden_losses/personal.txt anew

The golden is the loss of each of 20 steps of the personal stage: fixed seed, no dropout within modules, so that it is the
same with one worker and with two, whatever ZeRO shards.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adgen.model.checkpoint import save
from adgen.on_ray.training.settings import PretrainSettings
from adgen.shop.synthetic.synth import synthesize
from support.models import small_config, small_model, small_prompter
from support.progress import Silent

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # how long each report waits for Ray Train

GOLDEN = Path(__file__).parents[1] / "golden_losses" / "personal.txt"
STEPS = 20


def training_inputs(folder: Path) -> Path:
    """A shop and a model: `shop`, `model`."""
    synthesize(folder / "shop", num_users=12, num_products=30, num_pairs=48, seed=3, picture_side=32)
    config = small_config(preference=small_config().preference.model_copy(update={"dropout": 0.0}))
    model = small_model(preference=config.preference)
    save(model, folder / "model")
    small_prompter(config=model.config).save(folder / "model")
    return folder


def small_run(folder: Path, out: Path | str, **changes) -> PretrainSettings:
    """The golden's settings, with changes."""
    workers = {"cpus": 0.5, "threads": 1, "micro_batch": 2, "max_failures": 0} | changes.pop("workers", {})
    values = {
        "stage": "personal", "inputs": str(folder / "shop"), "model": str(folder / "model"), "out": str(out),
        "cache": str(folder / "cache"), "steps": STEPS, "batch": 4, "seed": 1, "device": "cpu",
        "optimizer": {"learning_rate": 2e-3}, "checkpoint": {"every": 10}, "evaluation": {"examples": 4, "samples": 2},
        "workers": workers,
    }  # fmt: skip
    return PretrainSettings(**(values | changes))


def losses(out: Path) -> list[float]:
    """What `losses.txt` holds, its step numbers checked."""
    lines = [line.split() for line in (out / "losses.txt").read_text().splitlines()]
    assert [int(step) for step, _ in lines] == list(range(1, len(lines) + 1))
    return [float(loss) for _, loss in lines]


def golden() -> list[float]:
    return [float(line.split()[1]) for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]


def without_references(shop: Path, into: Path) -> Path:
    """The shop's tables, the references emptied."""
    into.mkdir()
    for name in ("products", "histories"):
        (into / f"{name}.parquet").write_bytes((shop / f"{name}.parquet").read_bytes())
    table = pq.read_table(shop / "references.parquet")
    pq.write_table(pa.Table.from_pylist([], table.schema), into / "references.parquet")
    return into


def settings_file(folder: Path, inputs: Path) -> Path:
    """The golden's settings as TOML, with more checkpoints."""
    settings = small_run(inputs, "", checkpoint={"every": 4, "keep": 9})
    path = folder / "pretrain.toml"
    path.write_text(
        f"""
        stage = "personal"
        inputs = {json.dumps(settings.inputs)}
        model = {json.dumps(settings.model)}
        cache = {json.dumps(settings.cache)}
        steps = {settings.steps}
        batch = {settings.batch}
        seed = {settings.seed}
        device = "cpu"
        [optimizer]
        learning_rate = {settings.optimizer.learning_rate}
        [checkpoint]
        every = 4
        keep = 9
        [evaluation]
        examples = 4
        samples = 0
        [workers]
        cpus = 0.5
        threads = 1
        micro_batch = 2
        """
    )
    return path


def write_golden() -> None:
    import ray

    from adgen.on_ray.cluster import quiet_ray
    from adgen.on_ray.training.job import pretrain

    quiet_ray()
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        inputs = training_inputs(Path(folder))
        pretrain(small_run(inputs, Path(folder) / "out"), Silent())
        lines = (Path(folder) / "out" / "losses.txt").read_text()
    GOLDEN.write_text("# step and loss; written by: cd tests; python -m support.training\n" + lines)


if __name__ == "__main__":
    sys.exit(write_golden())
