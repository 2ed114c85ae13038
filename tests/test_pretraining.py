"""Pretraining on a real Ray: tables in, a model directory out, and nothing lost in between."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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
from adgen.on_ray.training.batches import MakeBatch
from adgen.on_ray.training.examples import prepare_examples
from adgen.on_ray.training.job import pretrain
from adgen.on_ray.training.run_folder import CHECKPOINTS, RunFolder, checkpoint_name
from adgen.on_ray.training.settings import CheckpointSettings
from adgen.on_ray.training.source import Source
from adgen.on_ray.training.status import StatusActor

ROOT = Path(__file__).parents[1]
SAME = 2e-4  # relative: what fp32 sums in another order come to after 20 steps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return training_inputs(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def finished(ray_cluster, inputs) -> Path:
    """A whole run with one worker."""
    out = inputs / "finished"
    progress = Silent()
    summary = pretrain(small_run(inputs, out), progress)
    assert progress.phases == ["start", "examples", "train"]
    assert progress.done == STEPS
    assert re.fullmatch(r"loss \d+\.\d{3}  [1-9][\d,]* tokens/s  MFU 1?\d?\d%", progress.numbers)
    assert summary.examples == 48
    assert summary.held_out_loss is not None
    return out


def test_twenty_steps_have_the_golden_losses(finished):
    assert losses(finished) == pytest.approx(golden(), rel=1e-5)
    assert losses(finished)[-1] < losses(finished)[0]


def test_the_model_directory_is_what_a_refresh_loads(finished):
    directory = finished / "model"
    model = load(directory)
    prompter = Prompter.load(directory, model.config)
    request = Request("fresh mug", 1, ("warm",), condition=torch.zeros(3, 64, 64))
    [made] = generate(model, prompter, [request], SamplingSettings(max_title_tokens=4))
    assert made.codes.shape == (model.config.image.tokens_per_picture,)
    facts = json.loads((directory / "training.json").read_text())
    assert (facts["stage"], facts["steps"], facts["seed"], facts["examples"]) == ("personal", STEPS, 1, 48)
    assert facts["held_out_loss"] > 0
    assert "torch" in facts["versions"]


def test_a_run_leaves_logs_and_sample_sheets(finished):
    assert list((finished / "tensorboard").glob("events.*"))
    [sheet] = (finished / "samples").glob("*.png")
    assert len(sheet.with_suffix(".txt").read_text().splitlines()) == 2
    assert [each["step"] for each in RunFolder(str(finished)).checkpoints()] == [10, 20]


def test_no_file_of_a_run_names_a_user(finished, inputs):
    for path in [p for p in (*finished.rglob("*"), *(inputs / "cache").rglob("*")) if p.is_file()]:
        assert b"shop3-u0" not in path.read_bytes(), path


def test_a_finished_run_is_not_trained_again(finished, inputs):
    before = (finished / "model" / "training.json").stat().st_mtime_ns
    summary = pretrain(small_run(inputs, finished), Silent())
    assert summary.finished_before
    assert (finished / "model" / "training.json").stat().st_mtime_ns == before


@pytest.mark.long
def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_run_goes_on_to_the_bit(finished, inputs, tmp_path):
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
    assert losses(out) == losses(finished)
    tensors, whole = (dict(read_tensors(folder / "model" / "model.safetensors")) for folder in (out, finished))
    assert all(torch.equal(tensors[name], whole[name]) for name in whole)


def fill_the_disk(checkpoints: Path) -> None:
    """When the first checkpoint is complete (a run begins by removing what is half-written), let the second lead to /dev/full."""
    wait_for(checkpoints / checkpoint_name(8) / "complete.json")
    full = checkpoints / checkpoint_name(16)
    full.mkdir()
    (full / "state.pt").symlink_to("/dev/full")


def wait_for(path: Path) -> None:
    """Until it is there; a run that never makes it ends by pytest's own timeout."""
    while not path.exists():
        time.sleep(0.02)


def test_a_loss_that_is_no_number_names_the_batch(ray_cluster, inputs, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(inputs / "model", directory)
    tensors = dict(read_tensors(directory / "model.safetensors"))
    tensors["gen_head.vision_head.bias"] = tensors["gen_head.vision_head.bias"] * float("nan")
    write_tensors(directory, tensors)
    with pytest.raises(RunError, match=r"step 1: the loss of micro-batch 0 is nan; its examples are \[\d+, \d+\] of "):
        pretrain(small_run(inputs, tmp_path / "out", model=str(directory)), Silent())
    assert not (tmp_path / "out" / "model").exists()


def test_a_killed_driver_and_a_killed_worker_change_no_loss(finished, inputs, tmp_path):
    """SIGKILL to `jobs/pretrain.py` after its first checkpoint; two workers go on with what one began; SIGKILL to one of them after
    the second checkpoint, and Ray Train starts the two again from there. No checkpoint is made twice."""
    out = tmp_path / "out"
    marks = [out / CHECKPOINTS / checkpoint_name(step) / "complete.json" for step in (4, 8)]
    kill_the_driver(inputs, out, marks[0])
    written = [marks[0].stat().st_mtime_ns]
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(marks[1], killed), daemon=True)
    killer.start()
    workers = {"num": 2, "zero_stage": 2, "max_failures": 2}
    summary = pretrain(small_run(inputs, out, workers=workers, checkpoint={"every": 4, "keep": 9}), Silent())
    killer.join()
    assert summary.resumed
    assert killed, "no worker was found to kill"
    assert [mark.stat().st_mtime_ns for mark in marks] == [*written, killed[1]], "a checkpoint was made again"
    assert losses(out) == pytest.approx(golden(), rel=SAME)


def kill_the_driver(inputs: Path, out: Path, when: Path) -> None:
    """The command with one worker of DeepSpeed, on this process's Ray, until the file `when` is there. Its DeepSpeed file goes as
    soon as the run has begun: workers run elsewhere, and get what it holds."""
    out.parent.joinpath("zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    command = [
        sys.executable, str(ROOT / "jobs" / "pretrain.py"), str(settings_file(out.parent, inputs)), "--out", out.name,
        "--workers.deepspeed", "zero.json", "--address", ray.get_runtime_context().gcs_address,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for needed in (out / "run.json", when):
        deadline = time.time() + 240
        while not needed.exists():
            assert process.poll() is None, "the job ended before it could be killed"
            assert time.time() < deadline
            time.sleep(0.05)
        out.parent.joinpath("zero.json").unlink(missing_ok=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(when.read_text())["zero_stage"] == 2
    assert not (out / "model").exists()


def kill_a_worker(when: Path, killed: list[int]) -> None:
    """SIGKILL one of our own Ray Train workers as soon as the file `when` is there; its process id and the file's time."""
    wait_for(when)
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(cmdline(p))]
    os.kill(workers[-1].pid, signal.SIGKILL)
    killed += [workers[-1].pid, when.stat().st_mtime_ns]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


ENCODER = {"image_size": 32, "resize_to": 32, "patch_size": 8, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
STAGES = {
    "tokenizer": {"optimizer": {"learning_rate": 2e-3}},
    "pbs": {"model": "", "cache": "cache", "contrast": {"encoder": ENCODER, "pool": 20}},
}


@pytest.mark.parametrize("stage", [pytest.param("tokenizer", marks=pytest.mark.long), "pbs"])
def test_stages_without_a_prompt_train_and_write_their_model(ray_cluster, inputs, tmp_path, monkeypatch, stage):
    """The places are relative to where the command is given."""
    monkeypatch.chdir(tmp_path)
    made = pretrain(small_run(inputs, "out", stage=stage, steps=2, checkpoint={"every": 2}, **STAGES[stage]), Silent())
    assert made.held_out_loss > 0
    assert len(losses(Path("out"))) == 2
    assert list(Path("out", "samples").glob("*.png"))
    assert stage != "pbs" or list(Path("cache").iterdir())
    load_pbs(Path("out", "model")) if stage == "pbs" else load(Path("out", "model"))


def test_what_is_wrong_with_an_example_is_reported_as_it_is(ray_cluster, finished, inputs, tmp_path):
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
