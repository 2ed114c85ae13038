"""A cache in float8 is as near to one in float32 however large a head's keys and values are."""

import copy

import pytest
import torch
from support.models import small_config, small_model
from torch import nn

from adgen.generation.cache_scales import fold_cache_scales
from adgen.generation.caches import CfgBranch, empty_cache
from adgen.generation.layers import StepLayers
from adgen.generation.linears import preparation
from adgen.model.decoder import Decoder

CPU = torch.device("cpu")


def stretched(decoder: Decoder, keys: float, values: float) -> Decoder:
    """The same function with keys and values of another size."""
    decoder = copy.deepcopy(decoder)
    for layer in decoder.layers:
        attention = layer.self_attn
        for linear, factor in (("k_proj", keys), ("q_proj", 1 / keys), ("v_proj", values), ("o_proj", 1 / values)):
            weight = getattr(attention, linear).weight
            getattr(attention, linear).weight = nn.Parameter(weight * factor, requires_grad=False)
    return decoder


@torch.no_grad()
def last_hidden(decoder: Decoder, cache_type: torch.dtype, fold: bool = True) -> torch.Tensor:
    """Hidden states (2, D) after a prompt of 12 tokens and five steps."""
    narrow = cache_type == torch.float8_e4m3fn
    layers = StepLayers(copy.deepcopy(decoder), preparation("same", num_rows=2), float8_cache=narrow and fold)
    cache = empty_cache(len(layers.layers), 2, layers.num_groups, 20, layers.head_size, CPU, cache_type)
    branch = CfgBranch(cache, torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    width = small_config().decoder.hidden_size
    for row in range(2):
        layers.prefill(torch.randn(12, width, generator=generator), branch.row(row))
    for _ in range(5):
        out = layers.step(torch.randn(2, width, generator=generator), (branch,))
    return out


def error(decoder: Decoder, fold: bool = True) -> float:
    exact = last_hidden(decoder, torch.float32)
    return float((last_hidden(decoder, torch.float8_e4m3fn, fold) - exact).norm() / exact.norm())


@pytest.mark.parametrize(("keys", "values"), [(2.0**14, 1.0), (1.0, 2.0**14), (2.0**-14, 2.0**-14), (2.0**14, 2.0**-14)])
def test_scales_bring_every_head_into_float8s_range(keys, values):
    decoder = small_model().decoder
    far = stretched(decoder, keys, values)
    torch.testing.assert_close(last_hidden(far, torch.float32), last_hidden(decoder, torch.float32), atol=1e-4, rtol=1e-4)
    assert error(far) < 1.5 * error(decoder) < 0.2
    assert error(far, fold=False) > 2 * error(far), "without scales they leave the range"


def test_to_fold_scales_changes_no_bit_of_what_a_layer_computes():
    decoder = stretched(small_model().decoder, 2.0**14, 2.0**-14)
    folded = copy.deepcopy(decoder)
    for layer in folded.layers:
        before = layer.self_attn.k_proj.weight
        fold_cache_scales(layer)
        assert layer.self_attn.k_proj.weight is not before, "another model may hold these weights"
    embeds = torch.randn(1, 9, small_config().decoder.hidden_size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(folded(embeds), decoder(embeds))


def test_heads_that_fit_are_left_as_they_are():
    """What a float8 cache made before is made again."""
    layer = small_model().decoder.layers[0]
    weights = list(layer.parameters())
    fold_cache_scales(layer)
    assert all(a is b for a, b in zip(weights, layer.parameters(), strict=True))
