"""Pretraining on a real Ray: tables in, a model directory out, and nothing lost in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from small_training import STEPS, Silent, golden, losses, small_run, training_inputs, without_references

from adgen.config import load_settings
from adgen.errors import InputError, ModelError, RunError, SettingsError, StoreError
from adgen.generation.generate import Request, generate
from adgen.generation.prompt import Prompter
from adgen.generation.sampling import SamplingSettings
from adgen.model.checkpoint import load
from adgen.model.weight_files import read_tensors, write_tensors
from adgen.on_ray.pretraining import pretrain
from adgen.on_ray.pretraining_recipe import Recipe, ShopSettings, draw_shop
from adgen.on_ray.pretraining_store import CHECKPOINTS, RunFolder, checkpoint_name

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
    assert progress.values["step"] == STEPS
    assert progress.values["tokens_per_second"] > 0
    assert 0 < progress.values["mfu"] < 2
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


def test_two_workers_one_of_them_killed_give_the_same_losses(finished, inputs, tmp_path):
    """Ray Train starts the group again; the run goes on at its last complete checkpoint, in the same order."""
    out = tmp_path / "out"
    settings = small_run(inputs, out, workers={"num": 2, "zero_stage": 2, "max_failures": 2}, checkpoint={"every": 6})
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(out / CHECKPOINTS / checkpoint_name(6) / "complete.json", killed))
    killer.start()
    pretrain(settings, Silent())
    killer.join()
    assert killed, "no worker was found to kill"
    assert losses(out) == pytest.approx(golden(), rel=SAME)


def kill_a_worker(when: Path, killed: list[int]) -> None:
    """SIGKILL one of our own Ray Train workers as soon as the file `when` is there."""
    deadline = time.time() + 240
    while not when.exists():
        if time.time() > deadline:
            return
        time.sleep(0.02)
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(cmdline(p))]
    if workers:
        os.kill(workers[-1].pid, signal.SIGKILL)
        killed.append(workers[-1].pid)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_full_disk_keeps_the_last_good_checkpoint(ray_cluster, inputs, tmp_path):
    """The kernel says ENOSPC: a file of the second checkpoint leads to /dev/full. The first one is whole, and the same
    command would go on from it, as it does after a killed driver below."""
    out = tmp_path / "out"
    settings = small_run(inputs, out, checkpoint={"every": 2}, evaluation={"examples": 4, "samples": 0})
    full = out / CHECKPOINTS / checkpoint_name(4)
    full.mkdir(parents=True)
    (full / "state.pt").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"step 4 could not be written .*No space left on device.*step-00000002\) stays"):
        pretrain(settings, Silent())
    assert [each["step"] for each in RunFolder(str(out)).checkpoints()] == [2]
    state = torch.load(out / CHECKPOINTS / checkpoint_name(2) / "state.pt", weights_only=True)
    assert set(state) == {"task", "optimizer"}
    assert losses(out) == pytest.approx(golden()[:4], rel=1e-5)


def test_a_loss_that_is_no_number_names_the_batch(ray_cluster, inputs, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(inputs / "model", directory)
    tensors = dict(read_tensors(directory / "model.safetensors"))
    tensors["gen_head.vision_head.bias"] = tensors["gen_head.vision_head.bias"] * float("nan")
    write_tensors(directory, tensors)
    with pytest.raises(RunError, match=r"step 1: the loss of micro-batch 0 is nan; its examples are \[\d+, \d+\] of "):
        pretrain(small_run(inputs, tmp_path / "out", model=str(directory)), Silent())
    assert not (tmp_path / "out" / "model").exists()


# -- what is refused before any work --------------------------------------------------------------------------------


def test_another_stage_or_setting_in_the_same_folder_is_refused(inputs, tmp_path):
    folder = RunFolder(str(tmp_path))
    folder.claim(small_run(inputs, tmp_path).identity(), {})
    assert folder.claim(small_run(inputs, tmp_path, workers={"num": 2}, checkpoint={"every": 3}).identity(), {})
    with pytest.raises(RunError, match="with stage 'personal', and now it is 'general'"):
        folder.claim(small_run(inputs, tmp_path, stage="general").identity(), {})
    with pytest.raises(RunError, match=r"with optimizer\.learning_rate 0\.002, and now it is 0\.1"):
        folder.claim(small_run(inputs, tmp_path, optimizer={"learning_rate": 0.1}).identity(), {})


def test_inputs_without_references_are_refused(inputs, tmp_path):
    empty = without_references(inputs / "shop", tmp_path / "empty")
    with pytest.raises(InputError, match="table 'references' has no rows"):
        pretrain(small_run(inputs, tmp_path / "a", inputs=str(empty)), Silent())
    (empty / "references.parquet").unlink()
    with pytest.raises(InputError, match="table 'references' is missing"):
        pretrain(small_run(inputs, tmp_path / "b", inputs=str(empty)), Silent())


def test_a_start_that_is_no_model_is_refused(inputs, tmp_path):
    with pytest.raises(ModelError, match="no such model directory"):
        pretrain(small_run(inputs, tmp_path / "out", model=str(tmp_path / "nothing")), Silent())


def test_settings_that_cannot_be_are_refused(inputs, tmp_path):
    for changes, message in (
        ({"batch": 5, "workers": {"num": 2}}, "batch 5 is not workers.num 2"),
        ({"workers": {"num": 2, "engine": "torch"}}, "runs one worker"),
        ({"stage": "tokenizer", "workers": {"zero_stage": 3}}, "zero_stage 1 or 2"),
        ({"losses": {"text": 0, "image": 0}}, "nothing would be learned"),
    ):
        with pytest.raises(ValueError, match=message):
            small_run(inputs, tmp_path, **changes)
    with pytest.raises(SettingsError, match="--inputs, --model, --out"):
        small_run(inputs, "", inputs="", model="").require()


def test_the_command_says_in_a_line_what_is_wrong(tmp_path):
    job = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), str(ROOT / "jobs" / "pretrain.toml")]
    done = subprocess.run([*job, "--batch", "5", "--workers.num", "2"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "batch 5 is not workers.num 2" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


# -- the small model's recipe --------------------------------------------------------------------------------------------


def test_the_recipe_chains_its_stages(tmp_path):
    recipe = load_settings(Recipe, ROOT / "jobs" / "train_tiny.toml").model_copy(update={"out": str(tmp_path)})
    runs = list(recipe.runs())
    assert [run.stage for run in runs] == ["tokenizer", "general", "personal", "pbs"]
    assert [run.model for run in runs] == ["tiny", f"{tmp_path}/tokenizer/model", f"{tmp_path}/general/model", ""]
    assert {run.inputs for run in runs} == {f"{tmp_path}/shop"}
    assert {run.cache for run in runs} == {f"{tmp_path}/examples"}
    for run in runs:
        run.require()
        assert run.engine == "torch"
    assert recipe.shop.split == "train"


def test_a_recipes_shop_is_drawn_once(tmp_path):
    settings = ShopSettings(users=2, products=3, references=4, picture_side=16)
    draw_shop(settings, tmp_path / "shop")
    before = (tmp_path / "shop" / "references.parquet").stat().st_mtime_ns
    draw_shop(settings, tmp_path / "shop")
    assert (tmp_path / "shop" / "references.parquet").stat().st_mtime_ns == before
    assert len(list((tmp_path / "shop" / "references").rglob("*.jpg"))) == 4


# -- the command, killed, on S3 -----------------------------------------------------------------------------------------


@pytest.mark.kill
def test_a_killed_driver_goes_on_from_s3(inputs, tmp_path, s3_access, s3_uri, aws_environment):
    """SIGKILL to `jobs/pretrain.py` after its first checkpoint; the same command finishes, with the same losses."""
    out = f"{s3_uri}/run"
    command = [
        sys.executable, str(ROOT / "jobs" / "pretrain.py"), str(settings_file(tmp_path, inputs)), "--out", out, "--json",
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["resumed"]
    RunFolder(out).fetch("model", tmp_path / "model")
    assert load(tmp_path / "model").config.name == "small"
    folder = RunFolder(out)
    with folder.files.open_input_file(f"{folder.path}/losses.txt") as source:
        (tmp_path / "losses.txt").write_bytes(source.read())
    assert losses(tmp_path) == pytest.approx(golden(), rel=1e-5)


def settings_file(folder: Path, inputs: Path) -> Path:
    """The golden's settings as TOML, with more checkpoints."""
    settings = small_run(inputs, "", checkpoint={"every": 4, "keep": 1})
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
        keep = 1
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
