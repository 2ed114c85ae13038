"""Linears in panels and a step in one call, against torch and against the same layers one by one."""

import copy

import pytest
import torch
from support.caches import filled
from support.models import small_config, small_model
from torch import nn
from torch.nn import functional as F

from adgen.generation.caches import CfgBranch, empty_cache
from adgen.generation.kernels import cpu
from adgen.generation.layers import StepLayers
from adgen.generation.linears import PanelLinear, preparation
from adgen.model.decoder import Decoder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(cpu.library() is None, reason="no C compiler on this machine")]
CPU = torch.device("cpu")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (37, 50), (64, 96), (130, 257)])
def test_a_linear_in_panels_is_the_linear_whatever_its_size(inputs, outputs, gated):
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs * (1 + gated), inputs, generator=generator) * inputs**-0.5
    bias = None if gated else torch.randn(outputs, generator=generator)
    linear = PanelLinear(weight, bias, gated)
    for rows in (1, 3, 8, 9, 140):
        x = torch.randn(rows, inputs, generator=generator)
        expected = F.linear(x, weight, bias)
        if gated:
            gate, up = expected.chunk(2, dim=-1)
            expected = F.silu(gate) * up
        torch.testing.assert_close(linear(x), expected, atol=3e-6, rtol=3e-6)
        apart = torch.cat([linear(row[None]) for row in x])
        assert torch.equal(linear(x), apart), "a row's bits depend on its neighbours"
    assert linear(torch.randn(2, 3, inputs)).shape == (2, 3, outputs)
    assert linear(torch.empty(0, inputs)).shape == (0, outputs)


def test_gates_far_from_zero_neither_overflow_nor_vanish():
    gates = torch.tensor([-200.0, -90.0, -30.0, -1.0, 0.0, 1.0, 30.0, 90.0, 200.0])
    linear = PanelLinear(torch.cat((gates[:, None], torch.ones(9, 1))), gated=True)
    torch.testing.assert_close(linear(torch.ones(1, 1))[0], F.silu(gates), atol=1e-30, rtol=1e-6)


def layers_of(decoder: Decoder) -> StepLayers:
    return StepLayers(copy.deepcopy(decoder), preparation("same", num_rows=6))


def branches_of(layers: StepLayers, cache_type: torch.dtype, plain: bool) -> tuple[CfgBranch, CfgBranch]:
    generator = torch.Generator().manual_seed(1)
    size = len(layers.layers), layers.num_groups, layers.head_size
    make = lambda rows, capacity: empty_cache(size[0], rows, size[1], capacity, size[2], CPU, cache_type)  # noqa: E731
    conditional, unconditional, prefix = (filled(make(*shape), generator) for shape in ((3, 90), (3, 40), (1, 7)))
    conditional.lengths.copy_(torch.tensor([70, 1, 64]))
    active = torch.tensor([True, True, False])
    return (
        CfgBranch(conditional, torch.zeros(3, dtype=torch.int64), active, plain=plain),
        CfgBranch(unconditional, torch.full((3,), 7), active.clone(), prefix, plain=plain),
    )


@pytest.mark.parametrize("cache_type", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_in_one_call_is_its_layers_one_by_one(cache_type):
    """With additions and without, a row that waits, one branch or two, and after a cache has moved."""
    decoder = small_model().decoder
    layers = layers_of(decoder)
    assert layers._in_one_call
    ours, theirs = branches_of(layers, cache_type, False), branches_of(layers, cache_type, True)
    generator = torch.Generator().manual_seed(2)
    width, config = decoder.config.hidden_size, small_config()
    working = torch.tensor([True, True, False] * 2)
    for number in range(4):
        additions = torch.randn(config.num_additions, 6, width, generator=generator) if number % 2 else None
        x = torch.randn(6, width, generator=generator)
        found, expected = layers.step(x, ours, additions), layers.step(x, theirs, additions)
        close = {"atol": 1e-5, "rtol": 1e-5} if cache_type == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
        torch.testing.assert_close(found[working], expected[working], **close)
        assert ours[0].cache.lengths.tolist() == theirs[0].cache.lengths.tolist() == [71 + number, 2 + number, 64]
        moved = empty_cache(len(layers.layers), 3, layers.num_groups, 95 + number, layers.head_size, CPU, cache_type)
        moved.copy_from(ours[0].cache)
        ours[0].cache = moved
    one = layers.step(x[:3], ours[:1])
    torch.testing.assert_close(one[:2], layers.step(x[:3], theirs[:1])[:2], **close)


def test_a_rows_step_does_not_depend_on_its_neighbours_or_on_the_number_of_threads():
    layers = layers_of(small_model().decoder)
    x = torch.randn(6, small_config().decoder.hidden_size, generator=torch.Generator().manual_seed(3))
    whole = layers.step(x, branches_of(layers, torch.float32, False))
    other = x.clone()
    other[1:] = 0
    before = torch.get_num_threads()
    torch.set_num_threads(3 if before == 1 else 1)
    again = layers.step(other, branches_of(layers, torch.float32, False))
    torch.set_num_threads(before)
    assert torch.equal(whole[0], again[0])


def test_a_layer_that_the_kernel_does_not_know_runs_layer_by_layer():
    decoder = small_model().decoder
    decoder.layers[1].mlp.down_proj = type("Other", (nn.Linear,), {})(96, 64, bias=False)
    assert not layers_of(decoder)._in_one_call
    narrow = small_model().decoder.to(torch.bfloat16)
    assert not layers_of(narrow)._in_one_call
