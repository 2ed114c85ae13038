"""The C kernels against their torch twins: attention over caches of every kind, and the draw of image tokens."""

from itertools import pairwise

import pytest
import torch
from support.caches import LENGTHS, example
from support.processes import python

from adgen.generation import attention
from adgen.generation.attention import attend_cpu, attend_torch
from adgen.generation.caches import CfgBranch, empty_cache
from adgen.generation.kernels import cpu
from adgen.generation.sampling import PICTURE, draw_codes, draw_tokens, gumbel_noise, gumbel_noise_at, sample
from adgen.generation.sampling_settings import SamplingSettings

pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C compiler on this machine")
CACHE_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)


@needs_compiler
@pytest.mark.parametrize("shared", [0, 70])
@pytest.mark.parametrize(("heads", "groups", "head_size"), [(4, 2, 32), (3, 3, 64), (8, 1, 6), (2, 2, 256)])
@pytest.mark.parametrize("cache_type", CACHE_TYPES, ids=str)
def test_the_kernel_computes_what_torch_computes(cache_type, heads, groups, head_size, shared):
    branch, *step = example(cache_type, heads, groups, head_size, shared)
    twin, *_ = example(cache_type, heads, groups, head_size, shared)
    out, expected = attend_cpu(*step, (branch,), 1), attend_torch(*step, twin, 1)
    working = branch.active
    torch.testing.assert_close(out[working], expected[working], atol=2e-6, rtol=2e-6)
    for mine, theirs in ((branch.cache.keys, twin.cache.keys), (branch.cache.values, twin.cache.values)):
        # Rotation may round the other way, by a step of the cache's type.
        step_size = torch.finfo(cache_type).eps
        torch.testing.assert_close(mine[1].float(), theirs[1].float(), atol=1e-6, rtol=step_size)
        assert torch.equal(mine[0].float(), theirs[0].float()), "another layer's cache was touched"
    assert torch.equal(
        branch.cache.keys[1][2].float(), example(cache_type, heads, groups, head_size, shared)[0].cache.keys[1][2].float()
    )


@needs_compiler
@pytest.mark.parametrize("cache_type", CACHE_TYPES, ids=str)
def test_a_rows_bits_depend_on_that_row_alone(cache_type):
    """Other neighbours, another capacity, another number of threads: the same bits."""
    branch, qkv, cos, sin = example(cache_type, shared=5)
    alone = empty_cache(2, 1, 2, 300, 32, torch.device("cpu"), cache_type)
    for mine, theirs in zip(alone.keys + alone.values, branch.cache.keys + branch.cache.values, strict=True):
        mine[:, :, :201] = theirs[-1:]
    alone.lengths.fill_(LENGTHS[-1])
    out = attend_cpu(qkv, cos, sin, (branch,), 1)
    single = CfgBranch(alone, torch.full((1,), 5), torch.ones(1, dtype=torch.bool), branch.prefix)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    again = attend_cpu(qkv[-1:], cos[-1:], sin[-1:], (single,), 1)
    torch.set_num_threads(before)
    assert torch.equal(out[-1:], again)


@needs_compiler
def test_two_branches_in_one_go_are_what_they_are_apart():
    """And moving a cache, or its lengths, is noticed: arguments are kept from step to step."""
    (one, *first), (other, *second) = example(torch.float32), example(torch.float32, shared=70, seed=1)
    step = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    for _ in range(2):
        apart = torch.cat([attend_cpu(*first, (one,), 1), attend_cpu(*second, (other,), 1)])
        assert torch.equal(attention.attend(*step, (one, other), 1), apart)
        one.cache.keys[1], one.cache.lengths = one.cache.keys[1].clone(), one.cache.lengths.clone() // 2
        other.cache.lengths += 1
        other.cache.lengths.clamp_(max=200)


@needs_compiler
@pytest.mark.parametrize("cache_type", CACHE_TYPES[1:], ids=str)
def test_values_are_rounded_into_the_cache_as_torch_rounds_them(cache_type):
    """Ties, subnormals and zeros included; what is too large for float8 saturates in C, and is NaN in torch."""
    exact = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    exact = exact[exact.isfinite()].unique()
    midpoints = torch.tensor([(a + b) / 2 for a, b in pairwise(exact.tolist())])
    smallest = torch.finfo(torch.float16).smallest_normal
    subnormal = torch.linspace(-smallest, smallest, 999)
    values = torch.cat((exact, midpoints, subnormal, torch.randn(1000) * 100, torch.tensor([447.9, -448.0, 448.0])))
    values = values[values.abs() <= 448]
    values = torch.cat((values, torch.zeros(-len(values) % 64)))
    rows = len(values) // 64
    cache = empty_cache(1, rows, 1, 1, 64, torch.device("cpu"), cache_type)
    branch = CfgBranch(cache, torch.zeros(rows, dtype=torch.int64), torch.ones(rows, dtype=torch.bool))
    qkv = torch.cat((torch.zeros(rows, 128), values.reshape(rows, 64)), dim=1)
    attend_cpu(qkv, torch.ones(rows, 64), torch.zeros(rows, 64), (branch,), 0)
    assert torch.equal(cache.values[0].float().flatten(), values.to(cache_type).float())


@needs_compiler
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("size", [64, 1000, 4096])
def test_the_kernel_draws_what_torch_draws(size, temperature, monkeypatch):
    sampling = SamplingSettings(picture_temperature=temperature, guidance=3.0)
    seeds = torch.tensor([0, 2**63 - 1, 123456789123456789])
    generator = torch.Generator().manual_seed(1)
    for step in range(40):
        logits, steps = torch.randn(6, size, generator=generator), torch.tensor([step, step + 1, 575 - step])
        drawn, expected = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
        draw_codes(logits, seeds, steps, sampling, drawn)
        with monkeypatch.context() as without:
            without.setattr(cpu, "library", lambda: None)
            draw_codes(logits, seeds, steps, sampling, expected)
        assert torch.equal(drawn, expected)


def test_noise_at_some_tokens_is_the_noise_of_those_tokens():
    seeds, tokens = torch.tensor([3, 2**62]), torch.tensor([[0, 5, 99, 7], [98, 1, 2, 3]])
    whole = gumbel_noise(seeds, 4, PICTURE, 100)
    assert torch.equal(gumbel_noise_at(seeds, 4, PICTURE, tokens), whole.gather(1, tokens))
    logits = torch.randn(2, 100)
    assert torch.equal(draw_tokens(logits, seeds, 4, PICTURE, 0.9, 10), sample(logits, 0.9, whole, 10))


def test_a_nucleus_holds_the_fewest_codes_of_that_probability():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    drawn = lambda p: {int(sample(logits, 1.0, gumbel_noise(torch.tensor([s]), 0, 0, 4), top_p=p)) for s in range(300)}  # noqa: E731
    assert [drawn(p) for p in (0.4, 0.5, 0.6, 0.8, 0.81, 1.0)] == [{0}, {0}, {0, 1}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}]


def test_without_a_compiler_torch_does_the_work_and_it_is_said_once(tmp_path):
    code = """
import logging, torch
logging.basicConfig()
from adgen.generation.kernels import cpu
assert cpu.library() is None and cpu.library() is None
from support.models import small_model, small_prompter
from support.engine import SAMPLED, requests
from adgen.generation.engine import Engine, EngineSettings
from adgen.generation.generate import generate
made = Engine(small_model(), small_prompter(), EngineSettings(num_slots=3, deepspeed=False), SAMPLED).generate(requests())
wanted = generate(small_model(), small_prompter(), requests(), SAMPLED)
assert all(torch.equal(a.codes, b.codes) and a.title == b.title for a, b in zip(made, wanted, strict=True))
"""
    done = python(code, CC="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert done.stderr.count("no C kernels on this machine") == 1
    assert "no C compiler" in done.stderr


@needs_compiler
def test_compiled_kernels_are_kept_for_the_next_process_and_are_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cpu._compiled()
    stamp = first.stat().st_mtime_ns
    assert cpu._compiled() == first
    assert first.stat().st_mtime_ns == stamp
    assert first.parent.stat().st_mode & 0o077 == 0
    assert [p.name for p in first.parent.iterdir()] == [first.name], "a half-made file was left behind"


@needs_compiler
def test_a_kernel_file_cut_short_is_compiled_again_and_a_folder_open_to_others_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cpu._compiled()
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    assert cpu._compiled() == path
    assert len(path.read_bytes()) == len(whole)
    path.parent.chmod(0o777)
    with pytest.raises(OSError, match="others may write there"):
        cpu._compiled()


@needs_compiler
def test_a_cache_of_another_size_at_the_same_address_is_another_cache():
    branch, *step = example(torch.float32)
    attend_cpu(*step, (branch,), 1)
    cache = branch.cache
    for tensors in (cache.keys, cache.values):
        tensors[1] = tensors[1].view(-1)[: 6 * 2 * 100 * 32].view(6, 2, 100, 32)  # where it lay, half as long
    cache.lengths.clamp_(max=99)
    expected = attend_torch(*step, branch, 1)
    torch.testing.assert_close(attend_cpu(*step, (branch,), 1)[branch.active], expected[branch.active], atol=2e-6, rtol=2e-6)


@needs_compiler
def test_heads_too_wide_for_the_kernel_go_through_torch():
    branch, *step = example(torch.float32, heads=1, groups=1, head_size=288)
    twin, *_ = example(torch.float32, heads=1, groups=1, head_size=288)
    assert torch.equal(attention.attend(*step, (branch,), 0), attend_torch(*step, twin, 0))
    with pytest.raises(ValueError, match="head size 288"):
        attend_cpu(*step, (branch,), 0)
