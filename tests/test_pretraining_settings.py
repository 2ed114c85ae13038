"""What training refuses before any work, each with its reason."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.progress import Silent
from support.training import small_run, training_inputs, without_references

from adgen.config import load_settings
from adgen.errors import InputError, ModelError, OwnedElsewhere, SettingsError
from adgen.on_ray.training import job
from adgen.on_ray.training.job import pretrain
from adgen.on_ray.training.ownership import Ownership
from adgen.on_ray.training.recipe import Recipe
from adgen.on_ray.training.settings import PretrainSettings

ROOT = Path(__file__).parents[1]
SAME = 2e-4  # relative: what fp32 sums in another order come to after 20 steps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return training_inputs(tmp_path_factory.mktemp("training"))


def test_relative_places_are_of_the_folder_where_the_command_is_given(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = small_run(inputs, "runs/x", cache="cache", inputs="shop", dinov2="dino").with_whole_paths()
    assert (whole.out, whole.cache) == (f"{tmp_path}/runs/x", f"{tmp_path}/cache")
    assert (whole.inputs, whole.dinov2) == (f"{tmp_path}/shop", f"{tmp_path}/dino")
    zero = small_run(inputs, "runs/x", workers={"deepspeed": "zero2.json"}).with_whole_paths()
    assert zero.workers.deepspeed == tmp_path / "zero2.json"
    there = small_run(inputs, "s3://bucket/run", cache="s3://bucket/cache", dinov2="random").with_whole_paths()
    assert (there.out, there.cache, there.dinov2) == ("s3://bucket/run", "s3://bucket/cache", "random")


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


@pytest.mark.slow
def test_the_command_says_in_a_line_what_is_wrong(tmp_path):
    job = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), str(ROOT / "jobs" / "pretrain.toml")]
    done = subprocess.run([*job, "--batch", "5", "--workers.num", "2"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "batch 5 is not workers.num 2" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_settings_files_of_before_are_read(tmp_path, caplog):
    """What is gone is ignored where it was off, and named with the version that removed it where it was in use."""
    file = tmp_path / "recipe.toml"
    file.write_text("[general.losses]\noutlook = 0\n[tokenizer.tokenizer]\nadversarial = 0.0\nadversarial_from = 0\n")
    made = load_settings(Recipe, file)
    assert (made.general.losses, made.tokenizer.tokenizer) == (Recipe().general.losses, Recipe().tokenizer.tokenizer)
    assert "general.losses.outlook: removed in version 0.2.0" in caplog.text
    assert "tokenizer.tokenizer.adversarial: removed in version 0.2.0" in caplog.text
    file.write_text("[losses]\noutlook = 1\n")
    with pytest.raises(SettingsError, match=r"recipe\.toml: losses\.outlook: removed in version 0\.2\.0 \(value 1"):
        load_settings(PretrainSettings, file)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "Training failed due to controller error:\n8 worker(s) were killed due to low memory.\nMore",
            "controller error: 8 worker(s) were killed",
        ),
        ("A worker died\nTraceback", "A worker died"),
        ("", "RuntimeError"),
    ],
)
def test_a_training_that_ray_ended_says_why(said, why):
    assert why in job._why(RuntimeError(said))
