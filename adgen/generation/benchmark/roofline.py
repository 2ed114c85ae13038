"""The least time that a picture can take on a machine: bytes that must move over its bandwidth, or operations over its
matrix rate, whichever is longer. Pure arithmetic; the benchmark and a run's report share it.

What counts as necessary is what docs/design.md 5.1 leaves over: weights read once a step for the whole batch, each
conditional row's own cache, the unconditional rows' image tokens and their ONE shared prefix read once a step, the new
keys and values written, the foreground additions of the step. Activations and logits stay in caches and count nothing;
so does the negative prompt's prefill, which is done once for all batches.

e: bytes an element (weights and caches may be narrower); B: batch; P: prompt tokens before the first image token;
M: negative prompt tokens; N: image tokens.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adgen.generation.benchmark.machine import Rates
from adgen.model.config import DecoderConfig, ModelConfig
from adgen.model.foreground import ForegroundPerception
from adgen.model.image_tokens import ImageTokenizer
from adgen.model.preference import Preference

FORMULA = (
    "bytes a step = e * [ decoder + image head (weights, once) + B * D (rows of the image-token table) "
    "+ kv * (B * (P + i) + B * i + M) (keys and values read: conditional rows, unconditional rows, their shared prefix once) "
    "+ kv * 2B (written) + L * B * D (additions) ], mean over steps i, kv = 2 * layers * kv_heads * head_size"
)


@dataclass(frozen=True)
class Workload:
    """A batch, as far as its cost goes."""

    config: ModelConfig
    element_bytes: int
    """Of weights, caches and additions: 4, 2."""
    batch: int
    prompt_tokens: int
    """Before the first image token, title included; of a conditional row, the mean."""
    negative_tokens: int
    title_tokens: int = 0
    """Steps of the title loop."""
    history_items: int | None = None
    """Clicked products of a prompt; None: as many as the model was made for."""
    weight_bytes: int | None = None
    """Of weights where they are narrower than element_bytes."""
    cache_bytes: int | None = None
    """Of keys and values where they are narrower."""

    @property
    def weight(self) -> int:
        """Bytes of a weight."""
        return self.weight_bytes or self.element_bytes

    @property
    def kv(self) -> int:
        """Bytes of the keys and values of one position in all layers."""
        return kv_bytes_per_token(self.config.decoder, self.cache_bytes or self.element_bytes)


@dataclass(frozen=True)
class Work:
    """Bytes and operations by what they are for."""

    bytes: dict[str, float]
    flops: dict[str, float]

    def seconds(self, machine: Rates) -> float:
        """At least, on this machine."""
        return max(sum(self.bytes.values()) / machine.read_gb_s, sum(self.flops.values()) / machine.gflops) / 1e9

    def bound(self, machine: Rates) -> str:
        """What sets the roofline: `bandwidth` or `matrix rate`."""
        memory = sum(self.bytes.values()) / machine.read_gb_s
        return "bandwidth" if memory >= sum(self.flops.values()) / machine.gflops else "matrix rate"


@dataclass(frozen=True)
class Roofline:
    """Seconds that a batch takes at least, phase by phase."""

    prefill: float
    title: float
    picture: float
    vq: float
    picture_steps: int

    @property
    def seconds(self) -> float:
        """Of the whole batch."""
        return self.prefill + self.title + self.picture + self.vq

    @property
    def ms_per_step(self) -> float:
        """Of an image step of the whole batch."""
        return 1000 * self.picture / self.picture_steps


def roofline(work: Workload, machine: Rates) -> Roofline:
    """The roofline of a batch on a machine whose speeds were measured in the same dtype."""
    return Roofline(
        prefill=prefill_work(work).seconds(machine),
        title=title_work(work).seconds(machine),
        picture=picture_work(work).seconds(machine),
        vq=vq_work(work).seconds(machine),
        picture_steps=work.config.image.tokens_per_picture,
    )


def per_thousand(seconds_a_creative: float, price_an_hour: float = 0.0) -> dict[str, float]:
    """Device seconds and cost of 1,000 creatives, from one device's seconds for one."""
    seconds = 1000 * seconds_a_creative
    return {"device_seconds_per_1000": seconds, "cost_per_1000": seconds / 3600 * price_an_hour}


def picture_work(work: Workload) -> Work:
    """All N image steps of a batch: N times the head, N - 1 times the decoder (the last token is not read any more)."""
    sizes, image, e, rows = work.config.decoder, work.config.image, work.element_bytes, work.batch
    steps, w, kv = image.tokens_per_picture - 1, work.weight, work.kv
    own = sum(range(1, steps + 1))  # image tokens that a row sees, over all steps
    conditional = rows * (work.prompt_tokens * steps + own)
    moved = {
        "decoder weights": w * decoder_parameters(sizes) * steps,
        "image head weights": w * head_parameters(work.config) * image.tokens_per_picture,
        "image-token table rows": e * rows * sizes.hidden_size * steps,
        "keys and values of conditional rows": kv * conditional,
        "keys and values of unconditional rows": kv * rows * own,
        "shared negative prefix": kv * work.negative_tokens * steps,
        "keys and values written": kv * 2 * rows * steps,
        "foreground additions": e * work.config.num_additions * rows * sizes.hidden_size * steps,
    }
    seen = conditional + rows * (work.negative_tokens * steps + own)
    flops = {
        "decoder": 2 * linear_parameters(sizes) * 2 * rows * steps,
        "image head": 2 * head_parameters(work.config) * 2 * rows * image.tokens_per_picture,
        "attention": attention_flops(sizes) * seen,
    }
    return Work(moved, flops)


def title_work(work: Workload) -> Work:
    """The title loop's steps: conditional rows alone, text head."""
    sizes, rows, steps = work.config.decoder, work.batch, work.title_tokens
    w, kv, head = work.weight, work.kv, sizes.vocab_size * sizes.hidden_size
    reads = max(steps - 1, 0)  # the last token is not read any more
    seen = rows * (work.prompt_tokens * reads + sum(range(1, reads + 1)))
    moved = {
        "decoder weights": w * decoder_parameters(sizes) * reads,
        "text head weights": w * head * steps,
        "keys and values": kv * (seen + rows * reads),
    }
    flops = {
        "decoder": 2 * linear_parameters(sizes) * rows * reads,
        "text head": 2 * head * rows * steps,
        "attention": attention_flops(sizes) * seen,
    }
    return Work(moved, flops)


def prefill_work(work: Workload) -> Work:
    """History, foreground, and each prompt through the decoder once; weights are read once."""
    sizes, rows, tokens = work.config.decoder, work.batch, work.prompt_tokens
    items = work.config.history_items if work.history_items is None else work.history_items
    history, foreground, _ = _parts_flops(work.config.model_dump_json(), items)
    flops = {
        "decoder": 2 * linear_parameters(sizes) * rows * tokens,
        "attention": attention_flops(sizes) * rows * tokens * (tokens + 1) // 2,
        "history": history * rows,
        "foreground": foreground * rows,
    }
    moved = {
        "decoder weights": work.weight * decoder_parameters(sizes),
        "keys and values written": work.kv * rows * tokens,
    }
    return Work(moved, flops)


def vq_work(work: Workload) -> Work:
    """Codes to pixels."""
    return Work({}, {"decoder": _parts_flops(work.config.model_dump_json(), 0)[2] * work.batch})


# -- sizes ---------------------------------------------------------------------------------------------------------------


def linear_parameters(sizes: DecoderConfig) -> int:
    """Weights of the layers' linears: q, k, v, o, gate, up, down."""
    kv = sizes.num_key_value_heads * sizes.head_size
    attention = 2 * sizes.hidden_size**2 + 2 * sizes.hidden_size * kv
    return sizes.num_layers * (attention + 3 * sizes.hidden_size * sizes.intermediate_size)


def decoder_parameters(sizes: DecoderConfig) -> int:
    """What a decoder step reads: linears and norms, without token table and text head."""
    return linear_parameters(sizes) + (2 * sizes.num_layers + 1) * sizes.hidden_size


def head_parameters(config: ModelConfig) -> int:
    """Of the image head, biases included."""
    image = config.image
    return (config.decoder.hidden_size + 1) * image.head_size + (image.head_size + 1) * image.codebook_size


def kv_bytes_per_token(sizes: DecoderConfig, element_bytes: int) -> int:
    """Keys and values of one position in all layers."""
    return 2 * sizes.num_layers * sizes.num_key_value_heads * sizes.head_size * element_bytes


def attention_flops(sizes: DecoderConfig) -> int:
    """For one query over one visible position, in all layers: a product with the key, one with the value."""
    return 4 * sizes.num_layers * sizes.hidden_size


@lru_cache
def _parts_flops(config_json: str, history_items: int) -> tuple[int, int, int]:
    """Operations a creative of the history's encoders, the foreground path and the VQ decoder, counted by torch on modules
    without memory."""
    config = ModelConfig.model_validate_json(config_json)
    width, image = config.decoder.hidden_size, config.image
    with torch.device("meta"), torch.inference_mode():
        preference = Preference(width, config.preference).eval()
        foreground, tokenizer = ForegroundPerception(config).eval(), ImageTokenizer(image).eval()
        pictures = torch.empty(1, history_items, image.tokens_per_history_picture, width)
        titles = torch.empty(1, history_items, config.preference.tokens_per_title, width)
        condition = torch.empty(1, 3, config.foreground.condition_size, config.foreground.condition_size)
        codes = torch.empty(1, image.tokens_per_picture, dtype=torch.int64)
        history = _count(lambda: preference(pictures, titles, False, None)) if history_items else 0
        if history_items and preference.style_encoder is not None:
            history += _count(lambda: preference.style_encoder(pictures))
        return history, _count(lambda: foreground(condition)), _count(lambda: tokenizer.decode(codes))


def _count(act: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()
