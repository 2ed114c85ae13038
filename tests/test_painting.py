"""The image loop: what it may not do."""

import pytest
import torch
from small_models import small_model, small_prompter
from test_generate import SAMPLED, requests
from torch.overrides import TorchFunctionMode

from adgen.generation import layers
from adgen.generation.engine import Engine, EngineSettings
from adgen.generation.kernels import cpu

READS_BACK = {
    "tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal", "unique",
    "masked_select", "__array__", "__contains__",
}  # fmt: skip


class NothingReadBack(TorchFunctionMode):
    """Raises when a result, or its shape, must travel to the host: a GPU would have to be waited for."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if getattr(function, "__name__", "") in READS_BACK:
            raise AssertionError(f"{function.__name__} waits for the device")
        return function(*arguments, **(keywords or {}))


def attention_without_kernels(qkv, cos, sin, halves, layer):
    """Of the right shape; the GPU kernel's own host side is tested with Triton's interpreter."""
    return qkv[:, : qkv.shape[1] // 2] * cos.mean() + sin.mean()


@pytest.fixture
def engine(monkeypatch) -> Engine:
    monkeypatch.setattr(layers, "attend", attention_without_kernels)
    monkeypatch.setattr(cpu, "library", lambda: None)
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=2, deepspeed=False), SAMPLED)
    engine.generate(requests()[:2])
    with torch.inference_mode():
        engine._runner.slots.start_pictures()
        engine._runner.slots.steps += 1
    return engine


@torch.inference_mode()
@pytest.mark.parametrize("with_additions", [False, True])
def test_no_value_comes_back_to_the_host_inside_the_image_loop(engine, with_additions):
    with NothingReadBack():
        for _ in range(3):
            engine._runner._painter._step(with_additions)
    assert engine._runner.slots.steps.tolist() == [4, 4]
    for read in (torch.Tensor.tolist, lambda t: int(t[0]), lambda t: bool((t > 0).any()), lambda t: t[t > 0].cpu()):
        with pytest.raises(AssertionError, match="waits for the device"), NothingReadBack():
            read(engine._runner.slots.steps)


@torch.inference_mode()
def test_nor_inside_a_title_step(engine):
    with NothingReadBack():
        engine._runner._writer._read_token()


@torch.inference_mode()
def test_a_step_takes_no_memory_that_grows(engine):
    """What a step leaves behind lies where it lay: a graph could replay it."""
    places = lambda: [t.data_ptr() for t in engine._runner.slots.state() + engine._runner.slots.conditional.cache.keys]  # noqa: E731
    before = places()
    engine._runner._painter._step(True)
    assert places() == before
