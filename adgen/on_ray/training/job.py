"""Pretraining on one screen: start, examples, workers, model. The same command goes on where it stopped.

What a run is lies in its folder (`run_folder`); the driver holds nothing that a crash could take.
"""

import os
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
import ray.train
from ray.train.torch import TorchTrainer

import adgen.errors
from adgen.config import validate_settings
from adgen.errors import OwnedElsewhere, RunError, SettingsError
from adgen.generation.starter import write_starter_model
from adgen.model.config import CONFIG_FILE, PRESETS
from adgen.model.device import pick_device
from adgen.model.modules import MODULES_FILE, ModelFacts
from adgen.on_ray.training.batches import batches_dataset, in_order
from adgen.on_ray.training.examples import Prepared, prepare_examples
from adgen.on_ray.training.ownership import Ownership
from adgen.on_ray.training.resume import claim, forget_rays_list, run_identity
from adgen.on_ray.training.run_folder import CHECKPOINTS, FACTS, MODEL, RunFolder, on_this_node
from adgen.on_ray.training.settings import TABLES, PretrainSettings
from adgen.on_ray.training.source import Job, Source
from adgen.on_ray.training.status import StatusActor
from adgen.on_ray.training.worker_function import train
from adgen.progress import Progress
from adgen.shop.inputs.locations import is_s3
from adgen.shop.inputs.tables import open_inputs
from adgen.training.deepspeed_step import read_deepspeed_file
from adgen.training.stages import check_start

START = "start"
_POLL_SECONDS = 0.3


@dataclass
class Summary:
    """What a run did, as `--json` prints it."""

    stage: str
    model: str
    steps: int
    examples: int = 0
    loss: float | None = None
    held_out_loss: float | None = None
    seconds: float = 0.0
    resumed: bool = False
    finished_before: bool = False
    reasons: dict[str, int] = field(default_factory=dict)
    """Rows of the inputs that became no example."""
    trained: list[str] = field(default_factory=list)
    """Modules of the model that this stage trained."""
    untrained: list[str] = field(default_factory=list)
    """Modules that are still untrained: later stages train them, and a refresh refuses the model until then."""

    def add_facts(self, folder: RunFolder) -> None:
        """What the finished model says of its modules; an encoder of stage pbs says nothing."""
        if values := folder.read_json(f"{MODEL}/{MODULES_FILE}"):
            facts = validate_settings(ModelFacts, values, f"{self.model}/{MODULES_FILE}")
            self.trained = list(facts.stages[-1].modules) if facts.stages else []
            self.untrained = facts.having("untrained")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def pretrain(settings: PretrainSettings, progress: Progress) -> Summary:
    """Train one stage. Ray must be connected. RunError (of any kind) says why it stopped; nothing that was saved is lost."""
    began = time.time()
    settings.require()
    settings = settings.with_whole_paths()
    deepspeed = read_deepspeed_file(settings.workers.deepspeed) if settings.workers.deepspeed else None
    with Ownership(settings.out) as owner:
        return _pretrain(settings, deepspeed, progress, owner, began)


def _pretrain(
    settings: PretrainSettings, deepspeed: dict[str, Any] | None, progress: Progress, owner: Ownership, began: float
) -> Summary:
    folder = RunFolder(settings.out)
    progress.phase("start")
    start = resolve_start(settings, folder)
    resumed = claim(folder, run_identity(settings, start), {"settings": settings.model_dump(mode="json")})
    summary = Summary(settings.stage, f"{folder.uri}/{MODEL}", settings.steps, resumed=resumed)
    if (done := folder.read_json(f"{MODEL}/{FACTS}")) is not None:
        summary.held_out_loss, summary.examples, summary.finished_before = done["held_out_loss"], done["examples"], True
        summary.add_facts(folder)
        return summary
    progress.phase("examples")
    prepared = prepare_examples(settings, start)
    summary.examples, summary.reasons = prepared.num_examples, prepared.reasons
    progress.phase("train", settings.steps)
    last = run_workers(settings, deepspeed, folder, start, prepared, progress, owner)
    summary.loss, summary.held_out_loss = last.get("loss"), last.get("held_out_loss")
    summary.seconds = round(time.time() - began, 1)
    summary.add_facts(folder)
    return summary


def run_workers(
    settings: PretrainSettings,
    deepspeed: dict[str, Any] | None,
    folder: RunFolder,
    start: str | None,
    prepared: Prepared,
    progress: Progress,
    owner: Ownership,
) -> dict[str, Any]:
    """Ray Train's part: returns the last step's numbers when the model is written; raises what stopped it."""
    forget_rays_list(folder)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how long a report may wait for the controller
    status = StatusActor.remote()
    owner.on_lost = lambda message: ray.get(status.fail.remote(OwnedElsewhere.__name__, message))
    owner.check()
    source = Source(settings, start, prepared.examples, prepared.backgrounds, settings.dinov2 or None)
    facts = {"stage": settings.stage, "seed": settings.seed, "settings": settings.identity(), "examples_digest": prepared.digest}
    on_gpu = pick_device(settings.device) == "cuda"
    trainer = TorchTrainer(
        train,
        train_loop_config={"job": Job(source, status, facts, deepspeed)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers.num,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": settings.workers.cpus} | ({"GPU": 1} if on_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=folder.path,
            storage_filesystem=folder.files,
            failure_config=ray.train.FailureConfig(max_failures=settings.workers.max_failures),
        ),
        datasets={"train": batches_dataset(source, status)},
        dataset_config=in_order(),
    )
    with _shown(status, progress):
        try:
            trainer.fit()
        except Exception as error:
            _raise_failure(status)
            raise RunError(
                f"training failed: {_why(error)}. A worker that dies is started again up to workers.max_failures "
                f"{settings.workers.max_failures} times. The same command goes on from the last checkpoint"
            ) from error
    _raise_failure(status)
    return ray.get(status.read.remote())[0]


def resolve_start(settings: PretrainSettings, folder: RunFolder) -> str | None:
    """Where training starts: the folder or URI as given, or OUT/start with new weights for the name of a size. None: a
    new encoder. ModelError when it is of another kind than the stage's."""
    if not settings.model:
        check_start(None, settings, settings.dinov2)
        return None
    if settings.model in PRESETS and not Path(settings.model).exists():
        if settings.dinov2:
            raise SettingsError(f"dinov2 is {settings.dinov2!r}, but a new model of size {settings.model} has no use for it")
        return _new_model(settings, folder)
    check_start(on_this_node(settings.model), settings, settings.dinov2)
    return settings.model if is_s3(settings.model) else str(on_this_node(settings.model))


def _new_model(settings: PretrainSettings, folder: RunFolder) -> str:
    """New weights of a named size, with a tokenizer learned from the inputs' titles; the same ones when asked again."""
    if folder.read_json(f"{START}/{CONFIG_FILE}") is None:
        with tempfile.TemporaryDirectory(prefix="adgen-start-") as scratch:
            write_starter_model(scratch, _texts(open_inputs(settings.inputs, TABLES)), settings.model, settings.seed)
            folder.put(Path(scratch), START, last=CONFIG_FILE)  # what is looked for above
    return f"{folder.uri}/{START}" if not folder.is_local else str(Path(folder.path) / START)


def _texts(inputs: Any) -> list[str]:
    """Every distinct title and selling point of the inputs, in order."""
    texts: set[str] = set()
    for name, columns in (("products", ("title", "selling_points")), ("references", ("titles",))):
        for batch in inputs[name].batches(columns):
            for column in columns:
                values = batch.column(column)
                values = pc.list_flatten(values) if column != "title" else values
                texts.update(text for text in values.to_pylist() if text)
    return sorted(texts)


class _shown:
    """A thread that shows the status actor's progress while the block runs."""

    def __init__(self, status: Any, progress: Progress):
        self.status, self.progress, self.stop, self.step = status, progress, threading.Event(), 0
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.stop.wait(_POLL_SECONDS):
            self._show()

    def _show(self) -> None:
        if values := ray.get(self.status.read.remote())[0]:
            self.progress.advance(values["step"] - self.step, _numbers(values))  # less than nothing after a restart
            self.step = values["step"]

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: Any) -> None:
        self.stop.set()
        self.thread.join()
        self._show()


def _numbers(values: dict[str, Any]) -> str:
    """Loss, tokens a second and MFU; nothing before the first step."""
    if values.get("loss") is None:
        return ""
    return f"loss {values['loss']:.3f}  {values['tokens_per_second']:,.0f} tokens/s  MFU {values['mfu']:.0%}"


def _raise_failure(status: Any) -> None:
    """Raise the error that no restart can cure, if a worker reported one."""
    failure = ray.get(status.read.remote())[1]
    if failure is not None:
        kind, message = failure
        raise getattr(adgen.errors, kind, RunError)(message)


def _why(error: BaseException) -> str:
    """The first thing that Ray Train says, which may be a heading with what it is about in the next line."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(said[: 2 if said[0].endswith(":") else 1])[:500].rstrip(".")
