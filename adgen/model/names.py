"""Checkpoint names: ours, the published model's, PEFT's, and transformers' Janus.

Files on disk carry the published names, whoever wrote them; modules carry ours. transformers renames DINOv2's layers
from version to version, so its module names never reach a file.
"""

import re

# (our prefix, published prefix): the first that matches is replaced.
_PREFIXES = (
    ("decoder.lm_head.", "language_model.lm_head."),
    ("decoder.", "language_model.model."),
    ("foreground.adapter.", "language_model.model.adapter.model."),
    ("foreground.condition_mlp.", "language_model.model.condition_mlp.cap_proj."),
    ("foreground.", "language_model.model."),
    ("preference.style_encoder.", "taste_reader."),  # the name of version 0.1.0: digests hash the weight files
    ("preference.", ""),
    ("image_tokenizer.vqvae.", "gen_vision_model."),
    ("image_embedding.gen_aligner.", "gen_aligner.layers."),
    ("image_embedding.", ""),
    ("image_head.", "gen_head."),
)

_DINO = (  # transformers >= 5.20 -> published; older versions carry the published names themselves
    (re.compile(r"\.attention\.q_proj\."), ".attention.attention.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.attention.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.attention.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
)

_VQ = (  # transformers' JanusVQVAE -> published
    (re.compile(r"^(encoder\.)down\.(\d+)\."), r"\1conv_blocks.\2."),
    (re.compile(r"^(decoder\.)up\.(\d+)\."), r"\1conv_blocks.\2."),
    (re.compile(r"(conv_blocks\.\d+\.)block\."), r"\1res."),
    (re.compile(r"\.mid\.block_1\."), ".mid.0."),
    (re.compile(r"\.mid\.attn_1\."), ".mid.1."),
    (re.compile(r"\.mid\.block_2\."), ".mid.2."),
)

# What a published checkpoint holds and this model has no use for, and why.
UNUSED = (
    (
        re.compile(r"^vision_model\."),
        "SigLIP reads pictures for understanding; history pictures go through the VQ tokenizer",
    ),
    (re.compile(r"^aligner\."), "projects SigLIP's features"),
    (re.compile(r"^language_model\.model\.condition_projection\."), "constructed, frozen and never called"),
    (re.compile(r"^language_model\.model\.condition_mlp\.uncond_embedding$"), "a zero buffer that nothing reads"),
    (re.compile(r"^gen_vision_model\.quantize\.codebook_used$"), "bookkeeping of the tokenizer's training"),
    (re.compile(r"\.rotary_emb\.inv_freq$"), "computed from rope_theta"),
)

_STYLE_ENCODER = re.compile(r"(^|\.)style_encoder\.")
_PEFT_PREFIX = re.compile(r"^(module\.)?vl_gpt\.base_model\.model\.")

# (transformers Janus prefix, published prefix)
_JANUS = (
    ("model.language_model.", "language_model.model."),
    ("model.vqmodel.", "gen_vision_model."),
    ("model.generation_embeddings.", "gen_embed."),
    ("model.generation_aligner.fc1.", "gen_aligner.layers.0."),
    ("model.generation_aligner.hidden_layers.0.", "gen_aligner.layers.2."),
    ("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
    ("model.generation_head.vision_head.", "gen_head.vision_head."),
    ("model.vision_model.", "vision_model."),
    ("model.aligner.", "aligner."),
    ("lm_head.", "language_model.lm_head."),
)


def published_name(own: str) -> str:
    """A state-dict key of UniAdGen as the published model calls it."""
    ours, theirs = next(pair for pair in _PREFIXES if own.startswith(pair[0]))
    rest = own.removeprefix(ours)
    if ours == "foreground.adapter.":
        rest = _replaced(rest, _DINO)
    if ours == "image_tokenizer.vqvae.":
        rest = _replaced(rest, _VQ)
    if rest.endswith((".lora_A", ".lora_B")):
        rest += ".default.weight"
    return theirs + rest


def plain_name(name: str) -> str:
    """A published name without what PEFT and data parallelism put around it; the style encoder under its name on disk."""
    return _STYLE_ENCODER.sub(r"\1taste_reader.", _PEFT_PREFIX.sub("", name).replace(".base_layer.", "."))


def current_name(own: str) -> str:
    """A state-dict key (or its beginning) of UniAdGen as version 0.1.0 called it, as it is called now."""
    return own.replace("taste_reader", "style_encoder")


def from_janus_name(name: str) -> str:
    """A key of transformers' JanusForConditionalGeneration as the published model calls it; a published key as it is."""
    for theirs, published in _JANUS:
        if name.startswith(theirs):
            rest = name[len(theirs) :]
            return published + (_replaced(rest, _VQ) if published == "gen_vision_model." else rest)
    return name


def unused_because(published: str) -> str | None:
    """Why this model ignores a published key; None when it must not."""
    return next((why for pattern, why in UNUSED if pattern.search(published)), None)


def _replaced(name: str, rules: tuple[tuple[re.Pattern, str], ...]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
