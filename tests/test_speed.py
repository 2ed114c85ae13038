"""What a run says of its speed, and the number of slots it is planned with; no Ray is started."""

import subprocess
import sys

import pytest
import torch
from support.engine import SAMPLED, requests, small_engine
from support.models import save_small_model, small_config, small_model, small_prompter

from adgen.generation.benchmark.machine import Machine
from adgen.generation.benchmark.roofline import Workload, roofline
from adgen.generation.engine_settings import CPU_SLOTS, EngineSettings
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.sampling_settings import SamplingChoice
from adgen.generation.slots_per_device import plan_num_slots, row_capacity
from adgen.generation.timings import PhaseTimings
from adgen.on_ray.refresh import slot_plan
from adgen.on_ray.refresh import speed as speed_module
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.refresh.slot_plan import plan_slots
from adgen.on_ray.refresh.speed import RunSpeed, engine_cost, shard_speed

MACHINE = Machine(read_gb_s=10, copy_gb_s=10, triad_gb_s=10, gflops=100)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr(speed_module, "machine_rates", lambda *_: MACHINE)
    monkeypatch.setattr(speed_module, "ENOUGH_SECONDS", 0.0)


def test_a_shards_roofline_is_that_of_its_prompts_titles_and_pictures():
    engine = small_engine(num_slots=2)
    made = engine.generate(requests())
    spent = engine.timings
    assert spent.rows == 6, "the last batch's second slot is filled"
    lengths = [len(engine._prompter.picture_prompt(r.facts, m.title)) for r, m in zip(requests(), made, strict=True)]
    assert spent.prompt_tokens == sum(lengths) + lengths[-1]
    work = Workload(
        config=small_config(), element_bytes=4, batch=2, prompt_tokens=round(spent.prompt_tokens / 6),
        negative_tokens=len(small_prompter().negative_prompt()), title_tokens=round(spent.title_steps / 3),
    )  # fmt: skip
    expected = roofline(work, MACHINE).seconds / 2 * 5
    assert shard_speed(engine, spent, 5) == {"engine_seconds": spent.seconds, "roofline_seconds": pytest.approx(expected)}
    assert shard_speed(engine, PhaseTimings(), 0) == {"engine_seconds": 0.0, "roofline_seconds": None}


def test_an_engine_that_worked_for_a_moment_is_not_compared_with_its_machine(monkeypatch):
    monkeypatch.setattr(speed_module, "ENOUGH_SECONDS", 1.0)
    engine = small_engine(num_slots=2)
    short = PhaseTimings(picture=0.4, rows=2)
    engine.timings = PhaseTimings(picture=0.9, rows=4)
    assert shard_speed(engine, short, 2) == {"engine_seconds": 0.4, "roofline_seconds": None}
    engine.timings = PhaseTimings(picture=1.3, rows=6)
    assert shard_speed(engine, short, 2)["roofline_seconds"] > 0


def test_a_run_reports_share_of_the_roofline_device_seconds_and_cost():
    priced = RefreshSettings(forecast={"price_an_hour": 3.6}, engine={"tensor_parallel": 2})
    run = RunSpeed(priced)
    for seconds, least, pictures, ok in ((3.0, 1.5, 10, 5), (5.0, 2.5, 30, 15)):
        run.count({"engine_seconds": seconds, "roofline_seconds": least, "engine_calls": pictures, "made_ok": ok})
    cost = {"device_seconds_per_1000": 800.0, "cost_per_1000": 0.4}
    speed = {"engine_busy": None, "share_of_roofline": 0.5, "share_of_floor": 0.5} | cost
    assert run.report() == speed
    run.count({"engine_seconds": 8.0, "roofline_seconds": None, "engine_calls": 40, "made_ok": 20})
    assert run.report() == speed, "a share of what was compared"
    assert RunSpeed(RefreshSettings(), 1.0, 1.0, 0.5, 10, 10).report()["cost_per_1000"] is None
    assert set(RunSpeed(priced).report().values()) == {None}
    all_rejected = RunSpeed(priced, 1.0, 1.0, 0.5, 10).report()
    assert (all_rejected["device_seconds_per_1000"], all_rejected["cost_per_1000"]) == (None, None)


@pytest.mark.parametrize(("tensor_parallel", "devices"), [(1, 1), (4, 4)])
def test_a_price_is_that_of_an_engine_whatever_devices_it_spans(tensor_parallel, devices):
    settings = RefreshSettings(forecast={"price_an_hour": 3.6}, engine={"tensor_parallel": tensor_parallel})
    assert engine_cost(100, 50, settings) == pytest.approx((0.1, 2000 * devices, 2))
    assert engine_cost(100, 0, settings) == (pytest.approx(0.1), None, None)


def test_slots_are_planned_for_the_smallest_gpu_and_a_set_number_is_kept(tmp_path, monkeypatch):
    save_small_model(tmp_path)
    settings = RefreshSettings(model=tmp_path, sampling=SamplingChoice(**SAMPLED.model_dump()))
    monkeypatch.setattr(slot_plan, "smallest_memory", lambda: 20_000_000)
    capacity = row_capacity(small_config(), small_prompter(), SAMPLED)
    expected = plan_num_slots(small_config(), capacity, 20_000_000, torch.bfloat16, torch.bfloat16)
    assert 1 < expected < 256
    assert plan_slots(settings, ModelDirectory(tmp_path), "cuda") == expected
    assert plan_slots(settings, ModelDirectory(tmp_path), "cpu") == CPU_SLOTS
    assert plan_slots(settings.model_copy(update={"engine": EngineSettings(num_slots=9)}), ModelDirectory(tmp_path), "cuda") == 9


def test_only_lossy_options_change_what_a_creative_is_made_of():
    plain = RefreshSettings()
    with_engine = lambda **values: RefreshSettings(engine=values).creative_digests(None)  # noqa: E731
    assert with_engine(num_slots=3, tensor_parallel=2, deepspeed=False) == plain.creative_digests(None)
    lossy = [{"weights": "int8"}, {"cache_dtype": "float8_e4m3fn"}]
    assert len({plain.creative_digests(None), *(with_engine(**values) for values in lossy)}) == 3


def test_the_model_itself_is_what_the_roofline_counts():
    assert small_engine().model_config == small_model().config


@pytest.mark.slow
@pytest.mark.parametrize("module", ["adgen.on_ray.refresh.settings", "adgen.on_ray.refresh.stages"])
def test_workers_without_an_engine_load_no_torch(module):
    """Seconds and hundreds of megabytes of each look-up and finishing worker."""
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'deepspeed', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
