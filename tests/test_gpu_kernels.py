"""The Triton kernels' numbers, on any machine: Triton's interpreter runs them on the CPU against their torch twins.

The interpreter must be chosen before Triton is imported, so this file's kernels run in a process of their own.
"""

import pytest
from support.processes import python

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")


def interpreted(code: str) -> None:
    """Run `code` beside the tests, kernels interpreted."""
    python(code, TRITON_INTERPRET="1")


def test_attention_computes_what_torch_computes_in_any_number_of_stretches():
    interpreted("""
import torch
from support.caches import example
from adgen.generation.attention import attend_torch, split_heads
from adgen.generation.kernels import gpu_attention as gpu
float8 = torch.float8_e4m3fn
for cache_type, heads, groups, size, shared in (torch.float32, 4, 2, 32, 70), (torch.bfloat16, 3, 1, 6, 0), (float8, 2, 2, 16, 70):
    branch, *step = example(cache_type, heads, groups, size, shared)
    twin, *_ = example(cache_type, heads, groups, size, shared)
    expected, working = attend_torch(*step, twin, 1), branch.active
    torch.testing.assert_close(gpu.attend_gpu(*step, branch, 1)[working], expected[working], atol=2e-6, rtol=2e-6)
    for layer in 0, 1:
        for mine, theirs in (branch.cache.keys, twin.cache.keys), (branch.cache.values, twin.cache.values):
            assert torch.equal(mine[layer][working].float(), theirs[layer][working].float())
    queries, _, _ = split_heads(*step, groups)
    for stretch in 128, 64:
        again = gpu.look(queries, branch, 1, stretch)
        torch.testing.assert_close(again[working], expected[working], atol=2e-6, rtol=2e-6)
        assert not again[~working].any()
    # A larger cache, which a neighbour's long prompt may ask for, adds empty stretches and changes no bit.
    grown = [torch.cat((t, torch.randn(t.shape[0], t.shape[1], 150, t.shape[3]).to(t.dtype)), dim=2) for t in
             (branch.cache.keys[1].float(), branch.cache.values[1].float())]
    branch.cache.keys[1], branch.cache.values[1] = (t.to(cache_type) for t in grown)
    assert torch.equal(gpu.look(queries, branch, 1, 64)[working], again[working])
""")


def test_the_draw_is_that_of_torch():
    interpreted("""
import torch
from adgen.generation.kernels.gpu_draw import draw_gpu
from adgen.generation.sampling import PICTURE, gumbel_noise, guided, sample
generator, seeds = torch.Generator().manual_seed(1), torch.tensor([0, 2**63 - 1, 123456789123456789])
for size in 1000, 4096:
    for temperature in 0.0, 0.7:
        for step in range(3):
            logits, steps = torch.randn(6, size, generator=generator), torch.tensor([step, step + 1, 575 - step])
            draw_gpu(logits, seeds, steps, PICTURE, 3.0, temperature, codes := torch.zeros(3, dtype=torch.int64))
            noise = gumbel_noise(seeds, steps, PICTURE, size) if temperature else None
            assert torch.equal(codes, sample(guided(*logits.chunk(2), 3.0), temperature, noise))
""")


def test_a_stretch_follows_from_the_batch_and_the_gpu_alone():
    from adgen.generation.kernels.gpu_attention import _stretch

    assert _stretch(programs=4096, processors=132) == 4096
    assert _stretch(programs=64, processors=132) == 256
    assert _stretch(programs=1, processors=132) == 128
