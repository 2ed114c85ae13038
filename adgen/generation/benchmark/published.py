"""The published loop, as docs/design.md 6.7 and 6.9 describe it: what the engine is measured against.

Nothing here is slower than it has to be: attention is torch's fused kernel, masks are small, embeddings and heads are
the engine's own modules. What makes it slow is what makes the published one slow: caches that grow by torch.cat, both
branches padded to one length, two prefills, and a foreground path that is computed anew at every step. The history's
pictures come as tokens, as the engine's do; the published flow runs the VQ encoder on them twice a creative.

Shapes: B requests, R rows (2B, conditional 0::2 and unconditional 1::2 while a picture is made), T new positions,
K cached positions, D hidden size, N image tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from adgen.generation.generate import Request, Result, embed, embed_history
from adgen.generation.prompt import Prompt, Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.timings import PhaseTimings
from adgen.model.decoder import rope_angles
from adgen.model.image_tokens import to_uint8
from adgen.model.uniadgen import UniAdGen


@dataclass
class GrowingCache:
    """Keys and values of each layer (R, H, K, .), and which keys are real (R, K); every append copies it all."""

    real: Tensor
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions held, padding included."""
        return self.keys[0].shape[2] if self.keys else 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values with new ones appended."""
        if layer == len(self.keys):
            self.keys.append(k)
            self.values.append(v)
        else:
            self.keys[layer] = torch.cat((self.keys[layer], k), dim=2)
            self.values[layer] = torch.cat((self.values[layer], v), dim=2)
        return self.keys[layer], self.values[layer]


@dataclass(frozen=True)
class Products:
    """What the foreground path sees: condition pictures (B, 3, S, S), and which of them (B,) are hidden from it."""

    pixels: Tensor
    hidden: Tensor


class PublishedLoop:
    """Title and picture the published way. Greedy tokens equal the engine's; sampled ones use torch's own generator."""

    def __init__(self, model: UniAdGen, prompter: Prompter, sampling: SamplingSettings):
        self.model, self.prompter, self.sampling = model, prompter, sampling

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], timings: PhaseTimings | None = None) -> list[Result]:
        """A title and a picture for each request, in one batch."""
        model, timings = self.model, timings or PhaseTimings()
        titles, cache, hidden = self.before_picture(requests, timings)
        with timings.measure("picture", model.device):
            steps = range(model.config.image.tokens_per_picture)
            codes = torch.stack(list(self.paint(cache, hidden, self.products(requests), steps)), dim=1)
        timings.picture_steps += len(steps)
        with timings.measure("vq", model.device):
            pictures = to_uint8(model.image_tokenizer.decode(codes)).cpu()
        rows = zip(titles, codes.cpu(), pictures, strict=True)
        return [Result(title or "", title is not None, row, picture, len(requests)) for title, row, picture in rows]

    @torch.inference_mode()
    def before_picture(self, requests: Sequence[Request], timings: PhaseTimings) -> tuple[list[str | None], GrowingCache, Tensor]:
        """Each request's title, then the cache of both branches, prefilled anew, and hidden states (2B, D) at its end."""
        device = self.model.device
        with timings.measure("prefill", device):
            prompts = [self.prompter.title_prompt(request.facts) for request in requests]
            cache, hidden = self.prefill(self._embed(requests, prompts), shifted=True)
        with timings.measure("title", device):
            written = self._write_titles(cache, hidden, len(requests))
        titles = [self.prompter.read_title(ids) for ids in written]
        timings.title_steps += max(map(len, written))
        with timings.measure("prefill", device):
            cache, hidden = self.prefill(self.both_branches(requests, [title or "" for title in titles]))
        return titles, cache, hidden

    # -- stage 1: the title --------------------------------------------------------------------------------------------

    def _write_titles(self, cache: GrowingCache, hidden: Tensor, num_rows: int) -> list[list[int]]:
        """Each row's tokens, up to and with its end of sentence. Rows that have ended go on reading padding."""
        model, sampling = self.model, self.sampling
        written: list[list[int]] = [[] for _ in range(num_rows)]
        running = set(range(num_rows))
        for step in range(sampling.max_title_tokens):
            tokens = _draw(model.text_logits(hidden), sampling.title_temperature, sampling.title_top_k)
            read = []
            for row, token in enumerate(tokens.tolist()):
                if row in running:
                    written[row].append(token)
                read.append(token if row in running else self.prompter.pad_id)
            running = {row for row in running if written[row][-1] != self.prompter.eos_id}
            if not running or step == sampling.max_title_tokens - 1:
                break
            embeds = model.decoder.embed_tokens(torch.tensor(read, device=model.device))[:, None]
            positions = cache.real.sum(dim=1, keepdim=True)
            hidden = self.extend(cache, embeds, torch.ones_like(positions, dtype=torch.bool), positions)
        return written

    # -- stage 2: the picture ------------------------------------------------------------------------------------------

    def both_branches(self, requests: Sequence[Request], titles: Sequence[str]) -> list[Tensor]:
        """Embeddings of 2B prompts: each request's own, followed by the negative one."""
        prompts = [self.prompter.picture_prompt(r.facts, title) for r, title in zip(requests, titles, strict=True)]
        negative = embed(self.model, self.prompter.negative_prompt(), None)
        return [row for own in self._embed(requests, prompts) for row in (own, negative)]

    def products(self, requests: Sequence[Request]) -> Products | None:
        """The requests' condition pictures; None when none has one."""
        shown = [request.condition for request in requests if request.condition is not None]
        if not shown:
            return None
        pictures = [torch.zeros_like(shown[0]) if r.condition is None else r.condition for r in requests]
        hidden = torch.tensor([request.condition is None for request in requests], device=self.model.device)
        return Products(torch.stack(pictures).to(self.model.device, self.model.dtype), hidden)

    def paint(self, cache: GrowingCache, hidden: Tensor, products: Products | None, steps: range) -> Iterator[Tensor]:
        """Codes (B,) of each step, from hidden states (2B, D) at the position before the first. Step i reads token i with
        condition token i; after a picture's last step nothing is read."""
        model, sampling = self.model, self.sampling
        for step in steps:
            conditional, unconditional = (model.image_logits(row).float() for row in (hidden[0::2], hidden[1::2]))
            logits = unconditional + sampling.guidance * (conditional - unconditional)
            codes = _draw(logits, sampling.picture_temperature)
            yield codes
            if step == model.config.image.tokens_per_picture - 1:
                return
            tokens = None if products is None else model.foreground.condition_tokens(products.pixels, products.hidden)
            embeds = model.image_embedding(codes).repeat_interleave(2, dim=0)[:, None]
            positions = torch.full((len(embeds), 1), cache.length, device=model.device)
            real = torch.ones_like(positions, dtype=torch.bool)
            hidden = self.extend(cache, embeds, real, positions, tokens, step)

    # -- the decoder over a growing cache ------------------------------------------------------------------------------

    def _embed(self, requests: Sequence[Request], prompts: Sequence[Prompt]) -> list[Tensor]:
        noise = self.sampling.preference_noise
        histories = [embed_history(self.model, self.prompter, request, noise) for request in requests]
        return [embed(self.model, prompt, history) for prompt, history in zip(prompts, histories, strict=True)]

    def prefill(self, embeds: Sequence[Tensor], shifted: bool = False) -> tuple[GrowingCache, Tensor]:
        """Embeddings (T_r, D) of R rows, padded on the left to the longest -> their cache, and hidden states (R, D) at
        their ends. Positions count from the padding on, or with `shifted` from each row's first token (stage 1)."""
        model = self.model
        longest = max(map(len, embeds))
        front = torch.tensor([longest - len(row) for row in embeds], device=model.device)
        pad = model.decoder.embed_tokens(torch.tensor([self.prompter.pad_id], device=model.device))
        padded = torch.stack([torch.cat((pad.expand(longest - len(row), -1), row)) for row in embeds])
        positions = torch.arange(longest, device=model.device).expand(len(embeds), -1)
        real = positions >= front[:, None]
        if shifted:
            positions = (positions - front[:, None]).clamp_min(0)
        cache = GrowingCache(real[:, :0])
        return cache, self.extend(cache, padded, real, positions)

    def extend(
        self,
        cache: GrowingCache,
        embeds: Tensor,
        real: Tensor,
        positions: Tensor,
        condition: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """Append embeds (R, T, D), of which `real` (R, T) are no padding; final-normed hidden states (R, D) of the last.

        condition (B, N, D): condition tokens, of which number `step` is injected into both rows of each request.
        """
        model, decoder = self.model, self.model.decoder
        cos, sin = rope_angles(positions, decoder.config.head_size, decoder.config.rope_theta)
        cache.real = torch.cat((cache.real, real), dim=1)
        visible = _visible(cache.real, embeds.shape[1])
        x = embeds
        for index, layer in enumerate(decoder.layers):
            if condition is not None and index % decoder.addition_interval == 0:
                x = x.clone()
                for branch in (0, 1):  # each branch evaluates the whole layer, as published
                    control = model.foreground.condition_layers[index // decoder.addition_interval](condition)
                    x[branch::2, -1] += self.sampling.control_strength * control[:, step]
            attention = layer.self_attn
            q, k, v = attention.project(layer.input_layernorm(x), cos, sin)
            k, v = cache.append(index, k, v)
            x = x + attention.attend(q, k, v, visible)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return decoder.norm(x[:, -1])

    def cache_of(self, num_rows: int, length: int) -> GrowingCache:
        """A cache of random content, to measure a step at some length without the steps before it."""
        decoder, model = self.model.decoder, self.model
        cache = GrowingCache(torch.ones(num_rows, length, dtype=torch.bool, device=model.device))
        for layer in decoder.layers:
            heads = layer.self_attn.k_proj.weight.shape[0] // decoder.config.head_size
            shape = (num_rows, heads, length, decoder.config.head_size)
            cache.keys.append(torch.randn(shape, device=model.device, dtype=model.dtype))
            cache.values.append(torch.randn(shape, device=model.device, dtype=model.dtype))
        return cache


def _visible(real: Tensor, num_new: int) -> Tensor:
    """Which keys (K) the last num_new positions may see: real ones up to their own. (R, 1, T, K); a padded query, whose
    output means nothing, sees itself."""
    keys = torch.arange(real.shape[1], device=real.device)
    queries = keys[-num_new:, None]
    return ((keys <= queries) & real[:, None, None]) | (keys == queries)


def _draw(logits: Tensor, temperature: float, top_k: int = 0) -> Tensor:
    """A token a row of logits (B, V), by torch.multinomial; temperature 0 takes the most likely."""
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(-1)
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[:, -1:], -torch.inf)
    return torch.multinomial(F.softmax(logits / temperature, dim=-1), 1)[:, 0]
