"""Whether a device's kernels can be trusted: each is compared with the plain path on the model's own shapes, and one that differs
or fails is switched off by name. What stays is always complete.

attention: its outputs may differ from fp32's (fp64's, where the model is in fp32) at most twice as far as the plain path's, and it
must write the same keys and values. draw: guidance alone and the whole draw must choose the plain path's tokens. captured step: so
must a few steps replayed as one graph.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adgen.generation.attention import attend, attention_kernel
from adgen.generation.caches import CfgBranch, empty_cache
from adgen.generation.layers import StepLayers
from adgen.generation.sampling import draw_codes, draw_kernel
from adgen.generation.sampling_settings import SamplingSettings
from adgen.model.decoder import KeyValueCache

if TYPE_CHECKING:
    from adgen.generation.batch import BatchRunner

log = logging.getLogger(__name__)
_LENGTHS = (0, 1, 63, 64, 65, 200, 1100, 700)
_COMPARED_ROWS = 16  # a row's numbers do not depend on its neighbours
_NUM_SHARED = 70
_STEPS = 4
_FLOOR = 16 * torch.finfo(torch.float32).eps  # of the largest output: fp32's sums in another order


@dataclass(frozen=True)
class Finding:
    """What came of one comparison."""

    check: str
    kernel: str
    """What is switched off where it failed."""
    trouble: str
    """What is wrong; nothing where the kernel is as good as the plain path."""
    detail: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.trouble or 'as the plain path'} ({self.detail}, {self.seconds:.2f} s)"


def failed_kernels(findings: list[Finding], device: torch.device) -> set[str]:
    """What is to be switched off, each with a warning."""
    for each in findings:
        if each.trouble:
            log.warning("%s: %s differs from the plain path, %s is switched off: %s", device, each.check, each.kernel, each.trouble)
    return {each.kernel for each in findings if each.trouble}


def check_attention(
    layers: StepLayers, num_slots: int, dtype: torch.dtype, cache_dtype: torch.dtype, device: torch.device
) -> Finding | None:
    """None where there is no kernel to compare."""
    if attention_kernel(device, layers.head_size) is None:
        return None

    def compare() -> tuple[str, str]:
        made, seen = _attended(layers, num_slots, dtype, cache_dtype, device, plain=False)
        rows = min(num_slots, _COMPARED_ROWS)
        plain, written = _attended(layers, num_slots, dtype, cache_dtype, device, plain=True, rows=rows)
        exact = torch.float64 if dtype == torch.float32 else torch.float32
        ideal, _ = _attended(layers, num_slots, exact, cache_dtype, device, plain=True, rows=rows, drawn_as=dtype)
        made = made.double().unflatten(0, (2, num_slots))[:, :rows].flatten(0, 1)
        working = _active(num_slots, device)[:rows].repeat(2)
        mine, theirs = ((out.double() - ideal.double())[working].abs().max().item() for out in (made, plain))
        limit = max(2 * theirs, _FLOOR * ideal[working].abs().max().item())
        detail = f"error {mine:.2e}, of the plain path {theirs:.2e}"
        if not mine <= limit:
            return f"{detail}: more than {limit:.2e}", detail
        working = working[:rows]
        rounding = 2 * torch.finfo(cache_dtype).eps
        pairs = [(a[:rows][working].float(), b[working].float()) for a, b in zip(seen, written, strict=True)]
        same = all(torch.allclose(a, b, rtol=rounding, atol=rounding) for a, b in pairs)
        return "" if same else "other keys and values in the cache", detail

    return _found("attention", "attention", compare)


def check_draw(
    num_slots: int, num_codes: int, sampling: SamplingSettings, dtype: torch.dtype, device: torch.device
) -> list[Finding]:
    """Of guidance alone (the likeliest code), and of the draw; nothing where no kernel draws."""
    if draw_kernel(device, sampling) is None:
        return []
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(2 * num_slots, num_codes, generator=generator)).to(device, dtype)
    seeds = torch.randint(2**62, (num_slots,), generator=generator).to(device)
    steps = (torch.arange(num_slots) * 7 % 576).to(device)

    def compare(temperature: float) -> tuple[str, str]:
        chosen = sampling.model_copy(update={"picture_temperature": temperature})
        outs = [torch.zeros(num_slots, dtype=torch.int64, device=device) for _ in range(2)]
        for out, plain in zip(outs, (False, True), strict=True):
            draw_codes(logits, seeds, steps, chosen, out, plain)
        others = int((outs[0] != outs[1]).sum())
        return f"{others} of {num_slots} rows got another token" if others else "", f"{num_slots} rows of {num_codes} codes"

    found = [_found("guidance", "draw", lambda: compare(0.0))]
    return found + ([_found("draw", "draw", lambda: compare(sampling.picture_temperature))] if sampling.picture_temperature else [])


def check_capture(runner: "BatchRunner") -> Finding:
    """Of an engine's steps, captured and called plainly."""

    def compare() -> tuple[str, str]:
        codes, plain_codes = runner.some_codes(_STEPS), runner.some_codes(_STEPS, captured=False)
        others = int((codes != plain_codes).any(1).sum())
        return f"{others} of {len(codes)} rows got other tokens" if others else "", f"{_STEPS} steps"

    return _found("captured step", "captured step", compare)


def _found(check: str, kernel: str, compare: Callable[[], tuple[str, str]]) -> Finding:
    started = time.perf_counter()
    try:
        with torch.inference_mode():
            trouble, detail = compare()
    except torch.OutOfMemoryError:
        raise  # of the slots' number, and not of the kernel
    except Exception as error:  # it does not build, or does not run: whatever it says
        trouble, detail = f"{type(error).__name__}: {(str(error).splitlines() or ['no reason'])[0]}", "failed"
    return Finding(check, kernel, trouble, detail, round(time.perf_counter() - started, 3))


def _active(num_slots: int, device: torch.device) -> Tensor:
    active = torch.ones(num_slots, dtype=torch.bool, device=device)
    active[2:3] = False  # one that waits, where there are so many
    return active


def _attended(
    layers: StepLayers,
    num_slots: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
    plain: bool,
    rows: int | None = None,
    drawn_as: torch.dtype | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """One layer's attention over both branches, of the first `rows` rows of each: outputs (2 * rows, H * E), and the keys and
    values as they are written. The same numbers each time, rounded to `drawn_as`."""
    rows, layer, drawn_as = rows or num_slots, layers.layers[0], drawn_as or dtype
    generator = torch.Generator(device).manual_seed(0)  # there, since a CPU would take a minute for a large model's rows
    largest = min(len(layers.rope.cos) - _NUM_SHARED - 1, max(_LENGTHS))
    lengths = torch.tensor([min(_LENGTHS[row % len(_LENGTHS)], largest) for row in range(num_slots)])[:rows].to(device)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    branches = []
    for shared in (0, _NUM_SHARED):
        size = layers.num_groups, largest + 1, layers.head_size
        cache = _cache_of(drawn(num_slots, *size)[:rows], drawn(num_slots, *size)[:rows], cache_dtype, lengths.clone())
        shape = layers.num_groups, shared, layers.head_size
        prefix = _cache_of(drawn(1, *shape), drawn(1, *shape), cache_dtype, lengths[:1]) if shared else None
        offsets = torch.full_like(lengths, shared)
        branches.append(CfgBranch(cache, offsets, _active(num_slots, device)[:rows], prefix, plain=plain))
    width = (layer.num_heads + 2 * layers.num_groups) * layers.head_size
    qkv = drawn(2, num_slots, width)[:, :rows].flatten(0, 1).to(drawn_as).to(dtype)
    positions = torch.cat([branch.positions() for branch in branches])
    out = attend(qkv, layers.rope.cos[positions], layers.rope.sin[positions], branches, 0)
    return out, [tensor for branch in branches for tensor in (*branch.cache.keys, *branch.cache.values)]


def _cache_of(keys: Tensor, values: Tensor, dtype: torch.dtype, lengths: Tensor) -> KeyValueCache:
    rows, groups, capacity, size = keys.shape
    cache = empty_cache(1, rows, groups, capacity, size, keys.device, dtype)
    cache.keys[0].copy_(keys)
    cache.values[0].copy_(values)
    if len(lengths) == len(cache.lengths):
        cache.lengths.copy_(lengths)
    return cache
