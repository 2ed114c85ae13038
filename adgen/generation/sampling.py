"""Choosing tokens: guidance on logits, temperature, top-k and top-p, the draw. Without top-k and top-p, kernels/ do the
same in one call.

The noise of a row is a function of its seed and the step alone, so neighbours, batch size and order never change a row's draw.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from adgen.generation.kernels import cpu
from adgen.generation.sampling_settings import SamplingSettings

TITLE, PICTURE = 0, 1  # streams of one seed's noise

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW32 = 0xFFFFFFFF


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox-4x32-10 (Salmon et al., SC 2011): 32-bit words as int64. counter (..., 4), key (..., 2) -> (..., 4)."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        # int64 products wrap, but their 64 bits are those of the unsigned product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _LOW32, product0 & _LOW32
        high1, low1 = (product1 >> 32) & _LOW32, product1 & _LOW32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW32, (k1 + _KEY_STEPS[1]) & _LOW32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def gumbel_noise(seeds: Tensor, step: Tensor | int, stream: int, size: int) -> Tensor:
    """Standard Gumbel noise (B, size) fp32 for seeds (B,) int64 at a step ((B,) or int) of a stream."""
    blocks = torch.arange(-(-size // 4), device=seeds.device).expand(len(seeds), -1)
    return _gumbel(_noise_words(seeds, step, stream, blocks).flatten(1)[:, :size])


def gumbel_noise_at(seeds: Tensor, step: Tensor | int, stream: int, tokens: Tensor) -> Tensor:
    """The entries `tokens` (B, k) of `gumbel_noise`, without computing the others."""
    words = _noise_words(seeds, step, stream, tokens // 4)
    return _gumbel(words.gather(2, (tokens % 4)[..., None])[..., 0])


def _noise_words(seeds: Tensor, step: Tensor | int, stream: int, blocks: Tensor) -> Tensor:
    """Four 32-bit words (B, n, 4) of each of a row's blocks (B, n)."""
    counter = torch.zeros(*blocks.shape, 4, dtype=torch.int64, device=seeds.device)
    counter[..., 0] = blocks
    counter[..., 1] = step[:, None] if isinstance(step, Tensor) else step
    counter[..., 2] = stream
    key = torch.stack((seeds & _LOW32, (seeds >> 32) & _LOW32), dim=-1)[:, None].expand(-1, blocks.shape[1], -1)
    return philox(counter, key)


def _uniform(words: Tensor) -> Tensor:
    # 23 bits and a half: the largest value is 1 - 2**-24, the last fp32 below 1, whose Gumbel noise is finite.
    return ((words >> 9).float() + 0.5) * 2.0**-23


def _gumbel(words: Tensor) -> Tensor:
    return -torch.log(-torch.log(_uniform(words)))


def sample(logits: Tensor, temperature: float, noise: Tensor | None, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """A token a row, (B,) int64: argmax of logits (B, V) / temperature + Gumbel noise, which is a draw from their softmax.

    temperature 0 ignores the noise. Ties go to the lowest token.
    """
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(-1)
    return (truncated(logits, temperature, top_k, top_p) / temperature + noise).argmax(-1)


def truncated(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (B, V) with -inf outside the top_k (0: all) most likely tokens, and outside the fewest of these that together
    have probability top_p (Holtzman et al. 2020)."""
    if 0 < top_k < logits.shape[-1]:
        # Exactly k, where the published library keeps all ties with the k-th: in bf16 there are many.
        likely = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, likely.indices, likely.values)
    if top_p < 1:
        falling, order = logits.sort(dim=-1, descending=True)
        probability = (falling / temperature).softmax(-1)
        before = probability.cumsum(-1) - probability
        logits = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before >= top_p), -torch.inf)
    return logits


def draw_tokens(logits: Tensor, seeds: Tensor, step: int, stream: int, temperature: float, top_k: int) -> Tensor:
    """`sample` of logits (B, V) with the rows' own noise, which is computed for the top_k tokens alone."""
    if temperature == 0:
        return sample(logits, 0, None)
    if not 0 < top_k < logits.shape[-1]:
        return sample(logits, temperature, gumbel_noise(seeds, step, stream, logits.shape[-1]))
    likely, tokens = logits.float().topk(top_k, dim=-1)
    chosen = sample(likely, temperature, gumbel_noise_at(seeds, step, stream, tokens))
    return tokens.gather(1, chosen[:, None])[:, 0]


def draw_kernel(device: torch.device, sampling: SamplingSettings) -> Callable | None:
    """The kernel that draws from all codes at once, where there is one."""
    if sampling.picture_top_p < 1 or sampling.picture_top_k:
        return None
    if device.type == "cuda":
        from adgen.generation.kernels.gpu_draw import draw_gpu

        return draw_gpu
    return cpu.draw if device.type == "cpu" and cpu.library() else None


def draw_codes(logits: Tensor, seeds: Tensor, steps: Tensor, sampling: SamplingSettings, out: Tensor, plain: bool = False) -> None:
    """Image tokens out (B,) from logits (2B, V), the conditional rows first, at each row's step (B,). plain: without a kernel."""
    kernel = None if plain else draw_kernel(logits.device, sampling)
    if kernel:
        kernel(logits, seeds, steps, PICTURE, sampling.guidance, sampling.picture_temperature, out)
        return
    noise = gumbel_noise(seeds, steps, PICTURE, logits.shape[-1]) if sampling.picture_temperature else None
    guided_logits = guided(*logits.chunk(2), sampling.guidance)
    out.copy_(sample(guided_logits, sampling.picture_temperature, noise, sampling.picture_top_k, sampling.picture_top_p))


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance on logits (B, V), in fp32."""
    unconditional = unconditional.float()
    return unconditional + weight * (conditional.float() - unconditional)
