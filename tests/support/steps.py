"""Optimizer steps of a small language task, the same samples however many workers share them."""

import os

import torch
import torch.distributed as dist

from adgen.training.batches import LanguageCollator
from adgen.training.language import LanguageTask
from adgen.training.settings import TrainingSettings
from adgen.training.trainable import choose_trainable
from support.examples import example
from support.models import small_config, small_model, small_prompter

STEPS, BATCH, SAVED_AFTER, RATE = 4, 4, 2, 3e-3
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


def join_ranks(rank: int, world_size: int, file: str) -> None:
    """What Ray Train does before the worker function begins."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world_size)
