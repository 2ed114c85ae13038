"""Whether a training folder holds the run that a command asks for: the same settings, data and start, whatever the version."""

import json
import shutil
from pathlib import Path

import pytest
from support.training import small_run, training_inputs

from adgen.errors import RunError, SettingsError
from adgen.on_ray.training.resume import claim, run_identity
from adgen.on_ray.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
SAME = 2e-4  # relative: what fp32 sums in another order come to after 20 steps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return training_inputs(tmp_path_factory.mktemp("training"))


def test_another_stage_or_setting_in_the_same_folder_is_refused(inputs, tmp_path):
    folder = RunFolder(str(tmp_path))
    claim(folder, small_run(inputs, tmp_path).identity(), {})
    assert claim(folder, small_run(inputs, tmp_path, workers={"num": 2}, checkpoint={"every": 3}).identity(), {})
    with pytest.raises(RunError, match="with stage 'personal', and now it is 'general'"):
        claim(folder, small_run(inputs, tmp_path, stage="general").identity(), {})
    with pytest.raises(RunError, match=r"with optimizer\.learning_rate 0\.002, and now it is 0\.1"):
        claim(folder, small_run(inputs, tmp_path, optimizer={"learning_rate": 0.1}).identity(), {})


def test_a_run_of_an_earlier_version_goes_on(inputs, tmp_path, caplog):
    """With the defaults of what came since, and without what was removed since; `run.json` is of version 0.1.0."""
    folder = RunFolder(str(tmp_path))
    shutil.copy(ROOT / "tests" / "golden" / "runs" / "training_0.1.0.json", tmp_path / "run.json")
    now = small_run(inputs, tmp_path)
    rest = {"start": "of the start", "inputs": "of the tables"}
    assert claim(folder, now.identity() | rest, {})
    assert "losses.outlook: removed in version 0.2.0" in caplog.text
    muon = small_run(inputs, tmp_path, optimizer={"kind": "muon", "learning_rate": 2e-3})
    with pytest.raises(RunError, match=r"with optimizer\.kind 'adamw', and now it is 'muon'"):
        claim(folder, muon.identity() | rest, {})
    earlier = folder.read_json("run.json")
    del earlier["identity"]["optimizer"]["kind"]  # as before there was a choice
    folder.write_json("run.json", earlier)
    assert claim(folder, now.identity() | rest, {})


def test_a_run_with_the_loss_that_is_gone_does_not_go_on(inputs, tmp_path):
    folder = RunFolder(str(tmp_path))
    earlier = json.loads((ROOT / "tests" / "golden" / "runs" / "training_0.1.0.json").read_text())
    earlier["identity"]["losses"]["outlook"] = 1.0
    folder.write_json("run.json", earlier)
    with pytest.raises(SettingsError, match=r"run\.json: losses\.outlook: removed in version 0\.2\.0 \(value 1\.0"):
        claim(folder, small_run(inputs, tmp_path).identity(), {})


def test_what_a_sample_is_contrasted_with_belongs_to_a_run(inputs, tmp_path):
    """In stage pbs the micro-batch decides what is learned; elsewhere it is only a matter of memory."""
    pbs, personal = (
        [small_run(inputs, tmp_path, stage=stage, workers={"micro_batch": m}) for m in (2, 4)] for stage in ("pbs", "personal")
    )
    assert personal[0].identity() == personal[1].identity()
    folder = RunFolder(str(tmp_path))
    claim(folder, pbs[0].identity(), {})
    with pytest.raises(RunError, match="with micro_batch 2, and now it is 4"):
        claim(folder, pbs[1].identity(), {})


def test_photographs_in_another_place_are_the_same_run_and_other_classes_another(inputs, tmp_path):
    """What goes out with a model as its training's settings says nothing of the machine."""
    runs = []
    for place, classes in (("here", "abcdefghij"), ("there", "abcdefghij"), ("elsewhere", "klmnopqrst")):
        for name in classes:
            (tmp_path / place / "backgrounds" / name).mkdir(parents=True)
        runs.append(small_run(inputs, tmp_path, stage="pbs", contrast={"photographs": str(tmp_path / place)}))
    here, there, elsewhere = (run.identity() for run in runs)
    assert here == there
    assert str(tmp_path) not in json.dumps(here)
    folder = RunFolder(str(tmp_path))
    claim(folder, here, {})
    with pytest.raises(RunError, match=r"contrast\.photographs"):
        claim(folder, elsewhere, {})


def test_another_dinov2_is_another_run(inputs, tmp_path):
    """By what the directory holds, not by its name."""
    (tmp_path / "dino").mkdir()
    (tmp_path / "dino" / "model.safetensors").write_bytes(b"one")
    settings = small_run(inputs, tmp_path / "out", dinov2=str(tmp_path / "dino"))
    folder = RunFolder(settings.out)
    claim(folder, run_identity(settings, settings.model), {})
    assert claim(folder, run_identity(settings, settings.model), {})
    (tmp_path / "dino" / "model.safetensors").write_bytes(b"another")
    with pytest.raises(RunError, match=r"with dinov2 '[0-9a-f]+', and now it is"):
        claim(folder, run_identity(settings, settings.model), {})
