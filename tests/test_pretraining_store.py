"""A training run's folder, local and on S3: what counts as a checkpoint, which are kept, and how logs go on."""

import tempfile
from pathlib import Path

import pytest

from adgen.errors import RunError, StoreError
from adgen.on_ray.training import run_folder as pretraining_store
from adgen.on_ray.training.log import TrainingLog
from adgen.on_ray.training.resume import claim, forget_rays_list, newest_checkpoint
from adgen.on_ray.training.run_folder import RunFolder, checkpoint_name, on_this_node
from adgen.on_ray.training.settings import PretrainSettings
from adgen.training.example_files import ExampleFolder


@pytest.fixture
def folder(store_uri, aws_environment) -> RunFolder:
    return RunFolder(f"{store_uri}/run")


def write_checkpoint(folder: RunFolder, step: int, held_out_loss: float | None, keep: int = 2) -> None:
    """What Ray Train and then the first worker write."""
    ExampleFolder(folder.uri)._write(f"checkpoints/{checkpoint_name(step)}/state.pt", b"state")
    folder.commit({"step": step, "held_out_loss": held_out_loss}, keep)


def steps(folder: RunFolder) -> list[int]:
    return [each["step"] for each in folder.checkpoints()]


def test_the_newest_and_the_best_are_kept(folder):
    for step, loss in ((2, 3.0), (4, 1.0), (6, 2.0), (8, 2.5), (10, 2.2)):
        write_checkpoint(folder, step, loss)
    assert steps(folder) == [4, 8, 10]


def test_without_a_held_out_loss_the_newest_are_kept(folder):
    for step in (2, 4, 6):
        write_checkpoint(folder, step, None, keep=1)
    assert steps(folder) == [6]


def test_files_without_their_mark_are_no_checkpoint(folder):
    write_checkpoint(folder, 2, None)
    ExampleFolder(folder.uri)._write(f"checkpoints/{checkpoint_name(4)}/state.pt", b"half")
    assert steps(folder) == [2]


def test_a_loss_that_is_no_number_is_never_the_best(folder):
    for step, loss in ((2, float("nan")), (4, 1.0), (6, 3.0), (8, 2.0)):
        write_checkpoint(folder, step, loss, keep=1)
    assert steps(folder) == [4, 8]


def test_what_a_crash_left_beyond_the_newest_checkpoint_goes(folder):
    write_checkpoint(folder, 2, None)
    ExampleFolder(folder.uri)._write(f"checkpoints/{checkpoint_name(4)}/deepspeed/of_three_workers.pt", b"half")
    ExampleFolder(folder.uri)._write("checkpoints/notes.txt", b"somebody's")
    assert newest_checkpoint(folder, rank=0, workers=1)["step"] == 2
    ExampleFolder(folder.uri)._write(f"checkpoints/{checkpoint_name(4)}/state.pt", b"whole")
    folder.commit({"step": 4, "held_out_loss": None}, keep=2)
    assert steps(folder) == [2, 4]
    there = folder.fetch(f"checkpoints/{checkpoint_name(4)}", Path(tempfile.mkdtemp()))
    assert sorted(path.name for path in there.rglob("*") if path.is_file()) == ["complete.json", "state.pt"]
    assert ExampleFolder(folder.uri).has("checkpoints/notes.txt")


def test_rays_own_list_is_forgotten(folder):
    ExampleFolder(folder.uri)._write("checkpoints/checkpoint_manager_snapshot.json", b"")  # as a full disk leaves it
    forget_rays_list(folder)
    assert folder.read_json("checkpoints/checkpoint_manager_snapshot.json") is None
    forget_rays_list(folder)


def test_a_run_goes_on_with_its_own_settings_only(folder):
    one, two = (PretrainSettings(optimizer={"learning_rate": rate}).identity() for rate in (1, 2))
    assert not claim(folder, one, {})
    assert claim(folder, one, {})
    with pytest.raises(RunError, match=r"optimizer\.learning_rate 1.0, and now it is 2.0.*another --out"):
        claim(folder, two, {})


def test_a_model_is_put_and_found_on_every_node(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for content in ("first", "second"):
        local = tmp_path / content
        local.mkdir()
        (local / "weights").write_text(content)
        (local / "training.json").write_text("{}")
        folder.put(local, "model")
        there = on_this_node(f"{folder.uri}/model")
        assert (there / "weights").read_text() == content
        assert folder.read_json("model/training.json") == {}
        assert on_this_node(f"{folder.uri}/model") == there


def test_a_copy_that_is_cut_short_has_no_mark(s3_uri, aws_environment, tmp_path, monkeypatch):
    """The file that says that all are there comes last, whatever its name."""
    folder = RunFolder(f"{s3_uri}/run")
    for name in ("adgen.json", "model.safetensors", "z.json"):
        (tmp_path / name).write_text("{}")
    copy = pretraining_store.pafs.copy_files

    def cut_short(*arguments, **named):
        copy(*arguments, **named)
        raise OSError("the machine is gone")

    monkeypatch.setattr(pretraining_store.pafs, "copy_files", cut_short)
    with pytest.raises(OSError, match="gone"):
        folder.put(tmp_path, "start", last="adgen.json")
    assert folder.read_json("start/adgen.json") is None
    assert folder.read_json("start/z.json") == {}


def test_logs_take_back_what_a_crash_left_beyond_the_checkpoint(folder, tmp_path):
    log = TrainingLog(folder, 0)
    for step in (1, 2, 3):
        log.step(step, float(step), {"text": 1.0})
    log.close()
    log = TrainingLog(folder, 2)
    log.step(3, 33.0, {})
    log.close()
    with folder.files.open_input_file(f"{folder.path}/losses.txt") as source:
        assert source.read().decode() == "1 1.000000\n2 2.000000\n3 33.000000\n"


def test_places_that_are_none_are_refused():
    with pytest.raises(StoreError, match="out: "):
        RunFolder("gs://bucket/run")


def test_names_sort_as_numbers():
    assert sorted(checkpoint_name(step) for step in (1000, 20, 3)) == [checkpoint_name(step) for step in (3, 20, 1000)]
