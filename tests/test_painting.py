"""The image loop: what it may not do."""

import pytest
import torch
from support.engine import SAMPLED, requests
from support.models import small_model, small_prompter
from torch.overrides import TorchFunctionMode

from adgen.generation import layers
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.kernels import cpu

READS_BACK = {
    "tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal", "unique",
    "masked_select", "__array__", "__contains__", "is_nonzero", "allclose", "argwhere", "bincount", "repeat_interleave",
}  # fmt: skip


def shape_is_data(name: str, arguments: tuple) -> bool:
    """Choosing by a mask, or asking where it is true: the result's shape must be known before anything can go on."""
    if name in ("__getitem__", "__setitem__"):
        chosen = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
        return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in chosen)
    return (name == "where" and len(arguments) == 1) or (name == "to" and "cpu" in map(str, arguments[1:]))


class NothingReadBack(TorchFunctionMode):
    """Raises when a result, or its shape, must travel to the host: a GPU would have to be waited for."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        name = getattr(function, "__name__", "")
        if name in READS_BACK or shape_is_data(name, arguments):
            raise AssertionError(f"{name} waits for the device")
        return function(*arguments, **(keywords or {}))


def attention_without_kernels(qkv, cos, sin, branches, layer):
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
    reads = (
        torch.Tensor.tolist, lambda t: int(t[0]), lambda t: bool((t > 0).any()), lambda t: t[t > 0], torch.argwhere,
        lambda t: t.to("cpu"), lambda t: torch.where(t > 0), torch.Tensor.is_nonzero, torch.bincount,
    )  # fmt: skip
    for read in reads:
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
