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
import torch
from support.progress import Silent
from support.training import STEPS, golden, losses, small_run, training_inputs, without_references

from adgen.config import load_settings
from adgen.errors import InputError, ModelError, OwnedElsewhere, RunError, SettingsError, StoreError
from adgen.generation.generate import Request, generate
from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SamplingChoice, SamplingSettings
from adgen.generation.starter import write_starter_model
from adgen.model.checkpoint import load
from adgen.model.config import ModelConfig
from adgen.model.pbs import load_pbs
from adgen.model.weight_files import read_tensors, write_tensors
from adgen.on_ray.training.job import pretrain, run_identity
from adgen.on_ray.training.ownership import Ownership
from adgen.on_ray.training.recipe import Recipe, ShopSettings, draw_shop, ship
from adgen.on_ray.training.run_folder import CHECKPOINTS, RunFolder, checkpoint_name
from adgen.training.settings import TrainingSettings
from adgen.training.stages import make_task

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


def test_two_workers_one_of_them_killed_give_the_same_losses(finished, inputs, tmp_path):
    """Ray Train starts the group again; the run goes on at its last complete checkpoint, in the same order."""
    out = tmp_path / "out"
    workers = {"num": 2, "zero_stage": 2, "max_failures": 2}
    settings = small_run(inputs, out, workers=workers, checkpoint={"every": 6, "keep": 9})
    killed: list[int] = []
    mark = out / CHECKPOINTS / checkpoint_name(6) / "complete.json"
    killer = threading.Thread(target=kill_a_worker, args=(mark, killed))
    killer.start()
    pretrain(settings, Silent())
    killer.join()
    assert killed, "no worker was found to kill"
    assert mark.stat().st_mtime_ns == killed[1], "the first checkpoint was made again: nothing was resumed"
    assert losses(out) == pytest.approx(golden(), rel=SAME)


def kill_a_worker(when: Path, killed: list[int]) -> None:
    """SIGKILL one of our own Ray Train workers as soon as the file `when` is there; its process id and the file's time."""
    deadline = time.time() + 240
    while not when.exists():
        if time.time() > deadline:
            return
        time.sleep(0.02)
    workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(cmdline(p))]
    if workers:
        os.kill(workers[-1].pid, signal.SIGKILL)
        killed += [workers[-1].pid, when.stat().st_mtime_ns]


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_full_disk_keeps_the_last_good_checkpoint(ray_cluster, inputs, tmp_path):
    """The kernel says ENOSPC: a file of the second checkpoint leads to /dev/full. The first one is whole, and the same
    command would go on from it, as it does after a killed driver below."""
    out = tmp_path / "out"
    settings = small_run(inputs, out, checkpoint={"every": 8}, evaluation={"examples": 4, "samples": 0})
    filler = threading.Thread(target=fill_the_disk, args=(out / CHECKPOINTS,))
    filler.start()
    with pytest.raises(StoreError, match=r"step 16 could not be written .*No space left on device.*-00000008\) stays. Make room"):
        pretrain(settings, Silent())
    filler.join()
    assert [each["step"] for each in RunFolder(str(out)).checkpoints()] == [8]
    state = torch.load(out / CHECKPOINTS / checkpoint_name(8) / "state.pt", weights_only=True)
    assert set(state) == {"task", "optimizer"}
    assert losses(out) == pytest.approx(golden()[:16], rel=1e-5)


def fill_the_disk(checkpoints: Path) -> None:
    """When the first checkpoint is complete (a run begins by removing what is half-written), let the second lead to /dev/full."""
    wait_for(checkpoints / checkpoint_name(8) / "complete.json")
    full = checkpoints / checkpoint_name(16)
    full.mkdir()
    (full / "state.pt").symlink_to("/dev/full")


def wait_for(path: Path, seconds: float = 240) -> None:
    deadline = time.time() + seconds
    while not path.exists() and time.time() < deadline:
        time.sleep(0.02)


# -- every stage, interrupted ---------------------------------------------------------------------------------------------

ENCODER = {"image_size": 32, "resize_to": 32, "patch_size": 8, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
STAGES = {
    "tokenizer": {"tokenizer": {"adversarial": 0.1, "adversarial_from": 3}, "optimizer": {"learning_rate": 2e-3}},
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


def test_a_run_of_an_earlier_version_goes_on_with_the_defaults_of_what_came_since(inputs, tmp_path):
    folder = RunFolder(str(tmp_path))
    earlier = small_run(inputs, tmp_path).identity()
    del earlier["optimizer"]["kind"], earlier["losses"]["outlook"]
    folder.claim(earlier, {})
    assert folder.claim(small_run(inputs, tmp_path).identity(), {})
    with pytest.raises(RunError, match=r"with optimizer\.kind 'adamw', and now it is 'muon'"):
        folder.claim(small_run(inputs, tmp_path, optimizer={"kind": "muon", "learning_rate": 2e-3}).identity(), {})


def test_what_a_sample_is_contrasted_with_belongs_to_a_run(inputs, tmp_path):
    """In stage pbs the micro-batch decides what is learned; elsewhere it is only a matter of memory."""
    pbs, personal = (
        [small_run(inputs, tmp_path, stage=stage, workers={"micro_batch": m}) for m in (2, 4)] for stage in ("pbs", "personal")
    )
    assert personal[0].identity() == personal[1].identity()
    folder = RunFolder(str(tmp_path))
    folder.claim(pbs[0].identity(), {})
    with pytest.raises(RunError, match="with micro_batch 2, and now it is 4"):
        folder.claim(pbs[1].identity(), {})


def test_another_dinov2_is_another_run(inputs, tmp_path):
    """By what the directory holds, not by its name."""
    (tmp_path / "dino").mkdir()
    (tmp_path / "dino" / "model.safetensors").write_bytes(b"one")
    settings = small_run(inputs, tmp_path / "out", dinov2=str(tmp_path / "dino"))
    folder = RunFolder(settings.out)
    folder.claim(run_identity(settings, settings.model), {})
    assert folder.claim(run_identity(settings, settings.model), {})
    (tmp_path / "dino" / "model.safetensors").write_bytes(b"another")
    with pytest.raises(RunError, match=r"with dinov2 '[0-9a-f]+', and now it is"):
        folder.claim(run_identity(settings, settings.model), {})


def test_relative_places_are_of_the_folder_where_the_command_is_given(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = small_run(inputs, "runs/x", cache="cache", inputs="shop", dinov2="dino").with_whole_paths()
    assert (whole.out, whole.cache) == (f"{tmp_path}/runs/x", f"{tmp_path}/cache")
    assert (whole.inputs, whole.dinov2) == (f"{tmp_path}/shop", f"{tmp_path}/dino")
    zero = small_run(inputs, "runs/x", workers={"deepspeed": "zero2.json"}).with_whole_paths()
    assert zero.workers.deepspeed == tmp_path / "zero2.json"
    there = small_run(inputs, "s3://bucket/run", cache="s3://bucket/cache", dinov2="random").with_whole_paths()
    assert (there.out, there.cache, there.dinov2) == ("s3://bucket/run", "s3://bucket/cache", "random")


def test_a_deepspeed_file_is_read_where_the_command_is_given(ray_cluster, inputs, tmp_path, monkeypatch):
    """Workers run in another folder, perhaps on another machine, and get what it holds."""
    monkeypatch.chdir(tmp_path)
    changes = {"steps": 1, "evaluation": {"examples": 2, "samples": 0}, "workers": {"deepspeed": Path("zero.json")}}
    with pytest.raises(SettingsError, match=r"zero\.json: not a DeepSpeed JSON file: .*No such file"):
        pretrain(small_run(inputs, "out", **changes), Silent())
    assert not Path("out").exists()
    Path("zero.json").write_text('{"zero_optimization": {"stage": 2}}')

    class Removing(Silent):
        def phase(self, name: str, total: int | None = None) -> None:
            super().phase(name, total)
            Path("zero.json").unlink(missing_ok=True)

    pretrain(small_run(inputs, "out", **changes), Removing())
    (mark,) = Path("out", CHECKPOINTS).glob("step-*/complete.json")
    assert json.loads(mark.read_text())["zero_stage"] == 2


def test_two_jobs_cannot_have_one_folder(inputs, tmp_path):
    holder = Ownership(str(tmp_path / "out"), beat_seconds=0.1)
    with holder, pytest.raises(OwnedElsewhere, match=f"is driven by {holder.owner}"):
        pretrain(small_run(inputs, tmp_path / "out"), Silent())
    assert not (tmp_path / "out" / "run.json").exists()


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
        (
            {"stage": "tokenizer", "workers": {"bf16": True, "engine": "deepspeed"}},
            r"stage tokenizer .*engine torch",
        ),
        ({"stage": "pbs", "workers": {"bf16": True}}, r"stage pbs .*workers\.bf16 false"),
        ({"join_memory": "lots"}, "join_memory"),
    ):
        with pytest.raises(ValueError, match=message):
            small_run(inputs, tmp_path, **changes)
    with pytest.raises(SettingsError, match="--inputs, --model, --out"):
        small_run(inputs, "", inputs="", model="").require()
    assert small_run(inputs, tmp_path, stage="tokenizer", workers={"bf16": True}).engine == "torch"  # its weights are fp32


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


def test_a_finished_recipe_ships_its_model_in_bf16(tmp_path):
    recipe = Recipe(out=str(tmp_path / "runs"), sampling=SamplingChoice(title_temperature=0.5))
    write_starter_model(tmp_path / "runs" / "personal" / "model", ["red cup"])
    (tmp_path / "runs" / "personal" / "model" / "training.json").write_text("{}")
    make_task(None, TrainingSettings(stage="pbs")).export(tmp_path / "runs" / "pbs" / "model")
    ship(recipe, tmp_path / "tiny")
    model = load(tmp_path / "tiny" / "model")
    assert model.dtype == torch.bfloat16
    assert (tmp_path / "tiny" / "model" / "training.json").exists()
    Prompter.load(tmp_path / "tiny" / "model", model.config)
    load_pbs(tmp_path / "tiny" / "pbs")
    assert SamplingChoice().of(tmp_path / "tiny" / "model") == SamplingSettings(title_temperature=0.5)
    assert sum(file.stat().st_size for file in (tmp_path / "tiny").rglob("*")) < 20e6


def test_a_recipes_shop_is_drawn_once(tmp_path):
    settings = ShopSettings(users=2, products=3, references=4, picture_side=16)
    draw_shop(settings, tmp_path / "shop")
    before = (tmp_path / "shop" / "references.parquet").stat().st_mtime_ns
    draw_shop(settings, tmp_path / "shop")
    assert (tmp_path / "shop" / "references.parquet").stat().st_mtime_ns == before
    assert len(list((tmp_path / "shop" / "references").rglob("*.jpg"))) == 4


# -- the command, killed, on S3 -----------------------------------------------------------------------------------------


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
