"""Training on a real Ray, the long proofs: every stage interrupted, a killed driver on S3, errors up to the command."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.progress import Silent
from support.training import golden, losses, settings_file, small_run, training_inputs

from adgen.errors import ModelError, RunError
from adgen.model.checkpoint import load
from adgen.model.config import ModelConfig
from adgen.model.weight_files import read_tensors
from adgen.on_ray.training.job import pretrain
from adgen.on_ray.training.run_folder import CHECKPOINTS, RunFolder, checkpoint_name

ROOT = Path(__file__).parents[2]
SAME = 2e-4  # relative: what fp32 sums in another order come to after 20 steps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return training_inputs(tmp_path_factory.mktemp("training"))


ENCODER = {"image_size": 32, "resize_to": 32, "patch_size": 8, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
STAGES = {
    "tokenizer": {"optimizer": {"learning_rate": 2e-3}},
    "general": {"dropout": {"prompt": 0.5, "foreground": 0.5}, "workers": {"engine": "deepspeed", "bf16": True}},
    "personal": {"dropout": {"prompt": 0.3, "history": 0.3}},
    "pbs": {
        "model": "",
        "cache": "cache",
        "workers": {"zero_stage": 2},
        "contrast": {"encoder": ENCODER, "pool": 20, "momentum": 0.9},
    },
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_goes_on_to_the_bit(ray_cluster, inputs, tmp_path, monkeypatch, stage):
    """A run whose process ended after its first checkpoint, against one that was left alone: the same losses and the same
    weights. The personal model has dropout inside; the places are relative to where the command is given."""
    monkeypatch.chdir(tmp_path)
    if stage == "personal":
        with_dropout(inputs / "model", Path("model"))
    changes = {"stage": stage, "steps": 4, "checkpoint": {"every": 2}, "evaluation": {"examples": 4, "samples": 2, "every": 4}}
    changes |= {"model": "model" if stage == "personal" else str(inputs / "model")} | STAGES[stage]
    whole = pretrain(small_run(inputs, "whole", **changes), Silent())
    assert not whole.resumed
    first = as_a_crash_leaves_it(Path("whole"), Path("again"), 2)
    resumed = pretrain(small_run(inputs, "again", **changes), Silent())
    assert resumed.resumed
    assert first.stat().st_mtime_ns == (Path("whole") / first.relative_to("again")).stat().st_mtime_ns
    assert losses(Path("again")) == losses(Path("whole"))
    assert len(losses(Path("whole"))) == 4
    assert resumed.held_out_loss == whole.held_out_loss
    name = "pbs.safetensors" if stage == "pbs" else "model.safetensors"
    tensors, before = (dict(read_tensors(Path(out) / "model" / name)) for out in ("again", "whole"))
    assert all(torch.equal(tensors[key], before[key]) for key in before)
    assert {tensor.dtype for tensor in before.values() if tensor.is_floating_point()} == {torch.float32}
    assert stage != "pbs" or list(Path("cache").iterdir())
    if stage == "general":  # in bf16, beside a tokenizer that must find the codes it found before
        start = dict(read_tensors(inputs / "model" / name))
        tokenizer = [key for key in start if key.startswith("gen_vision_model.")]
        assert tokenizer
        assert all(torch.equal(before[key], start[key]) for key in tokenizer)


def with_dropout(model: Path, into: Path) -> None:
    """The model again, with dropout in its preference modules."""
    shutil.copytree(model, into)
    config = ModelConfig.load(into)
    config.model_copy(update={"preference": config.preference.model_copy(update={"dropout": 0.2})}).save(into)


def as_a_crash_leaves_it(whole: Path, into: Path, step: int) -> Path:
    """A finished run's folder as it was when its process died after checkpoint `step`, with a later one half-written; the
    mark of the checkpoint."""
    shutil.copytree(whole, into, ignore=shutil.ignore_patterns("model", "samples", "tensorboard"))
    for late in sorted((into / CHECKPOINTS).glob("step-*"))[1:]:
        (late / "complete.json").unlink()
    return into / CHECKPOINTS / checkpoint_name(step) / "complete.json"


def test_what_is_wrong_with_an_example_is_said_as_it_is(ray_cluster, inputs, tmp_path):
    """A batch that cannot be made is no crash of a worker, to be tried again and again."""
    shutil.copytree(inputs / "model", tmp_path / "model")
    config = ModelConfig.load(tmp_path / "model")
    decoder = config.decoder.model_copy(update={"max_positions": 40})
    config.model_copy(update={"decoder": decoder}).save(tmp_path / "model")
    settings = small_run(inputs, tmp_path / "out", model=str(tmp_path / "model"), workers={"max_failures": 1})
    with pytest.raises(ModelError, match=r"example \d+: prompt, title and picture need \d+ positions, the model has 40"):
        pretrain(settings, Silent())


def test_weights_that_became_no_numbers_are_never_saved(ray_cluster, inputs, tmp_path):
    """A rate so high that one step spoils what the held-out examples are judged by."""
    settings = small_run(
        inputs,
        tmp_path / "out",
        steps=1,
        stage="general",
        optimizer={"learning_rate": 1e30},
        evaluation={"examples": 4, "samples": 0},
    )
    with pytest.raises(RunError, match=r"step 1: the held-out loss is (nan|inf): nothing is saved"):
        pretrain(settings, Silent())
    assert RunFolder(str(tmp_path / "out")).checkpoints() == []
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.kill
def test_a_killed_driver_goes_on_from_s3_with_twice_the_workers(inputs, tmp_path, s3_access, s3_uri, aws_environment):
    """SIGKILL to `jobs/pretrain.py` after its first checkpoint; the same command finishes, with the same losses, and does not
    begin again: the checkpoint is the one that was there. Two workers of one machine go on with what one began."""
    out = f"{s3_uri}/run"
    command = [
        sys.executable, str(ROOT / "jobs" / "pretrain.py"), str(settings_file(tmp_path, inputs)), "--out", out, "--json",
        "--workers.engine", "deepspeed", "--workers.zero-stage", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 240
    while not RunFolder(out).checkpoints():
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunFolder(out).read_json("model/training.json") is None
    mark = f"{RunFolder(out).path}/{CHECKPOINTS}/{checkpoint_name(4)}/complete.json"
    written = RunFolder(out).files.get_file_info(mark).mtime_ns
    done = subprocess.run([*command, "--workers.num", "2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["resumed"]
    assert RunFolder(out).files.get_file_info(mark).mtime_ns == written, "the first checkpoint was made again"
    RunFolder(out).fetch("model", tmp_path / "model")
    assert load(tmp_path / "model").config.name == "small"
    folder = RunFolder(out)
    with folder.files.open_input_file(f"{folder.path}/losses.txt") as source:
        (tmp_path / "losses.txt").write_bytes(source.read())
    assert losses(tmp_path) == pytest.approx(golden(), rel=SAME)
