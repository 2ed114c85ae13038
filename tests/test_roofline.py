"""The roofline's arithmetic against numbers worked out by hand, and published roofline of the 7B model."""

import pytest
import torch
from support.models import small_config

from adgen.generation.benchmark import machine
from adgen.generation.benchmark.machine import Machine, measure_gflops
from adgen.generation.benchmark.report import paper_of
from adgen.generation.benchmark.roofline import (
    Workload,
    decoder_parameters,
    head_parameters,
    kv_bytes_per_token,
    linear_parameters,
    per_thousand,
    picture_work,
    prefill_work,
    roofline,
    title_work,
    vq_work,
)
from adgen.generation.benchmark.settings import RooflineSettings
from adgen.generation.engine_settings import EngineSettings
from adgen.model.config import janus_pro_7b
from adgen.model.device import computing_dtype, warn_of_emulation
from adgen.model.uniadgen import UniAdGen

H200 = Machine(read_gb_s=4800, copy_gb_s=4000, triad_gb_s=4000, gflops=700_000)


@pytest.mark.parametrize(
    ("has", "computes"),
    [
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True}, torch.float32),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
    ids=str,
)
def test_the_matrix_rate_is_that_of_the_dtype_that_computes(monkeypatch, has, computes):
    """A CPU without bfloat16 widens it: the emulated product is slow, and no share of the roofline may come out over one."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    asked, rates = [], {torch.float32: 100.0, torch.bfloat16: 400.0}
    monkeypatch.setattr(machine, "_product_rate", lambda device, dtype: asked.append(dtype) or rates[dtype])
    cpu = torch.device("cpu")
    assert computing_dtype(cpu, torch.bfloat16) is computes
    assert measure_gflops(cpu, torch.bfloat16) == rates[computes]
    assert set(asked) == {computes, torch.float32}, "an engine in bfloat16 may compute in float32 where that is faster"
    assert computing_dtype(cpu, torch.float32) is torch.float32
    assert computing_dtype(torch.device("cuda"), torch.bfloat16) is torch.bfloat16
    assert EngineSettings().torch_dtype(cpu) is torch.float32, "auto is the dtype that every CPU has"


def test_a_dtype_that_a_cpu_only_emulates_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    warn_of_emulation(torch.device("cpu"), torch.bfloat16)
    assert "computes bfloat16 as float32" in caplog.text
    caplog.clear()
    warn_of_emulation(torch.device("cpu"), torch.float32)
    warn_of_emulation(torch.device("cuda"), torch.bfloat16)
    assert not caplog.text


def test_the_paper_of_a_step_at_7b():
    """docs/models.md quotes it."""
    paper = paper_of(RooflineSettings())
    cache = [value for name, value in paper["bytes_by_term"].items() if name.startswith("keys and values of")]
    assert round(sum(cache) / paper["bytes_per_step"], 2) == 0.82
    assert paper["bytes_per_step"] == pytest.approx(sum(paper["bytes_by_term"].values()), abs=9)
    narrow = paper_of(RooflineSettings(cache_dtype="float8_e4m3fn"))
    assert narrow["bytes_per_step"] / paper["bytes_per_step"] == pytest.approx(0.59, abs=0.01)
    assert (paper["prompt_shared_by_variants"], paper["prompt_shared_by_users_of_a_product"]) == (1200, 23)


def test_the_rooflines_7b_numbers():
    sizes = janus_pro_7b().decoder
    assert linear_parameters(sizes) == 30 * (4 * 4096**2 + 3 * 4096 * 11008) == 6_071_255_040
    assert round(2 * linear_parameters(sizes) / 1e9, 2) == 12.14
    assert kv_bytes_per_token(sizes, 2) == 491_520


@pytest.mark.parametrize(("prompt", "expected"), [(32, 16.5), (1300, 4.8)])
def test_the_rooflines_pictures_a_second_on_an_h200(prompt, expected):
    """docs/design.md 7.4: B = 64; both branches hold the prompt there, which a negative prompt a row would."""
    work = picture_work(Workload(janus_pro_7b(), 2, 64, prompt, negative_tokens=0))
    kv = work.bytes["keys and values of conditional rows"]
    both = {"decoder weights": work.bytes["decoder weights"], "conditional": kv, "unconditional": kv}
    assert 64 / (sum(both.values()) / 4.8e12) == pytest.approx(expected, rel=0.05)


def test_parameters_are_the_models():
    config = small_config()
    model = UniAdGen(config)
    layers = sum(p.numel() for p in model.decoder.layers.parameters()) + model.decoder.norm.weight.numel()
    assert decoder_parameters(config.decoder) == layers
    assert head_parameters(config) == sum(p.numel() for p in model.image_head.parameters())


def test_the_bytes_and_operations_of_a_picture_by_hand():
    """hidden 64, inner 96, 3 layers, 4 heads of 16, 2 key/value heads; head 48, 64 codes; 16 image tokens: 15 steps."""
    work = picture_work(Workload(small_config(), 4, batch=2, prompt_tokens=10, negative_tokens=5))
    linears = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    head = 65 * 48 + 49 * 64
    kv = 2 * 3 * 32 * 4
    assert work.bytes == {
        "decoder weights": 4 * (linears + 7 * 64) * 15,
        "image head weights": 4 * head * 16,
        "image-token table rows": 4 * 2 * 64 * 15,
        "keys and values of conditional rows": kv * 2 * (11 + 25) * 15 // 2,  # 11, 12, ... 25 positions
        "keys and values of unconditional rows": kv * 2 * (1 + 15) * 15 // 2,
        "shared negative prefix": kv * 5 * 15,
        "keys and values written": kv * 4 * 15,
        "foreground additions": 4 * 2 * 2 * 64 * 15,  # layers 0 and 2
    }
    positions = 2 * (11 + 25) * 15 // 2 + 2 * (6 + 20) * 15 // 2
    assert work.flops == {
        "decoder": 2 * linears * 4 * 15,
        "image head": 2 * head * 4 * 16,
        "attention": positions * 3 * 4 * 64,
    }


def test_narrow_weights_and_caches_move_fewer_bytes():
    full = picture_work(Workload(small_config(), 4, 2, 10, 5)).bytes
    narrow = picture_work(Workload(small_config(), 4, 2, 10, 5, weight_bytes=1, cache_bytes=2)).bytes
    share = {name: narrow[name] / full[name] for name in full}
    assert {name for name in share if share[name] == 0.25} == {"decoder weights", "image head weights"}
    assert {name for name in share if share[name] == 1} == {"image-token table rows", "foreground additions"}
    assert sorted(share.values())[2:6] == [0.5] * 4


def test_title_and_prefill_by_hand():
    load = Workload(small_config(), 4, batch=2, prompt_tokens=10, negative_tokens=5, title_tokens=3, history_items=0)
    linears, kv = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96), 2 * 3 * 32 * 4
    title, prefill = title_work(load), prefill_work(load)
    assert title.bytes["text head weights"] == 4 * 640 * 64 * 3
    # Three tokens are drawn, two of them read: behind 10 and 11 others, each sees itself too.
    assert title.bytes["keys and values"] == kv * (2 * (11 + 12) + 2 * 2)
    assert title.flops["decoder"] == 2 * linears * 2 * 2
    assert prefill.flops["decoder"] == 2 * linears * 2 * 10
    assert prefill.flops["attention"] == 2 * 55 * 3 * 4 * 64
    assert prefill.flops["history"] == 0
    assert prefill.bytes["decoder weights"] == 4 * (linears + 7 * 64)


def test_the_counted_parts_by_hand():
    """Condition MLPs: 24 -> 64 -> 64, then 64 -> 64 -> 64 for the condition tokens and for each of 2 layers, 16 tokens."""
    mlps = 2 * 16 * ((24 * 64 + 64 * 64) + 3 * 2 * 64 * 64)
    patches = 2 * 16 * 24 * 3 * 14 * 14
    # DINOv2, one layer over 16 patches and CLS: q, k, v, out, feed-forward of four times the width, attention.
    layer = 2 * 17 * (4 * 24 * 24 + 8 * 24 * 24) + 4 * 17 * 17 * 24
    load = Workload(small_config(), 4, batch=3, prompt_tokens=10, negative_tokens=5)
    work = prefill_work(load)
    assert work.flops["foreground"] == 3 * (mlps + patches + layer)
    assert work.flops["history"] > 0
    assert vq_work(load).flops["decoder"] > 0
    # VQ decoding is convolutions: twice the side is four times the work.
    image = load.config.image.model_copy(update={"image_size": 32})
    foreground = load.config.foreground.model_copy(update={"condition_size": 128})
    larger = Workload(small_config(image=image, foreground=foreground), 4, 3, 10, 5)
    assert vq_work(larger).flops["decoder"] == pytest.approx(4 * vq_work(load).flops["decoder"], rel=0.1)


@pytest.mark.slow
def test_the_longer_of_bytes_and_operations_is_the_roofline():
    load = Workload(janus_pro_7b(), 2, 64, 1200, negative_tokens=40, title_tokens=20)
    work = picture_work(load)
    assert work.bound(H200) == "bandwidth"
    assert work.seconds(H200) == pytest.approx(sum(work.bytes.values()) / 4.8e12)
    slow = Machine(read_gb_s=4800, copy_gb_s=4000, triad_gb_s=4000, gflops=1000)
    assert work.bound(slow) == "matrix rate"
    assert work.seconds(slow) == pytest.approx(sum(work.flops.values()) / 1e12)
    made = roofline(load, H200)
    assert made.ms_per_step == pytest.approx(1000 * work.seconds(H200) / 576)
    assert made.seconds == pytest.approx(made.prefill + made.title + made.picture + made.vq)
    assert 0.6 * 64 / made.seconds == pytest.approx(4, rel=0.1)  # the goal: 60% of the roofline, about 4 pictures a second


def test_the_price_of_a_thousand_creatives():
    assert per_thousand(0.25, price_an_hour=3.6) == {"device_seconds_per_1000": 250.0, "cost_per_1000": 0.25}
