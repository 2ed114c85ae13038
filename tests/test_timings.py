"""Phase timings: what the engine says of its own time."""

import time

import pytest
import torch
from support.engine import requests
from support.models import small_model, small_prompter

from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.timings import PhaseTimings

CPU = torch.device("cpu")


def test_phases_add_up_and_can_be_subtracted():
    timings = PhaseTimings()
    with timings.measure("prefill", CPU):
        time.sleep(0.02)
    before = PhaseTimings(prefill=timings.prefill)
    with timings.measure("prefill", CPU):
        time.sleep(0.01)
    timings.picture_steps += 16
    since = timings - before
    assert timings.prefill >= 0.03
    assert 0.01 <= since.prefill < timings.prefill
    assert (since.picture_steps, since.title, since.seconds) == (16, 0, since.prefill)


def test_a_block_that_fails_is_not_counted():
    timings = PhaseTimings()
    with pytest.raises(ValueError, match="no"), timings.measure("vq", CPU):
        raise ValueError("no")
    assert timings.seconds == 0


def test_the_engine_times_its_phases_and_counts_its_steps():
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=3), SamplingSettings(max_title_tokens=5))
    started = time.perf_counter()
    engine.generate(requests())  # five requests: two batches
    wall = time.perf_counter() - started
    timings = engine.timings
    assert (timings.title_steps, timings.picture_steps) == (10, 32)
    assert min(timings.prefill, timings.title, timings.picture, timings.vq) > 0
    assert 0.5 * wall < timings.seconds <= wall
