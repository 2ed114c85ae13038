"""Settings of the pretraining job: what is learned (`TrainingSettings`), and where and how fast."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from adgen.config import Place, Settings
from adgen.errors import SettingsError
from adgen.records import digest
from adgen.training.order import Share
from adgen.training.settings import LANGUAGE_STAGES, UNTRAINED, TrainingSettings

TABLES = ("products", "histories", "references")
"""What training reads of `inputs`."""


class WorkerSettings(Settings):
    """How the work spreads over Ray Train's workers."""

    num: int = Field(default=1, gt=0)
    """Workers; on a GPU cluster one a GPU."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Samples that a worker computes at once; default all of its share. The rest of a batch is accumulated."""
    engine: Literal["auto", "torch", "deepspeed"] = "auto"
    """`torch` runs one worker without DeepSpeed; `auto` takes it for one worker, where DeepSpeed has nothing to shard and costs
    seconds of start, and DeepSpeed for more. A run keeps its engine: choose deepspeed for one worker that shall become several."""
    deepspeed: Path | None = None
    """A DeepSpeed JSON file, such as cluster/deepspeed/zero2.json; the driver's: workers get what it holds. Batch, clipping and
    precision come from here."""
    zero_stage: Literal[1, 2, 3] | None = None
    """ZeRO stage; default the file's, or 1."""
    bf16: bool | None = None
    """Default: on GPUs for the language stages. The torch engine keeps fp32 weights and computes in bf16; DeepSpeed computes with
    bf16 weights and keeps an fp32 copy, which is what it exports. The tokenizer can with the torch engine alone, and pbs cannot."""
    gradient_checkpointing: bool = False
    """Keep one input a decoder layer and compute the rest again: less memory, a third more time."""
    cpus: float = Field(default=1.0, gt=0)
    """Logical CPUs that Ray sets aside for a worker."""
    threads: int | None = Field(default=None, gt=0)
    """Threads of a worker on CPUs; default the machine's, shared among its workers."""
    loaders: int = Field(default=1, gt=0)
    """Processes that make batches."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts after a crashed worker before the job gives up."""
    peak_tflops: float | None = Field(default=None, gt=0)
    """Of one worker's device, for the MFU; default known GPUs' data sheets, on CPUs a measured matrix product."""


class CheckpointSettings(Settings):
    """When state is saved, and how much of it is kept."""

    every: int = Field(default=200, gt=0)
    """Steps between checkpoints; the last step has one, too."""
    keep: int = Field(default=2, gt=0)
    """Newest checkpoints that are kept; the one with the smallest held-out loss is kept, too."""


class PretrainSettings(TrainingSettings):
    """Train one stage: tables of products, histories and references in, a model directory out."""

    inputs: Place = ""
    """Folder or URI of the tables products, histories and references."""
    model: str = ""
    """Where to start: a model directory (path or URI), or the name of a size (tiny, janus-pro-1b, ...) for new weights."""
    out: Place = ""
    """Folder or URI of the run: checkpoints, logs, samples and in the end OUT/model."""
    dinov2: Place = ""
    """A DINOv2 directory in Hugging Face layout (path or URI), for a start that has no weights for seeing products: a Janus-Pro
    directory. `random` begins with untrained ones."""
    cache: Place = ""
    """Folder or URI of prepared examples, shared by runs; default OUT/examples."""
    join_memory: str = Field(default="2GB", pattern=r"^\d+(\.\d+)?[KMGT]i?B$")
    """Of the driver, while it joins tables; what does not fit is spilled to TMPDIR."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: str | None = None
    """A running cluster to join; default RAY_ADDRESS, else a local one is started."""
    workers: WorkerSettings = WorkerSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    def with_whole_paths(self) -> Self:
        """The same with absolute local paths, but for the model, which may be the name of a size: the driver opens it."""
        whole = super().with_whole_paths()
        return whole.model_copy(update={"dinov2": UNTRAINED}) if self.dinov2 == UNTRAINED else whole

    @property
    def share(self) -> Share:
        """How a batch is cut."""
        micro = self.workers.micro_batch or self.batch // self.workers.num
        return Share(self.batch, micro, self.workers.num)

    @property
    def engine(self) -> str:
        """`torch` or `deepspeed`."""
        if self.workers.engine != "auto":
            return self.workers.engine
        return (
            "torch" if self.workers.num == 1 and self.workers.deepspeed is None and self.workers.zero_stage is None else "deepspeed"
        )

    def identity(self) -> dict:
        """The settings that a run may not change while it is resumed: all that decides what is learned. It goes out with the model,
        so it names no place: photographs are told by a digest of their classes' names."""
        names = set(TrainingSettings.model_fields) - {"evaluation"}
        own: dict[str, Any] = {"examples": self.evaluation.examples}
        if self.stage == "pbs":  # a sample is contrasted with those of its micro-batch: it decides what is learned
            own["micro_batch"] = self.share.micro_batch
        if self.contrast.photographs is not None:
            shown = {"photographs": digest(*self.contrast.style_set("train").classes)}
            own["contrast"] = self.contrast.model_dump(mode="json") | shown
        return self.model_dump(mode="json", include=names) | own

    @model_validator(mode="after")
    def _workers_fit(self) -> Self:
        if self.optimizer.kind == "muon" and self.engine == "deepspeed":
            raise ValueError("optimizer.kind muon needs whole matrices: one worker of the torch engine, not DeepSpeed's shards")
        share, num = self.share, self.workers.num
        if self.batch % num or share.micro_batch * num * share.accumulation != self.batch:
            raise ValueError(
                f"batch {self.batch} is not workers.num {num} x workers.micro_batch {share.micro_batch} x a whole number"
            )
        if self.workers.engine == "torch" and num > 1:
            raise ValueError(f"workers.engine torch runs one worker, not {num}: leave it to auto, or take deepspeed")
        if self.stage in ("tokenizer", "pbs") and self.workers.zero_stage == 3:
            raise ValueError(f"stage {self.stage} updates weights itself and needs them whole: workers.zero_stage 1 or 2")
        can_bf16 = self.stage in LANGUAGE_STAGES or (self.stage == "tokenizer" and self.engine == "torch")
        if self.workers.bf16 and not can_bf16:
            raise ValueError(
                f"stage {self.stage} updates weights by small averages, which bf16 would lose: workers.bf16 false"
                + (", or workers.engine torch" if self.stage == "tokenizer" else "")
            )
        if self.stage == "pbs" and share.micro_batch < 2:
            raise ValueError("stage pbs contrasts the samples of a micro-batch: workers.micro_batch of 2 at least")
        return self

    def require(self) -> None:
        """SettingsError names what neither file nor command line gave."""
        missing = [f"--{name}" for name in ("inputs", "model", "out") if not getattr(self, name)]
        if self.stage == "pbs" and "--model" in missing:
            missing.remove("--model")  # a new encoder has its sizes in contrast.encoder
        if missing:
            raise SettingsError(f"neither the file nor the command line gives {', '.join(missing)}")
