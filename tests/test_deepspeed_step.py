"""The step over two workers: the same losses as one worker without DeepSpeed, whatever ZeRO shards, and after a resume.

Two processes on gloo, without Ray; all cases in one start of the two, since starting costs more than training.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_examples import example
from small_models import small_config, small_model, small_prompter

from adgen.errors import ModelError, SettingsError
from adgen.training.batches import LanguageCollator
from adgen.training.deepspeed_step import DeepSpeedStep, deepspeed_config, make_universal
from adgen.training.language import LanguageTask
from adgen.training.settings import TrainingSettings
from adgen.training.step import TorchStep
from adgen.training.task import Task
from adgen.training.trainable import choose_trainable

STEPS, BATCH, SAVED_AFTER, RATE = 6, 4, 3, 3e-3
ROOT = Path(__file__).parents[1]
SETTINGS = TrainingSettings(stage="personal", steps=STEPS, batch=BATCH, dropout={"prompt": 0.3, "foreground": 0.3})
CONFIG = small_config(preference=small_config().preference.model_copy(update={"dropout": 0.0}))


def fresh_task() -> LanguageTask:
    model = small_model(preference=CONFIG.preference)
    choose_trainable(model, "personal", SETTINGS.trainable)
    return LanguageTask(model, small_prompter(), SETTINGS)


def micro_batch(step: int, part: int, parts: int):
    """Part of a step's samples: the same samples in all, however they are cut."""
    size = BATCH // parts
    numbers = [step * BATCH + part * size + n for n in range(size)]
    rows = [example(number, CONFIG, clicks=number % 4) for number in numbers]
    return LanguageCollator(small_prompter(), CONFIG, SETTINGS)(rows, [0] * size)


def run(step, first: int, last: int, rank: int = 0, workers: int = 1, accumulation: int = 1) -> list[float]:
    losses = []
    for number in range(first, last):
        step.task.train()
        total = torch.zeros(())
        for turn in range(accumulation):
            loss, _ = step.forward(micro_batch(number, turn * workers + rank, workers * accumulation))
            step.backward(loss)
            total += loss.detach().float() / accumulation
        if workers > 1:
            dist.all_reduce(total)
        step.apply(RATE)
        losses.append(float(total) / workers)
    return losses


def meet(rank: int, world_size: int, file: str) -> None:
    """What Ray Train does before the worker function begins."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)


def two_workers(rank: int, folder: str) -> None:
    """ZeRO 1, 2 and 3 from the start; then each again from the checkpoint in its middle."""
    meet(rank, 2, f"{folder}/two")
    found = {}
    for zero in (1, 2, 3):
        step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, deepspeed_config(None, zero, 2, 1, 1.0, False))
        losses = run(step, 0, SAVED_AFTER, rank, 2)
        step.save(Path(folder) / f"zero{zero}")
        dist.barrier()
        found[f"zero{zero}"] = losses + run(step, SAVED_AFTER, STEPS, rank, 2)
        with step.whole_task(fresh_task) as whole:
            if rank == 0:
                found[f"export{zero}"] = checksum(whole)
        again = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, deepspeed_config(None, zero, 2, 1, 1.0, False))
        again.load(Path(folder) / f"zero{zero}")
        found[f"resumed{zero}"] = run(again, SAVED_AFTER, STEPS, rank, 2)
    if rank == 0:
        (Path(folder) / "losses.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def one_worker(rank: int, folder: str) -> None:
    """Goes on with two workers' checkpoints, by the universal form; two micro-batches make a step."""
    meet(0, 1, f"{folder}/one")
    found = {}
    for zero in (2, 3):
        make_universal(Path(folder) / f"zero{zero}", zero)
        config = deepspeed_config(None, zero, 2, 2, 1.0, False)
        step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, config, universal=True)
        step.load(Path(folder) / f"zero{zero}")
        found[f"zero{zero}"] = run(step, SAVED_AFTER, STEPS, accumulation=2)
    (Path(folder) / "alone.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def checksum(task: Task) -> float:
    return float(sum(parameter.detach().double().square().sum() for parameter in task.parameters()))


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], float]:
    """Losses and a checksum of the weights, without DeepSpeed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    step = TorchStep(fresh_task(), SETTINGS.optimizer, accumulation=1)
    losses = run(step, 0, STEPS)
    torch.set_num_threads(before)
    return losses, checksum(step.task)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(two_workers, (str(folder),), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def sharded(folder) -> dict:
    return json.loads((folder / "losses.json").read_text())


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_gives_the_curve_of_one_plain_worker(plain, sharded, zero):
    losses, weights = plain
    assert losses[-1] < losses[0]
    assert sharded[f"zero{zero}"] == pytest.approx(losses, rel=1e-4)
    assert sharded[f"export{zero}"] == pytest.approx(weights, rel=1e-5)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(sharded, zero):
    assert sharded[f"resumed{zero}"] == pytest.approx(sharded[f"zero{zero}"][SAVED_AFTER:], rel=1e-6)


def test_one_worker_goes_on_with_what_two_began(folder, sharded):
    mp.spawn(one_worker, (str(folder),), nprocs=1)
    found = json.loads((folder / "alone.json").read_text())
    for zero in (2, 3):
        assert found[f"zero{zero}"] == pytest.approx(sharded[f"zero{zero}"][SAVED_AFTER:], rel=1e-4)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_the_clusters_files_are_taken_with_our_batch(zero):
    config = deepspeed_config(ROOT / f"cluster/deepspeed/zero{zero}.json", None, 3, 5, 0.5, True)
    assert config["zero_optimization"]["stage"] == zero
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (3, 5)
    assert config["bf16"] == {"enabled": True}
    assert config["gradient_clipping"] == 0.5


def test_files_that_cannot_be_taken_are_refused(tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text('{"optimizer": {"type": "AdamW"}}')
    with pytest.raises(SettingsError, match=r"deepspeed\.json: optimizer: torch's AdamW"):
        deepspeed_config(path, 1, 1, 1, 1.0, False)
    path.write_text("{")
    with pytest.raises(SettingsError, match="not a DeepSpeed JSON file"):
        deepspeed_config(path, 1, 1, 1, 1.0, False)
    with pytest.raises(ModelError, match="cannot be made universal"):
        make_universal(tmp_path, 1)
