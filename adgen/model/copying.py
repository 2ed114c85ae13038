"""A new decoder that copies before its first step: an induction circuit, written into three layers.

To copy a phrase of the prompt is to look where the last word stood before, and say what followed it there (induction heads:
Olsson et al. 2022). Two layers do it: one where each position notes what stood before it, one that compares those notes with the
present words. Gradient descent finds the pair late, since each half is useless without the other: with random weights titles of
any words had a loss of 5.0 after 150 steps, with these 0.8 after 100 (docs/log.md). Weights that begin as what they
shall become are not new (mimetic initialization: Trockman & Kolter 2023). All of them are trained like any others.

Shapes: D hidden size, S head size.
"""

import math

import torch
from torch import Tensor

from adgen.model.config import DecoderConfig
from adgen.model.decoder import Attention, Decoder

COPYING_LAYERS = 3
"""The first of a decoder."""
_NOTES = 3
"""Heads that note what stood 1, 2, 3 places back, as far as there are heads."""
_LENGTH = 0.1
"""Root mean square of a token's row, and of the constant beside it."""
_SAID = 0.5
"""Length of a row of the output table against the input's."""
_SHARPNESS, _LOUDNESS, _MATCH = 3.0, 2.0, 3.0
"""Of looking back, of what is noted and copied, of comparing. Chosen so that an untrained decoder says a quarter of a title's
tokens right."""


@torch.no_grad()
def start_copying(decoder: Decoder, generator: torch.Generator) -> None:
    """Write the circuit into the tables and the attention of the first three layers; all else stays.

    The decoder has at least three layers and as many key heads as query heads.
    """
    notes = min(_NOTES, decoder.config.num_heads)
    size = decoder.config.head_size
    heard = _constant_and_tokens(decoder, generator)
    places = _orthogonal(decoder, generator)[:, : notes * size].unflatten(1, (notes, size)).unbind(1)  # each (D, S)
    read = torch.zeros(size, decoder.config.hidden_size)
    slow = _slow_pairs(size)
    read[slow] = _orthogonal(decoder, generator)[: len(slow)]
    read[:, 0] = 0  # the constant says nothing
    _look_back(decoder.layers[0].self_attn, decoder.config, read, places, heard)
    for layer in decoder.layers[1:COPYING_LAYERS]:
        _match_and_copy(layer.self_attn, read, places, _orthogonal(decoder, generator), heard)


def _constant_and_tokens(decoder: Decoder, generator: torch.Generator) -> float:
    """Fill both tables; the root mean square of an embedding.

    Every row has the same constant in its first place: nothing else tells a head without biases to look back whatever it reads.
    """
    rows = torch.randn(decoder.embed_tokens.weight.shape, generator=generator) * _LENGTH
    rows[:, 0] = 0
    decoder.lm_head.weight.copy_(_SAID * rows)
    rows[:, 0] = constant(decoder)
    decoder.embed_tokens.weight.copy_(rows)
    return _LENGTH * math.sqrt(2)


def constant(decoder: Decoder) -> float:
    """The first number of each embedding: as long as all others together."""
    return _LENGTH * math.sqrt(decoder.config.hidden_size)


def _slow_pairs(size: int) -> list[int]:
    """The places of a head that rotary positions hardly turn over a prompt: contents are compared there."""
    return [at for at in range(size) if at % (size // 2) >= size // 2 * 3 // 8]


def _look_back(attention: Attention, config: DecoderConfig, read: Tensor, places: tuple[Tensor, ...], heard: float) -> None:
    """Head h attends h + 1 places back and writes what it reads there into its own place.

    Its score sums cos((t - s - h - 1) w) over the fast pairs alone: all pairs together would mostly weigh a key's length.
    """
    size, fast = config.head_size, max(1, config.head_size // 8)
    frequency = config.rope_theta ** (-2.0 * torch.arange(fast) / size)
    seen = _LENGTH * math.sqrt(config.hidden_size) / heard  # the constant, behind the norm
    sharp = _SHARPNESS / seen * size**0.25
    for back, place in enumerate(places, start=1):
        head = slice((back - 1) * size, back * size)
        for linear in (attention.q_proj, attention.k_proj):
            linear.weight[head] *= 0.1
        query, key = attention.q_proj.weight[head], attention.k_proj.weight[head]
        key[:fast, 0] += sharp
        query[:fast, 0] += sharp * torch.cos(back * frequency)
        query[size // 2 : size // 2 + fast, 0] -= sharp * torch.sin(back * frequency)
        attention.v_proj.weight[head] = read
        attention.o_proj.weight[:, head] = _LOUDNESS * heard * place


def _match_and_copy(attention: Attention, read: Tensor, places: tuple[Tensor, ...], basis: Tensor, heard: float) -> None:
    """Head h looks for a position before which, h + 1 places back, stood what stands h places back now, and says its token."""
    size = len(read)
    asked = (read, *(place.T for place in places))
    for index, place in enumerate(places):
        head = slice(index * size, (index + 1) * size)
        attention.q_proj.weight[head] = _MATCH * asked[index]
        attention.k_proj.weight[head] = _MATCH * place.T
        attention.v_proj.weight[head] = basis[head]
        attention.v_proj.weight[head, 0] = 0
        attention.o_proj.weight[:, head] = _LOUDNESS * heard * basis[head].T


def _orthogonal(decoder: Decoder, generator: torch.Generator) -> Tensor:
    size = decoder.config.hidden_size
    return torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
