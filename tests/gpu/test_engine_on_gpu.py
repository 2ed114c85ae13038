"""On a CUDA device: the same tokens as on the CPU, captured or not, the same bytes again."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.engine import GREEDY, SAMPLED, assert_same, requests
from support.models import small_model, small_prompter

from adgen.generation import batch
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import generate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def made(sampling=SAMPLED, **settings) -> list:
    settings = {"num_slots": 2, "dtype": "float32", "deepspeed": False} | settings
    return Engine(small_model(), small_prompter(), EngineSettings(**settings), sampling, device="cuda").generate(requests())


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_tokens_equal_the_simple_loop_on_the_cpu(sampling):
    expected = generate(small_model(), small_prompter(), requests(), sampling)
    for one, other in zip(made(sampling), expected, strict=True):
        assert (one.title, one.codes.tolist()) == (other.title, other.codes.tolist())


def test_a_captured_step_makes_the_bytes_of_an_uncaptured_one(monkeypatch):
    captured = made()
    painter, writer = batch.Painter, batch.TitleWriter
    monkeypatch.setattr(batch, "Painter", lambda *parts, **more: painter(*parts[:-1], False, **more))
    monkeypatch.setattr(batch, "TitleWriter", lambda *parts: writer(*parts[:-1], False))
    assert_same(captured, made())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_request_gives_the_same_bytes_again(dtype):
    assert_same(made(dtype=dtype), made(dtype=dtype))


@pytest.mark.parametrize("option", [{"cache_dtype": "float8_e4m3fn"}, {"weights": "int8"}])
def test_options_run(option):
    assert len(made(dtype="bfloat16", **option)) == len(requests())


def test_slots_are_planned_from_the_devices_memory():
    engine = Engine(small_model(), small_prompter(), EngineSettings(deepspeed=False), SAMPLED, device="cuda")
    assert engine.num_slots > 4
    assert len(engine.generate(requests())) == len(requests())
