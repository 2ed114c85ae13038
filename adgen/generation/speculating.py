"""The picture by draft and verification: several image tokens a step, drawn from the same distribution as one by one.

A row's last distributions propose its next codes, one step reads them all, and each is kept with probability
min(1, p/q), the first that is not being drawn anew from max(0, p - q) (Leviathan et al. 2023; drafts from the model's own
parallel predictions as in speculative Jacobi decoding, Teng et al. 2025). Same distribution, other draws: a seed gives
another picture than without. A greedy picture is the same, token for token.

Shapes: B slots, W codes a step, V codes, D hidden size.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adgen.generation.caches import CfgBranch
from adgen.generation.layers import StepLayers
from adgen.generation.sampling import guided, gumbel_noise, truncated, uniform_noise
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.model.decoder import KeyValueCache
from adgen.model.uniadgen import UniAdGen

_ACCEPT, _LAST, _DRAFT = 2, 3, 4  # streams of a seed's noise, beside those of sampling


class SpeculativePainter:
    """As `Painter`, W codes a step. Rows advance at their own pace and wait when they are done."""

    def __init__(self, model: UniAdGen, layers: StepLayers, slots: Slots, sampling: SamplingSettings, window: int):
        """window: codes that a step reads, W >= 2. The slots' caches have room for W - 1 codes more than a picture has."""
        self._layers, self._slots, self._sampling, self._window = layers, slots, sampling, window
        self._head = model.image_head
        with torch.inference_mode():
            self._table = model.image_embedding.table()
        self._round = 0  # of drafting and verifying; 0 draws the first code

    @property
    def num_steps(self) -> int:
        """Steps of the last picture, counted as `Painter` counts: N at most."""
        return self._round + 1

    def paint(self, hidden: Tensor, with_additions: bool) -> Tensor:
        """Codes (B, N) from hidden states (2B, D) at begin-of-image."""
        slots = self._slots
        slots.start_pictures()
        first = self._distribution(self._head(hidden)[:, None])  # (B, 1, V)
        self._round = 0
        self._keep(_draw(first[:, 0], gumbel_noise(slots.seeds, 0, _LAST, first.shape[-1]))[:, None], torch.ones_like(slots.steps))
        drafts = self._propose(first[:, -1:].expand(-1, self._window - 1, -1))
        while bool((slots.steps < slots.num_tokens).any()):
            self._round += 1
            p = self._read(drafts.codes, with_additions)
            drafts = self._verify(p, drafts)
        return slots.codes

    def _read(self, codes: Tensor, with_additions: bool) -> Tensor:
        """Read the last code and the drafts (B, W-1) behind it; the distributions (B, W, V) of what follows each."""
        slots, window = self._slots, self._window
        embeds = self._table[torch.cat((slots.code[:, None], codes), dim=1)]  # (B, W, D)
        # One token of every row after another: each is written before the next one looks.
        branches = [_shifted(branch, by) for branch in (slots.conditional, slots.unconditional) for by in range(window)]
        ahead = (slots.steps[:, None] - 1 + torch.arange(window, device=embeds.device)).clamp(max=slots.num_tokens - 1)
        rows = embeds.transpose(0, 1).flatten(0, 1).repeat(2, 1)
        additions = None
        if with_additions:
            shown = slots.additions[:, slots.product[:, None], ahead]  # (L, B, W, D)
            additions = shown.transpose(1, 2).flatten(1, 2).repeat(1, 2, 1)
        hidden = self._layers.step(rows, branches, additions)
        return self._distribution(self._head(hidden).unflatten(0, (2, window, -1)).transpose(1, 2).flatten(0, 1))

    def _verify(self, p: Tensor, drafts: "Drafts") -> "Drafts":
        """Keep what the distributions p (B, W, V) agree to, and propose anew behind it."""
        slots, window = self._slots, self._window
        step = self._round * window
        uniform = torch.cat([uniform_noise(slots.seeds, step + i, _ACCEPT, 1) for i in range(window - 1)], dim=1)
        noise = gumbel_noise(slots.seeds, self._round, _LAST, p.shape[-1])
        codes, num_kept = verified(p, drafts, uniform, noise)
        self._keep(codes, num_kept)
        # What was predicted behind the last kept code, however stale, and its last distribution again where there is none.
        behind = num_kept[:, None] + torch.arange(window - 1, device=p.device)
        at = behind.clamp(max=window - 1)
        return self._propose(p.gather(1, at[..., None].expand(-1, -1, p.shape[-1])))

    def _propose(self, q: Tensor) -> "Drafts":
        """Draw codes from distributions q (B, W-1, V)."""
        slots, count = self._slots, q.shape[1]
        step = self._round * self._window
        noise = torch.stack([gumbel_noise(slots.seeds, step + i, _DRAFT, q.shape[-1]) for i in range(count)], dim=1)
        return Drafts(_draw(q, noise), q)

    def _keep(self, codes: Tensor, num_kept: Tensor) -> None:
        """Append the first num_kept (B,) of codes (B, n) to each row's picture; the last of them is read next."""
        slots = self._slots
        before = slots.steps.clone()
        num_kept = num_kept.clamp(max=slots.num_tokens - before)
        for index in range(codes.shape[1]):
            at = (before + index).clamp(max=slots.num_tokens - 1)[:, None]
            kept = index < num_kept
            slots.codes.scatter_(1, at, codes[:, index, None].where(kept[:, None], slots.codes.gather(1, at)))
            slots.code.copy_(codes[:, index].where(kept, slots.code))
        slots.steps += num_kept
        # The cache holds all codes but the last, which no step has read yet.
        for branch in (slots.conditional, slots.unconditional):
            branch.cache.lengths += slots.steps - before.clamp(min=1)
            branch.active.copy_(slots.steps < slots.num_tokens)

    def _distribution(self, logits: Tensor) -> Tensor:
        """Logits (2B, n, V), conditional rows first -> what codes are drawn from (B, n, V)."""
        sampling = self._sampling
        logits = guided(*logits.chunk(2), sampling.guidance)
        if sampling.picture_temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        flat = truncated(logits.flatten(0, 1), sampling.picture_temperature, sampling.picture_top_k, sampling.picture_top_p)
        return (flat / sampling.picture_temperature).softmax(-1).view_as(logits)


@dataclass(frozen=True)
class Drafts:
    """Proposed codes (B, n), and the distributions (B, n, V) that they were drawn from."""

    codes: Tensor
    q: Tensor


def verified(p: Tensor, drafts: Drafts, uniform: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, W) and how many of them are kept (B,), 1 to W: drafts as long as they are accepted, then one of p's own.

    p (B, W, V): distributions of the codes that the W - 1 drafts propose, and of the one behind them. uniform (B, W-1) and
    Gumbel noise (B, V) are fresh.
    """
    rows = torch.arange(len(p), device=p.device)
    chance = p[:, :-1].gather(2, drafts.codes[..., None]) / drafts.q.gather(2, drafts.codes[..., None])
    num_accepted = (uniform < chance[..., 0]).cumprod(1).sum(1)
    q = torch.cat((drafts.q, torch.zeros_like(p[:, :1])), dim=1)  # behind the last draft nothing was proposed
    rest = (p[rows, num_accepted] - q[rows, num_accepted]).clamp_min(0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p[rows, num_accepted])  # p == q up to rounding
    codes = torch.cat((drafts.codes, torch.zeros_like(drafts.codes[:, :1])), dim=1)
    codes[rows, num_accepted] = _draw(rest, noise)
    return codes, num_accepted + 1


def _draw(weights: Tensor, noise: Tensor) -> Tensor:
    """A code for each distribution (..., V), not necessarily normalised, by Gumbel noise of the same shape."""
    return (weights.log() + noise).argmax(-1)


def _shifted(branch: CfgBranch, by: int) -> CfgBranch:
    """The branch as it is when `by` tokens more have been written."""
    cache = branch.cache
    return replace(branch, cache=KeyValueCache(cache.keys, cache.values, cache.lengths + by), plans={})
