"""The catalog's encoders on Ray: a process that dies costs nothing, one that always dies is one sentence."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from adgen.errors import EngineLost
from adgen.generation.model_directory import ModelDirectory
from adgen.on_ray.refresh.catalog_encoders import RESTARTS, HistoryEncoder, catalog_encoders, encoder_resources


def encoder(folder: Path, deaths: int) -> Callable[[int], int]:
    """Ten times the batch; batch 2 ends its process the first `deaths` times. Pickled by value: workers do not find tests."""

    def encode(batch: int) -> int:
        if batch == 2 and len(before := list(folder.iterdir())) < deaths:
            (folder / str(len(before))).touch()
            os._exit(1)
        return 10 * batch

    return encode


def test_a_batch_whose_process_dies_is_encoded_by_the_next(ray_cluster, tmp_path):
    with catalog_encoders() as run:
        assert list(run(encoder(tmp_path, 1), range(5))) == [0, 10, 20, 30, 40]


def test_processes_that_keep_dying_end_the_refresh_in_a_sentence(ray_cluster, tmp_path):
    with catalog_encoders() as run, pytest.raises(EngineLost, match=f"were lost {RESTARTS + 1} times"):
        list(run(encoder(tmp_path, 100), range(5)))


def test_an_encoder_takes_a_gpu_where_pictures_are_encoded_on_gpus(model):
    """And says so to the process that it is sent to."""
    assert encoder_resources("cuda") == {"num_cpus": 1, "num_gpus": 1}
    assert encoder_resources("cpu") == {"num_cpus": 1, "num_gpus": 0}
    sent = pickle.loads(pickle.dumps(HistoryEncoder(ModelDirectory(model), "cuda")))
    assert (sent.device, vars(sent).keys()) == ("cuda", {"model", "device"})


def test_where_no_gpu_is_there_pictures_are_encoded_on_cpus(ray_cluster, tmp_path):
    """A refresh that wants GPUs does not wait in its plan for one that may never come."""
    with catalog_encoders("cuda") as run:
        assert list(run(encoder(tmp_path, 0), range(3))) == [0, 10, 20]
