"""Pretraining on a real Ray: tables in, a model directory out, and nothing lost in between."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch
from support.progress import Silent
from support.training import STEPS, golden, losses, settings_file, small_run, training_inputs

from adgen.errors import ModelError, RunError, StoreError
from adgen.generation.generate import Request, generate
from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.model.checkpoint import load
from adgen.model.config import ModelConfig
from adgen.model.pbs import load_pbs
from adgen.model.weight_files import read_tensors, write_tensors
from adgen.on_ray.training.batches import MakeBatch, MicroBatch
from adgen.on_ray.training.examples import prepare_examples
from adgen.on_ray.training.job import pretrain
from adgen.on_ray.training.run_folder import CHECKPOINTS, RunFolder, checkpoint_name
from adgen.on_ray.training.settings import CheckpointSettings
from adgen.on_ray.training.source import Source
from adgen.on_ray.training.status import StatusActor
from adgen.on_ray.training.throughput import Speed
from adgen.on_ray.training.worker import Worker
from adgen.on_ray.training.worker_setup import fresh_task, make_step

ROOT = Path(__file__).parents[1]
SAME = 2e-4  # relative: what fp32 sums in another order come to after 20 steps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return training_inputs(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def killed(ray_cluster, inputs) -> Path:
    """A whole run, killed twice. `jobs/pretrain.py` with one worker loses that by SIGKILL after its first checkpoint, and Ray Train
    starts another one from there; after the second checkpoint the job itself dies. Two workers go on to the end."""
    out = inputs / "killed"
    marks = [out / CHECKPOINTS / checkpoint_name(step) / "complete.json" for step in (4, 8)]
    written = kill_worker_and_driver(inputs, out, marks)
    progress = Silent()
    workers = {"num": 2, "zero_stage": 2}
    summary = pretrain(small_run(inputs, out, workers=workers, checkpoint={"every": 4, "keep": 9}), progress)
    assert summary.resumed
    assert progress.phases == ["start", "examples", "train"]
    assert progress.done == STEPS
    assert re.fullmatch(r"loss \d+\.\d{3}  [1-9][\d,]* tokens/s  MFU 1?\d?\d%", progress.numbers)
    assert summary.examples == 48
    assert summary.held_out_loss is not None
    assert [mark.stat().st_mtime_ns for mark in marks] == written, "a checkpoint was made again"
    return out


def kill_worker_and_driver(inputs: Path, out: Path, marks: list[Path]) -> list[int]:
    """The command with one worker of DeepSpeed, on this process's Ray: SIGKILL to the worker when the first mark is there, to the
    command when the second is; the marks' times. Its DeepSpeed file goes as soon as the run has begun: workers run elsewhere, and
    get what it holds."""
    out.parent.joinpath("zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    command = [
        sys.executable, str(ROOT / "jobs" / "pretrain.py"), str(settings_file(out.parent, inputs)), "--out", out.name,
        "--workers.deepspeed", "zero.json", "--workers.max-failures", "1", "--address", ray.get_runtime_context().gcs_address,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(out / "run.json", process)
    out.parent.joinpath("zero.json").unlink()
    wait_for(marks[0], process)
    written = [marks[0].stat().st_mtime_ns]
    [worker] = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(cmdline(p))]
    worker.send_signal(signal.SIGKILL)
    wait_for(marks[1], process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(marks[1].read_text())["zero_stage"] == 2
    assert not (out / "model").exists()
    return [*written, marks[1].stat().st_mtime_ns]


def wait_for(path: Path, process: subprocess.Popen | None = None) -> None:
    """Until it is there; a run that never makes it ends by pytest's own timeout."""
    while not path.exists():
        assert process is None or process.poll() is None, "the job ended before it could be killed"
        time.sleep(0.02)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_killed_driver_and_a_killed_worker_change_no_loss(killed):
    """Nor does another number of workers, beyond the order of its sums."""
    assert losses(killed)[:8] == pytest.approx(golden()[:8], rel=1e-5)
    assert losses(killed) == pytest.approx(golden(), rel=SAME)
    assert losses(killed)[-1] < losses(killed)[0]


def test_the_model_directory_is_what_a_refresh_loads(killed):
    directory = killed / "model"
    model = load(directory)
    prompter = Prompter.load(directory, model.config)
    request = Request("fresh mug", 1, ("warm",), condition=torch.zeros(3, 64, 64))
    [made] = generate(model, prompter, [request], SamplingSettings(max_title_tokens=4))
    assert made.codes.shape == (model.config.image.tokens_per_picture,)
    facts = json.loads((directory / "training.json").read_text())
    assert (facts["stage"], facts["steps"], facts["seed"], facts["examples"]) == ("personal", STEPS, 1, 48)
    assert facts["held_out_loss"] > 0
    assert "torch" in facts["versions"]


def test_a_run_leaves_logs_and_sample_sheets(killed):
    assert list((killed / "tensorboard").glob("events.*"))
    [sheet] = (killed / "samples").glob("*.png")
    assert len(sheet.with_suffix(".txt").read_text().splitlines()) == 2
    assert [each["step"] for each in RunFolder(str(killed)).checkpoints()] == [4, 8, 12, 16, 20]


def test_no_file_of_a_run_names_a_user(killed, inputs):
    for path in [p for p in (*killed.rglob("*"), *(inputs / "cache").rglob("*")) if p.is_file()]:
        assert b"shop3-u0" not in path.read_bytes(), path


def test_a_finished_run_is_not_trained_again(killed, inputs):
    before = (killed / "model" / "training.json").stat().st_mtime_ns
    workers = {"num": 2, "zero_stage": 2}
    summary = pretrain(small_run(inputs, killed, workers=workers), Silent())
    assert summary.finished_before
    assert (killed / "model" / "training.json").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def left_alone(ray_cluster, inputs) -> Path:
    """A whole run with one worker, of torch alone."""
    pretrain(small_run(inputs, inputs / "left_alone"), Silent())
    return inputs / "left_alone"


@pytest.mark.long
def test_twenty_steps_of_torch_alone_have_the_golden_losses(left_alone):
    assert losses(left_alone) == pytest.approx(golden(), rel=1e-5)
    assert [each["step"] for each in RunFolder(str(left_alone)).checkpoints()] == [10, 20]


@pytest.mark.long
def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run_goes_on_to_the_bit(left_alone, inputs, tmp_path):
    """The kernel says ENOSPC: a file of the second checkpoint leads to /dev/full. With room again the same command goes on from
    the first, to the losses and the weights of a run that was left alone."""
    out = tmp_path / "out"
    settings = small_run(inputs, out, checkpoint={"every": 8}, evaluation={"examples": 4, "samples": 0})
    filler = threading.Thread(target=fill_the_disk, args=(out / CHECKPOINTS,), daemon=True)
    filler.start()
    with pytest.raises(StoreError, match=r"step 16 could not be written .*No space left on device.*-00000008\) stays. Make room"):
        pretrain(settings, Silent())
    filler.join()
    assert [each["step"] for each in RunFolder(str(out)).checkpoints()] == [8]
    first = out / CHECKPOINTS / checkpoint_name(8) / "complete.json"
    written = first.stat().st_mtime_ns
    summary = pretrain(settings.model_copy(update={"checkpoint": CheckpointSettings(every=8, keep=3)}), Silent())
    assert summary.resumed
    assert first.stat().st_mtime_ns == written
    assert losses(out) == losses(left_alone)
    tensors, whole = (dict(read_tensors(folder / "model" / "model.safetensors")) for folder in (out, left_alone))
    assert all(torch.equal(tensors[name], whole[name]) for name in whole)


def fill_the_disk(checkpoints: Path) -> None:
    """When the first checkpoint is complete (a run begins by removing what is half-written), let the second lead to /dev/full."""
    wait_for(checkpoints / checkpoint_name(8) / "complete.json")
    full = checkpoints / checkpoint_name(16)
    full.mkdir()
    (full / "state.pt").symlink_to("/dev/full")


SAID_OF_NAN = r"step 1: the loss of micro-batch 0 is nan; its examples are \[\d+, \d+\] of "


def spoiled(inputs: Path, directory: Path) -> Path:
    """The model with a weight that is no number."""
    shutil.copytree(inputs / "model", directory)
    tensors = dict(read_tensors(directory / "model.safetensors"))
    tensors["gen_head.vision_head.bias"] = tensors["gen_head.vision_head.bias"] * float("nan")
    write_tensors(directory, tensors)
    return directory


@pytest.mark.long
def test_a_loss_that_is_no_number_ends_the_run_and_names_the_batch(ray_cluster, inputs, tmp_path):
    with pytest.raises(RunError, match=SAID_OF_NAN):
        pretrain(small_run(inputs, tmp_path / "out", model=str(spoiled(inputs, tmp_path / "model"))), Silent())
    assert not (tmp_path / "out" / "model").exists()


def test_a_loss_that_is_no_number_names_the_batch(killed, inputs, tmp_path):
    """Of a worker's step, outside of Ray Train; its batch is one that the run above made."""
    settings = small_run(inputs, tmp_path, model=str(spoiled(inputs, tmp_path / "model")))
    prepared = prepare_examples(settings, str(inputs / "model"))
    source = Source(settings, settings.model, prepared.examples, None)
    places = [0, 1]
    batch = MicroBatch(0, places, source.collator()(source.reader().rows(places), [0, 0]))
    worker = SimpleNamespace(
        source=source, settings=settings, device="cpu", number=0, task=fresh_task(source), speed=Speed(settings, "cpu")
    )
    worker.step = make_step(worker.task, settings, None, "cpu")
    with pytest.raises(RunError, match=SAID_OF_NAN):
        Worker.one_step(worker, [batch])


ENCODER = {"image_size": 32, "resize_to": 32, "patch_size": 8, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
STAGES = {
    "tokenizer": {"optimizer": {"learning_rate": 2e-3}},
    "pbs": {"model": "", "cache": "cache", "contrast": {"encoder": ENCODER, "pool": 20}},
}


@pytest.mark.long
@pytest.mark.parametrize("stage", ["tokenizer", "pbs"])
def test_stages_without_a_prompt_train_and_write_their_model(ray_cluster, inputs, tmp_path, monkeypatch, stage):
    """The places are relative to where the command is given."""
    monkeypatch.chdir(tmp_path)
    made = pretrain(small_run(inputs, "out", stage=stage, steps=2, checkpoint={"every": 2}, **STAGES[stage]), Silent())
    assert made.held_out_loss > 0
    assert len(losses(Path("out"))) == 2
    assert list(Path("out", "samples").glob("*.png"))
    assert stage != "pbs" or list(Path("cache").iterdir())
    load_pbs(Path("out", "model")) if stage == "pbs" else load(Path("out", "model"))


def test_what_is_wrong_with_an_example_is_reported_as_it_is(ray_cluster, killed, inputs, tmp_path):
    """A batch that cannot be made is no crash of a worker, to be tried again and again."""
    shutil.copytree(inputs / "model", tmp_path / "model")
    config = ModelConfig.load(tmp_path / "model")
    decoder = config.decoder.model_copy(update={"max_positions": 40})
    config.model_copy(update={"decoder": decoder}).save(tmp_path / "model")
    settings = small_run(inputs, tmp_path / "out", model=str(tmp_path / "model"))
    prepared, status = prepare_examples(settings, settings.model), StatusActor.remote()
    make = MakeBatch(Source(settings, settings.model, prepared.examples, None), status)
    with pytest.raises(ModelError, match=r"example \d+: prompt, title and picture need \d+ positions, the model has 40") as raised:
        make({"id": 0})
    assert ray.get(status.read.remote())[1] == ("ModelError", str(raised.value))
