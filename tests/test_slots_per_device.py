"""adgen/generation/slots_per_device.py against numbers worked out by hand."""

import pytest
import torch
from support.engine import SAMPLED, requests
from support.models import small_config, small_model, small_prompter

from adgen.generation.engine import Engine
from adgen.generation.engine_settings import CPU_SLOTS, EngineSettings
from adgen.generation.slots_per_device import (
    MAX_SLOTS,
    bytes_per_cached_token,
    bytes_per_slot,
    plan_num_slots,
    row_capacity,
    weight_bytes,
)
from adgen.model.config import janus_pro_7b

BF16, FP8, GB = torch.bfloat16, torch.float8_e4m3fn, 10**9


def test_a_token_of_the_7b_takes_what_the_roofline_says():
    """2 x 30 layers x 4096 wide x 2 bytes."""
    assert bytes_per_cached_token(janus_pro_7b(), BF16) == 491_520
    assert bytes_per_cached_token(janus_pro_7b(), FP8) == 245_760
    assert bytes_per_cached_token(janus_pro_7b(), BF16, ranks=2) == 245_760


def test_weights_are_those_of_the_model_and_the_table_of_image_tokens():
    parameters = sum(p.numel() for p in small_model().parameters())
    assert weight_bytes(small_config(), torch.float32) == 4 * (parameters + 64 * 64)


def test_a_slot_holds_its_prompt_both_pictures_and_its_products_additions():
    capacity = 1200 + 48 + 576
    additions = 5 * 576 * 4096 * 2
    logits = 2 * 102400 * 4
    assert bytes_per_slot(janus_pro_7b(), capacity, BF16, BF16) == (capacity + 576) * 491_520 + additions + logits


def test_an_h200_holds_more_slots_than_an_h100_and_more_with_a_narrow_cache():
    plan = lambda memory, cache, ranks=1: plan_num_slots(janus_pro_7b(), 1824, memory, BF16, cache, ranks)  # noqa: E731
    h100, h200 = plan(80 * GB, BF16), plan(141 * GB, BF16)
    # (80 * 0.9 - 19.6 of weights - the largest phase) / 1.2 GB a slot
    assert 35 <= h100 <= 45
    assert 80 <= h200 <= 95
    assert plan(80 * GB, FP8) > 1.8 * h100
    assert plan(80 * GB, BF16, 2) > 2 * h100


def test_there_is_one_slot_at_least_and_a_sane_number_at_most():
    assert plan_num_slots(janus_pro_7b(), 1824, 10 * GB, BF16, BF16) == 1
    assert plan_num_slots(small_config(), 400, 80 * GB, BF16, BF16) == MAX_SLOTS


def test_on_a_cpu_the_number_is_fixed_and_a_set_number_is_kept():
    assert Engine(small_model(), small_prompter(), EngineSettings(), SAMPLED).num_slots == CPU_SLOTS
    assert EngineSettings(num_slots=7).slots_on(torch.device("cuda"), small_config(), 400) == 7


def test_the_longest_prompt_fits_the_planned_capacity():
    prompter, config = small_prompter(), small_config()
    capacity = row_capacity(config, prompter, SAMPLED)
    longest = max(len(prompter.picture_prompt(r.facts, "a title")) for r in requests())
    assert longest + config.image.tokens_per_picture <= capacity <= config.decoder.max_positions


def test_a_prompt_longer_than_planned_moves_the_caches_and_changes_nothing(monkeypatch):
    from adgen.generation import engine as module

    expected = Engine(small_model(), small_prompter(), EngineSettings(num_slots=2), SAMPLED).generate(requests())
    monkeypatch.setattr(module, "row_capacity", lambda *_: 50)
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=2), SAMPLED)
    results = engine.generate(requests())
    assert engine._runner.slots.capacity > 50
    assert [r.codes.tolist() for r in results] == [r.codes.tolist() for r in expected]


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_auto_is_bfloat16_on_a_gpu_and_float32_on_a_cpu(dtype):
    settings = EngineSettings(dtype=dtype)
    wanted = {"auto": (torch.float32, torch.bfloat16)}.get(dtype, (getattr(torch, dtype, None),) * 2)
    assert (settings.torch_dtype("cpu"), settings.torch_dtype("cuda")) == wanted
