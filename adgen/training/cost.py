"""What training costs, by formula: FLOPs of a sequence, memory of a GPU, hours of an epoch (cluster/ARITHMETIC.md)."""

from collections.abc import Sequence
from dataclasses import dataclass

from adgen.model.checkpoint import on_meta, trainable_names
from adgen.model.config import LoRAConfig, ModelConfig
from adgen.model.lora import add_lora
from adgen.model.names import published_name

BUCKET = 500_000_000  # elements: DeepSpeed's default of zero_optimization.reduce_bucket_size
GATHERED = 1_000_000_000  # elements: of zero_optimization.stage3_max_live_parameters


def forward_flops(config: ModelConfig, prompt: int, items: int, answer: int, read: int | None = None) -> dict[str, float]:
    """FLOPs (two a multiply-add) of the forward pass over one sample: a prompt of `prompt` positions with `items` history
    items, an answer of `answer` tokens, and a picture; `read`: clicks that the style encoder reads, where the prompt shows
    fewer. Matrix products only, attention over whole sequences. By the prefix of the weights' names; products of activations
    with each other, which have no weights, under `decoder.attention`."""
    read = items if read is None else read
    d, picture = config.decoder, config.image.tokens_per_picture
    width, length = d.hidden_size, prompt + picture
    kv = d.num_key_value_heads * d.head_size
    layer = width * (2 * width + 2 * kv) + 3 * width * d.intermediate_size
    parts = {
        "decoder.layers.": length * d.num_layers * layer,
        "decoder.attention": length * d.num_layers * 2 * length * width,
        "decoder.lm_head.": answer * width * d.vocab_size,
        "image_head.": picture * (width + config.image.codebook_size) * config.image.head_size,
        "image_embedding.": (picture + read * config.image.tokens_per_history_picture) * (config.image.code_size + width) * width,
        "preference.": _history(config, items),
        "preference.style_encoder.": read * _reading(config),
        "foreground.": _foreground(config),
    }
    return {name: 2.0 * part for name, part in parts.items()}


def gradient_flops(parts: dict[str, float], trainable: Sequence[str]) -> float:
    """FLOPs of the backward pass for `forward_flops`' parts when the parameters named in `trainable` are trained: as much as
    forward for the gradients of activations, and as much again for those of trainable weights. What only reads inputs (picture
    embeddings, preference, foreground) has no backward pass where it is frozen. Low-rank updates are left out: they are a
    hundredth."""
    full = [name for name in trainable if not name.endswith((".lora_A", ".lora_B"))]
    total = 0.0
    for prefix, part in parts.items():
        is_trainable = any(name.startswith(prefix) for name in full)
        if prefix.startswith(("decoder.", "image_head.")):
            total += part * (1 + (is_trainable or prefix == "decoder.attention"))
        elif is_trainable:
            total += 2 * part
    return total


def _history(config: ModelConfig, items: int) -> float:
    """Multiply-adds of masks and fusion."""
    p, width = config.preference, config.decoder.hidden_size
    images, titles = items * config.image.tokens_per_history_picture, items * p.tokens_per_title
    masks = _blocks(config, images, p.mask_layers) + _blocks(config, titles, p.text_mask_layers or p.mask_layers)
    projections = (images + titles) * (2 + 2 * p.feed_forward_factor) * width**2
    return masks + _blocks(config, images + titles, p.fusion_layers) + projections


def _reading(config: ModelConfig) -> float:
    """Multiply-adds of one click's reading."""
    layers = config.preference.style_layers
    return _blocks(config, config.image.tokens_per_history_picture, layers) + (layers > 0) * config.decoder.hidden_size**2


def _blocks(config: ModelConfig, tokens: int, number: int) -> float:
    """Multiply-adds of `number` blocks of the fine step over `tokens` tokens that attend to each other."""
    width = config.decoder.hidden_size
    return number * tokens * ((4 + 2 * config.preference.feed_forward_factor) * width**2 + 2 * tokens * width)


def _foreground(config: ModelConfig) -> float:
    """Multiply-adds of DINOv2, the control MLPs and the condition layers."""
    f, width, tokens = config.foreground, config.decoder.hidden_size, config.foreground.num_tokens
    block = (4 + 2 * f.mlp_ratio) * f.hidden_size**2 + 2 * tokens * f.hidden_size
    patches = 3 * f.patch_size**2 * f.hidden_size
    mlps = f.hidden_size * width + (3 + 2 * config.num_additions) * width**2
    return tokens * (f.num_layers * block + patches + mlps)


@dataclass(frozen=True)
class TrainingCost:
    """Expected memory, time and file sizes of the language stages."""

    parameters: int
    trainable: int
    activation_bytes: float
    gpu_bytes: dict[int, float]
    """ZeRO stage -> bytes a GPU."""
    checkpoint_bytes: float
    token_flops: float
    epoch_hours: float


def training_cost(
    config: ModelConfig,
    preset: str = "released",
    workers: int = 32,
    micro_batch: int = 4,
    sequence: int = 2000,
    samples: int = 1_100_000,
    gpu_flops: float = 989e12,
    mfu: float = 0.4,
) -> TrainingCost:
    """The formulas of cluster/ARITHMETIC.md section 5 on a model's true parameter counts.

    `sharded_bytes`, and of activations one input a decoder layer kept.
    """
    total, trained = count_parameters(config, preset)
    activations = activation_bytes(config, micro_batch, sequence)
    memory = {stage: sharded_bytes(total, trained, workers, stage) + activations for stage in (1, 2, 3)}
    flops = 6 * total + 2 * trained
    hours = samples * sequence * flops / (workers * gpu_flops * mfu) / 3600
    return TrainingCost(total, trained, activations, memory, checkpoint_bytes(total, trained), flops, hours)


def checkpoint_bytes(total: int, trained: int, zero_stage: int = 2, bf16: bool = True) -> float:
    """Bytes that DeepSpeed writes: all weights (with ZeRO-3 the frozen ones alone: the others are in the fp32 copies),
    and an fp32 copy and two moments of what is trainable."""
    weights = total - trained if zero_stage == 3 else total
    return (2.0 if bf16 else 4.0) * weights + 12.0 * trained


def sharded_bytes(total: int, trained: int, workers: int, zero_stage: int, bucket: int = BUCKET, gathered: int = GATHERED) -> float:
    """Bytes on each of DeepSpeed's workers in bf16, activations left out: bf16 weights; of what is trained bf16 gradients, their
    fp32 sum, an fp32 copy and two moments. ZeRO 2 and 3 keep the sum alone and a bucket of gradients on their way, which ZeRO 2 has
    in backward passes only; ZeRO 3 has `gathered` weights whole at a time."""
    state = 12.0 * trained / workers
    if zero_stage == 1:
        return 2.0 * total + (2 + 4) * trained + state
    shared = 4.0 * trained / workers + state + 2 * bucket
    return shared + (2.0 * total if zero_stage == 2 else 2.0 * total / workers + 2 * min(gathered, total))


def state_bytes(total: int, trained: int) -> float:
    """Bytes of weights, gradients and two moments on one worker of the torch engine: all in fp32, activations left out."""
    return 4.0 * total + 12.0 * trained


def count_parameters(config: ModelConfig, preset: str) -> tuple[int, int]:
    """All parameters, and the trainable ones, low-rank updates among both; no memory is taken."""
    model = on_meta(config)
    if preset == "full":
        total = sum(parameter.numel() for parameter in model.parameters())
        return total, total
    add_lora(model.decoder, config.lora or LoRAConfig())
    trainable = set(trainable_names(model.state_dict()))
    sizes = {published_name(name): parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name in trainable)


def activation_bytes(config: ModelConfig, micro_batch: int, sequence: int) -> float:
    """Bytes that a step of stage personal keeps for its backward pass, bf16, checkpointed: one input a decoder layer, one layer's
    inside, and whole what is not checkpointed. Coefficients are bytes a token, counted from the tensors that autograd saves."""
    d, tokens = config.decoder, micro_batch * sequence
    layers = 2 * d.num_layers * d.hidden_size + (24 * d.hidden_size + 8 * d.intermediate_size) + 10 * d.hidden_size
    history = micro_batch * config.history_items * (config.image.tokens_per_history_picture + config.preference.tokens_per_title)
    blocks = config.preference.mask_layers + config.preference.fusion_layers
    foreground = 4 * (3 + 2 * config.num_additions) * micro_batch * config.foreground.num_tokens
    logits = 8 * micro_batch * (config.image.tokens_per_picture * config.image.codebook_size + 64 * d.vocab_size)
    return tokens * layers + ((56 * blocks + 16) * history + foreground) * d.hidden_size + logits
