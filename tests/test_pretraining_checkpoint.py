"""A checkpoint on its way: fetched and converted once a machine, refused when its loss is non-finite; and who may write one."""

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from pyarrow.fs import LocalFileSystem, copy_files
from support.processes import start_ranks
from support.steps import SAVED_AFTER, SETTINGS, STEPS, fresh_task, join_ranks, run

from adgen.creatives.stores import open_storage
from adgen.errors import OwnedElsewhere, RunError, StoreError
from adgen.on_ray.training.checkpoints import checkpoint_here, require_number, writing
from adgen.on_ray.training.ownership import OWNER_FILE, Ownership
from adgen.on_ray.training.run_folder import RunFolder, checkpoint_name
from adgen.training.deepspeed_files import UNIVERSAL
from adgen.training.deepspeed_step import DeepSpeedStep, deepspeed_config

pytestmark = pytest.mark.slow

# -- another number of workers ------------------------------------------------------------------------------------------


def one_begins(rank: int, folder: str) -> None:
    join_ranks(0, 1, f"{folder}/one")
    step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, deepspeed_config(None, 2, 2, 2, 1.0, False))
    run(step, 0, SAVED_AFTER, accumulation=2)
    step.save(Path(folder) / "saved")
    (Path(folder) / "saved" / "complete.json").write_text("{}")
    (Path(folder) / "whole.json").write_text(json.dumps(run(step, SAVED_AFTER, STEPS, accumulation=2)))
    dist.destroy_process_group()


def two_go_on(rank: int, folder: str, outs: tuple[str, ...]) -> None:
    """From each of the same run's places in turn."""
    join_ranks(rank, 2, f"{folder}/two")
    found = [gone_on(rank, out) for out in outs]
    if rank == 0:
        (Path(folder) / "gone_on.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def gone_on(rank: int, out: str) -> dict:
    """On a folder as two machines that share it (each has a local rank 0); on S3 as two workers of one machine."""
    there = RunFolder(out)
    config = deepspeed_config(None, 2, 2, 1, 1.0, False)
    step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, config, universal=True)
    found, local_rank = {"step": SAVED_AFTER, "zero_stage": 2}, 0 if there.is_local else rank
    with checkpoint_here(there, found, True, rank, local_rank, dist.barrier) as local:
        step.load(local)
    return {"losses": run(step, SAVED_AFTER, STEPS, rank, 2), "left": local.exists()}


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """`saved`, a checkpoint of one worker, and `whole.json`, the losses of its further steps."""
    folder = tmp_path_factory.mktemp("begun")
    start_ranks(one_begins, 1, str(folder))
    return folder


def test_two_workers_go_on_with_what_one_began_on_a_folder_and_on_s3(begun, s3_uri, aws_environment, tmp_path):
    name = f"checkpoints/{checkpoint_name(SAVED_AFTER)}"
    places = [RunFolder(f"{tmp_path}/run"), RunFolder(f"{s3_uri}/run")]
    (tmp_path / "run" / name).mkdir(parents=True)
    for there in places:
        copy_files(str(begun / "saved"), f"{there.path}/{name}", LocalFileSystem(), there.files)
    start_ranks(two_go_on, 2, str(tmp_path), tuple(there.uri for there in places))
    whole = json.loads((begun / "whole.json").read_text())
    for there, found in zip(places, json.loads((tmp_path / "gone_on.json").read_text()), strict=True):
        assert found["losses"] == pytest.approx(whole, rel=1e-4)
        assert found["left"] == there.is_local  # a copy of S3's goes; the run's own folder stays, with its universal form
    assert (tmp_path / "run" / name / UNIVERSAL).is_dir()
    assert not (tmp_path / "run" / name / f"{UNIVERSAL}.part").exists()


# -- what is no checkpoint ----------------------------------------------------------------------------------------------


def test_a_held_out_loss_that_is_no_number_is_no_checkpoint():
    require_number(None, 3)
    require_number(1.5, 3)
    for loss in (float("nan"), float("inf")):
        with pytest.raises(RunError, match=r"step 3: the held-out loss is (nan|inf): nothing is saved"):
            require_number(loss, 3)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "Make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Make room"),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/3"), "Make room"),
        (PermissionError(errno.EACCES, "Permission denied"), "Mend what it names"),
        (OSError("When uploading part: AWS Error ACCESS_DENIED"), "Mend what it names"),
    ],
)
def test_a_failed_write_is_named_as_what_it_is(tmp_path, error, advice):
    with pytest.raises(StoreError, match=r"step 8 could not be written .*step-00000004\) stays") as raised:
        raise_while_writing(tmp_path, error)
    assert str(error) in str(raised.value)
    assert str(raised.value).endswith(f"{advice} and run the same command again")


def raise_while_writing(folder: Path, error: Exception) -> None:
    with writing(RunFolder(str(folder)), 8, 4):
        raise error


def test_a_crash_of_another_worker_is_no_failed_write(tmp_path):
    with pytest.raises(RuntimeError, match="Connection closed"), writing(RunFolder(str(tmp_path)), 8, 4):
        raise RuntimeError("Connection closed by peer")


# -- one driver ---------------------------------------------------------------------------------------------------------


def owner_of(uri: str) -> str | None:
    return json.loads(open_storage(uri).read(OWNER_FILE))["owner"]


def test_a_second_driver_stops_and_names_the_first(store_uri, aws_environment):
    with Ownership(store_uri, beat_seconds=0.05) as first:
        with pytest.raises(OwnedElsewhere, match=f"{first.owner}.*give another --out"), Ownership(store_uri):
            pass
        assert owner_of(store_uri) == first.owner
    assert owner_of(store_uri) is None
    began = time.monotonic()
    with Ownership(store_uri):
        assert time.monotonic() - began < 5  # who let go is not waited for


def test_a_dead_process_of_this_machine_is_not_waited_for(folder_store):
    process = subprocess.run(
        [sys.executable, "-c", "from adgen.creatives.ownership import *; print(new_owner())"], stdout=subprocess.PIPE, text=True
    )
    dead = json.dumps({"owner": process.stdout.strip(), "heartbeat": 7})
    folder_store.swap(OWNER_FILE, dead.encode(), None)
    began = time.monotonic()
    with Ownership(folder_store.uri) as owner:
        assert time.monotonic() - began < 5
        assert owner_of(folder_store.uri) == owner.owner


def test_a_silent_driver_is_taken_over_and_finds_out(folder_store):
    told = threading.Event()
    with Ownership(folder_store.uri, beat_seconds=0.4) as first:
        first.on_lost = lambda message: told.set()
        alone = json.loads(open_storage(folder_store.uri).read(OWNER_FILE))
        alone |= {"owner": "elsewhere:1:abc"}
        stored = folder_store.get(OWNER_FILE)
        folder_store.swap(OWNER_FILE, json.dumps(alone).encode(), stored.etag)
        assert told.wait(5)
        with pytest.raises(OwnedElsewhere, match="is now driven by elsewhere"):
            first.check()
        with Ownership(folder_store.uri, patience_seconds=0.2) as second:
            assert owner_of(folder_store.uri) == second.owner


def unheard(owner: Ownership, monkeypatch) -> list[int]:
    """The next write of `owner` lands, and neither its answer nor a second look comes through; the beats that did so."""
    swap, beats = owner.storage.swap_or_find, []

    def swap_once_unheard(key, data, etag):
        landed = swap(key, data, etag)
        if not beats:
            beats.append(json.loads(data)["heartbeat"])
            raise StoreError("away")
        return landed

    monkeypatch.setattr(owner.storage, "swap_or_find", swap_once_unheard)
    return beats


def test_a_beat_that_landed_unheard_is_gone_on_from(folder_store, monkeypatch):
    with Ownership(folder_store.uri, beat_seconds=0.05) as owner:
        beats, deadline = unheard(owner, monkeypatch), time.monotonic() + 5
        while not beats or json.loads(folder_store.read(OWNER_FILE))["heartbeat"] <= beats[0]:
            owner.check()
            assert time.monotonic() < deadline, "no beat after the one that was not heard"
            time.sleep(0.02)
        owner.check()


def test_a_driver_lets_go_after_a_beat_that_landed_unheard(folder_store, monkeypatch):
    with Ownership(folder_store.uri, beat_seconds=60) as owner:
        unheard(owner, monkeypatch)
        with pytest.raises(StoreError, match="away"):
            owner.beat()
    assert owner_of(folder_store.uri) is None
