"""A kernel that differs from the plain path, or fails, is switched off by name; what is left makes the same creatives."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from support.engine import GREEDY, SAMPLED, requests
from support.models import save_small_model, small_model, small_prompter
from support.processes import python

from adgen.cli import main
from adgen.generation import attention, sampling
from adgen.generation.device_check import check_attention, check_capture
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import generate
from adgen.generation.kernels import cpu
from adgen.on_ray.refresh import replay
from adgen.on_ray.refresh.provenance import provenance
from adgen.on_ray.refresh.settings import RefreshSettings

pytestmark = pytest.mark.slow

needs_kernel = pytest.mark.skipif(not cpu.library(), reason="no C compiler")


def engine(sampling_settings=GREEDY, check=True, **settings) -> Engine:
    made = EngineSettings(**{"num_slots": 3, "deepspeed": False} | settings)
    return Engine(small_model(), small_prompter(), made, sampling_settings, check=check)


@needs_kernel
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"cache_dtype": "float8_e4m3fn"}], ids=str)
def test_right_kernels_are_trusted(options):
    made = engine(SAMPLED, **options)
    assert [(each.check, each.trouble) for each in made.findings] == [("attention", ""), ("guidance", ""), ("draw", "")]
    assert made.switched_off == frozenset()


def times(factor):
    right = attention.attend_cpu
    return lambda *arguments: right(*arguments) * factor


def forgetting(*arguments):
    """Right outputs, and nothing of the newest token in the cache."""
    branches = arguments[3]
    kept = [(branch.cache, [t.clone() for t in (*branch.cache.keys, *branch.cache.values)]) for branch in branches]
    out = RIGHT(*arguments)
    for cache, tensors in kept:
        for tensor, before in zip((*cache.keys, *cache.values), tensors, strict=True):
            tensor.copy_(before)
    return out


RIGHT = attention.attend_cpu


def failing(*_):
    raise RuntimeError("no kernel image is available for execution on the device\nmore")


def first_code(logits, seeds, steps, stream, weight, temperature, codes):
    codes.zero_()


def not_a_number(*arguments):
    return RIGHT(*arguments) * float("nan")


WRONG = {
    "attention a thousandth off": (attention, "attend_cpu", times(1.001), "attention", "error"),
    "attention that is no number": (attention, "attend_cpu", not_a_number, "attention", "error nan"),
    "attention that forgets": (attention, "attend_cpu", forgetting, "attention", "other keys and values in the cache"),
    "attention that fails": (attention, "attend_cpu", failing, "attention", "RuntimeError: no kernel image"),
    "a draw of other tokens": (cpu, "draw", first_code, "draw", "rows got another token"),
    "a draw that fails": (cpu, "draw", failing, "draw", "RuntimeError: no kernel image"),
}
FURTHER = ("attention that is no number", "attention that forgets")


@needs_kernel
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in FURTHER)) for name in WRONG])
def test_a_wrong_kernel_is_switched_off_and_the_creatives_are_right(name, monkeypatch, caplog):
    place, function, wrong, kernel, said = WRONG[name]
    expected = generate(small_model(), small_prompter(), requests(), SAMPLED)
    monkeypatch.setattr(place, function, wrong)
    with caplog.at_level(logging.WARNING):
        made = engine(SAMPLED)
    assert made.switched_off == {kernel}
    assert f"{kernel} is switched off: " in caplog.text
    assert said in caplog.text
    results = made.generate(requests())
    assert {each.kernels_off for each in results} == {kernel}
    for one, other in zip(results, expected, strict=True):
        assert (one.title, one.codes.tolist()) == (other.title, other.codes.tolist())


@needs_kernel
def test_an_engine_on_a_cpu_checks_only_when_told(monkeypatch):
    monkeypatch.setattr(attention, "attend_cpu", failing)
    made = engine(check=None)
    assert (made.findings, made.switched_off) == ([], frozenset())


def test_without_any_kernel_the_plain_path_makes_the_same_creatives():
    expected = generate(small_model(), small_prompter(), requests(), SAMPLED)
    made = engine(SAMPLED, switch_off=("attention", "draw", "captured step"))
    assert made.findings == []
    results = made.generate(requests())
    assert {each.kernels_off for each in results} == {"attention,captured step,draw"}
    for one, other in zip(results, expected, strict=True):
        assert (one.title, one.codes.tolist()) == (other.title, other.codes.tolist())


def test_a_captured_step_that_draws_otherwise_is_found():
    runner = engine(check=False)._ready_runner()
    assert check_capture(runner).trouble == ""
    draw = runner._painter._draw

    def late(hidden):
        draw(hidden)
        runner.slots.code.add_(1).remainder_(64)

    runner._painter._draw = late
    found = check_capture(runner)
    assert found.kernel == "captured step"
    assert "rows got other tokens" in found.trouble
    runner._painter._draw = failing
    assert check_capture(runner).trouble.startswith("RuntimeError: no kernel image")


def test_out_of_memory_is_no_fault_of_a_kernel(monkeypatch):
    def hungry(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = engine(check=False)
    monkeypatch.setattr(attention, "attend_cpu", hungry)
    monkeypatch.setattr(attention, "attend_torch", hungry)
    with pytest.raises(torch.OutOfMemoryError):
        check_attention(made._layers, 2, made.dtype, made.dtype, made.device)


def test_triton_kernels_are_trusted_and_a_wrong_one_is_found():
    pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")
    python(
        """
import torch
from functools import partial
from support.models import small_model, small_prompter
from support.engine import SAMPLED
from adgen.generation import attention, sampling
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.kernels import cpu, gpu_attention
from adgen.generation.kernels.gpu_draw import draw_gpu
attention.attention_kernel = lambda *_: partial(attention._branch_by_branch, gpu_attention.attend_gpu)
sampling.draw_kernel = lambda *_: draw_gpu
from adgen.generation import device_check
device_check.attention_kernel, device_check.draw_kernel = attention.attention_kernel, sampling.draw_kernel
settings = EngineSettings(num_slots=3, deepspeed=False)
made = Engine(small_model(), small_prompter(), settings, SAMPLED, check=True)
assert [(each.check, each.trouble) for each in made.findings] == [("attention", ""), ("guidance", ""), ("draw", "")], made.findings
look = gpu_attention.look
gpu_attention.look = lambda *a, **k: look(*a, **k) + 0.001
made = Engine(small_model(), small_prompter(), settings, SAMPLED, check=True)
assert made.switched_off == {"attention"}, made.findings
""",
        TRITON_INTERPRET="1",
    )


def test_a_lineage_names_what_was_switched_off_and_a_replay_does_without_it(monkeypatch, tmp_path):
    settings = RefreshSettings(inputs="x", store="x", campaign="c", model=tmp_path, device="cpu")
    result = SimpleNamespace(num_slots=3, kernels_off="attention,captured step", title="a", title_closed=True, codes=torch.zeros(2))
    lineage = provenance(result, settings)
    assert lineage["kernels_off"] == "attention,captured step"
    monkeypatch.setattr(replay, "_require_model", lambda *_: None)
    run = SimpleNamespace(settings=settings.model_dump(mode="json", exclude={"keys"}), campaign="c", run_id="r")
    for said, off in (lineage["kernels_off"], ("attention", "captured step")), ("", ()), (None, ()):
        source = replay.Source({}, run, {}, lineage | {"kernels_off": said})
        made = replay._settings(source, SimpleNamespace(uri="x"), None, "cpu", None)
        assert made.engine.switch_off == off
    assert EngineSettings(switch_off=("draw",)).lossy_options() == {}
    assert EngineSettings(switch_off=("draw",)).digest() != EngineSettings().digest()


def test_the_command_checks_a_device(tmp_path, monkeypatch, capsys):
    save_small_model(tmp_path)
    assert main(["check-device", str(tmp_path), "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["switched_off"], said["dtype"], said["num_slots"]) == ([], "float32", 4)
    if cpu.library():
        monkeypatch.setattr(sampling.cpu, "draw", failing)
        assert main(["check-device", str(tmp_path), "--device", "cpu"]) == 1
        assert "no kernel image" in capsys.readouterr().out.replace("\n", " ")
