"""What each of Ray Train's workers does: batches in, steps, checkpoints, and the model in the end."""

import json
import platform
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

import adgen
from adgen import errors
from adgen.errors import RunError
from adgen.on_ray.training.batches import MicroBatch, read_batches
from adgen.on_ray.training.checkpoints import checkpoint_here, require_number, writing
from adgen.on_ray.training.log import TrainingLog
from adgen.on_ray.training.resume import needs_universal, newest_checkpoint
from adgen.on_ray.training.run_folder import FACTS, MODEL, RunFolder, checkpoint_name
from adgen.on_ray.training.source import Job
from adgen.on_ray.training.throughput import Speed
from adgen.on_ray.training.worker_setup import fresh_task, make_step, worker_device
from adgen.records import digest
from adgen.training.schedule import learning_rate
from adgen.training.step import first_nonfinite
from adgen.training.task import Metrics, metric, on_device, trained_modules


class Worker:
    """One worker of a run."""

    def __init__(self, job: Job):
        self.job, self.source, self.settings, self.status = job, job.source, job.source.settings, job.status
        context = ray.train.get_context()
        self.rank, self.local_rank = context.get_world_rank(), context.get_local_rank()
        self.device = worker_device(self.settings, context.get_local_world_size())
        self.folder = RunFolder(self.settings.out)
        self.share = self.settings.share
        self.found = newest_checkpoint(self.folder, self.rank, self.settings.workers.num)
        self.number = self.found["step"] if self.found else 0
        self.task = fresh_task(self.source)
        self.step = make_step(self.task, self.settings, self.found, self.device, job.deepspeed)
        if self.found:
            self._load_checkpoint()
        self.reader = self.source.reader()
        self.collator = self.source.collator()
        self.held_out = self.reader.rows(self.source.held_out(self.reader))
        self.held_out_loss = self.found["held_out_loss"] if self.found else None
        self.log = TrainingLog(self.folder, self.number) if self.rank == 0 else None
        self.speed = Speed(self.settings, self.device)

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the newest checkpoint to the last step, then write the model."""
        settings, first = self.settings, self.number
        per_step = self.share.accumulation * settings.workers.num
        shard = ray.train.get_dataset_shard("train")
        batches = read_batches(shard, self.status, first * per_step, self.rank, settings, self.barrier)
        self._report(first)
        while self.number < settings.steps:
            with self.speed.waiting():
                step = [next(batches) for _ in range(self.share.accumulation)]
            self.one_step(step)
            last = self.number == settings.steps
            if settings.evaluation.samples and (last or self.number % settings.evaluation.every == 0):
                self.show_samples()
            if last or self.number % settings.checkpoint.every == 0:
                self.checkpoint()
        batches.close()
        self.write_model()

    def one_step(self, batches: list[MicroBatch]) -> None:
        """Forward, backward, apply; then what the task does by itself, and the logs."""
        self.task.train()
        metrics: Metrics = {}
        losses = []
        for batch in batches:
            tensors = on_device(batch.tensors, self.task, self.device)
            # Dropout is a function of seed and place.
            torch.manual_seed(int(digest("dropout", self.settings.seed, batch.number)[:15], 16))
            loss, found = self.step.forward(tensors)
            self.step.backward(loss)
            losses.append(loss.detach())
            found["loss"] = metric(loss)
            metrics = {name: metrics.get(name, 0) + value for name, value in found.items()}
            self.speed.count(self.task, batch.tensors, tensors)
        if (bad := first_nonfinite(losses)) is not None:  # before any weight changes; the other workers wait in `apply`
            raise RunError(
                f"step {self.number + 1}: the loss of micro-batch {batches[bad].number} is {float(losses[bad])}; its examples are "
                f"{batches[bad].examples} of {self.source.examples}. The last checkpoint is kept: look at those examples, or lower "
                "optimizer.learning_rate, and train again from there"
            )
        rate = learning_rate(self.number, self.settings.steps, self.settings.optimizer)
        norm = self.step.apply(rate)
        self.task.after_step(self.number)
        self.number += 1
        values = self._added_up(metrics)
        if self.rank == 0:
            self._log_step(values, {"learning_rate": rate, "gradient_norm": norm})

    def _log_step(self, values: dict[str, float], more: dict[str, float]) -> None:
        loss = values.pop("loss")
        speed = self.speed.lap()
        self.log.step(self.number, loss, values | more | speed | self.task.state_metrics())
        self._report(self.number, loss=loss, **values, **speed)

    def _report(self, step: int, **values: float) -> None:
        if self.rank == 0:
            self.status.update.remote({"step": step, **values})

    # -- looking -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """The loss on the held-out examples; every worker computes the same."""
        if not self.held_out:
            return None
        self.task.eval()
        size, losses = max(2, self.share.micro_batch), []
        for start in range(0, len(self.held_out), size):
            rows = self.held_out[start : start + size]
            losses.append(float(self.step.forward(on_device(self.collator(rows, None), self.task, self.device))[0]) * len(rows))
        return sum(losses) / len(self.held_out)

    def show_samples(self) -> None:
        """A sheet of what the model makes of held-out examples, by the first worker."""
        rows = self.held_out[: self.settings.evaluation.samples]
        if not rows:
            return
        self.task.eval()
        with self.step.whole_task(partial(fresh_task, self.source)) as task:
            if self.rank == 0:
                self.log.sheet(self.number, *task.samples(rows, self.collator, self.settings.seed))

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """State of all workers to the run's folder; complete when `complete.json` is there."""
        self.held_out_loss = self.evaluate()
        require_number(self.held_out_loss, self.number)
        last_good = self.found["step"] if self.found else None
        with writing(self.folder, self.number, last_good), tempfile.TemporaryDirectory(prefix="adgen-checkpoint-") as folder:
            self.step.save(Path(folder))
            state = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"step": self.number}, checkpoint=state, checkpoint_dir_name=checkpoint_name(self.number))
        self.barrier()
        if self.rank == 0:
            self.log.scalars(self.number, {} if self.held_out_loss is None else {"held_out_loss": self.held_out_loss})
            self._require_run()
            with writing(self.folder, self.number, last_good):
                self.log.sync()
                self.folder.commit(self._checkpoint_facts(), self.settings.checkpoint.keep)
        self.barrier()
        self.found = self._checkpoint_facts()
        self.speed.restart()

    def _require_run(self) -> None:
        """Raise what has stopped the run, such as a driver that took it over: nothing more is committed then."""
        if (failure := ray.get(self.status.read.remote())[1]) is not None:
            kind, message = failure
            raise getattr(errors, kind, RunError)(message)

    def _checkpoint_facts(self) -> dict[str, Any]:
        return {
            "step": self.number,
            "stage": self.settings.stage,
            "workers": self.settings.workers.num,
            "engine": self.step.kind,
            "zero_stage": getattr(self.step, "zero_stage", 0),
            "held_out_loss": self.held_out_loss,
        }

    def _load_checkpoint(self) -> None:
        universal = needs_universal(self.found, self.settings)
        with checkpoint_here(self.folder, self.found, universal, self.rank, self.local_rank, self.barrier) as local:
            self.step.load(local)

    # -- the end -------------------------------------------------------------------------------------------------

    def write_model(self) -> None:
        """The model directory, `training.json` last."""
        require_number(self.held_out_loss, self.number)
        self.task.eval()
        with self.step.whole_task(partial(fresh_task, self.source), exact=True) as task:
            if self.rank == 0:
                self._require_run()
                with tempfile.TemporaryDirectory(prefix="adgen-model-") as scratch:
                    task.export(Path(scratch))
                    self._write_facts(Path(scratch))
                    self.folder.put(Path(scratch), MODEL)
        if self.rank == 0:
            self.log.close()
            self._report(self.number, held_out_loss=self.held_out_loss)
        self.barrier()

    def _write_facts(self, directory: Path) -> None:
        """How this model came about; earlier stages' facts are kept as its history."""
        start = self.source.directory / FACTS if self.source.start else None
        earlier = json.loads(start.read_text(encoding="utf-8")) if start and start.exists() else None
        facts = self.job.facts | {
            "steps": self.number,
            "held_out_loss": self.held_out_loss,
            "examples": self.reader.index.num_rows,
            "measures": self.task.state_metrics(),
            "trained_modules": sorted(trained_modules(self.task.model)) if hasattr(self.task, "model") else [],
            "versions": {
                "adgen": adgen.__version__,
                "torch": torch.__version__,
                "ray": ray.__version__,
                "python": platform.python_version(),
            },
            "after": earlier,
        }
        (directory / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    # -- small parts ---------------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.settings.workers.num > 1:
            dist.barrier()

    def _added_up(self, metrics: Metrics) -> dict[str, float]:
        """sum / count of each, over all workers."""
        names = sorted(metrics)
        totals = torch.stack([metrics[name] for name in names])
        if self.settings.workers.num > 1:
            dist.all_reduce(totals)
        return {name: float(total / count) if count else 0.0 for name, (total, count) in zip(names, totals.tolist(), strict=True)}
