"""transformers' own Janus on the engine's weights: the library loop that the engine is measured against.

It takes token ids and no embeddings, and it has neither history nor foreground: its prompt is as long as the engine's,
its history slots hold their placeholders' embeddings, and it skips the whole foreground path, which favours it. All else
is its default: a static cache as long as prompt and picture, scaled-dot-product attention, an unconditional prompt of
padding as long as the conditional one, guidance by its logits processor. Its picture stays tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from adgen.generation.benchmark.clock import StepClock
from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.model.config import ModelConfig
from adgen.model.uniadgen import UniAdGen

# Their weights under the names of transformers; what is not here (SigLIP, VQ) has no part in making image tokens.
_SHARED = {
    "decoder.embed_tokens.": "model.language_model.embed_tokens.",
    "decoder.layers.": "model.language_model.layers.",
    "decoder.norm.": "model.language_model.norm.",
    "decoder.lm_head.": "lm_head.",
    "image_embedding.gen_embed.": "model.generation_embeddings.",
    "image_embedding.gen_aligner.0.": "model.generation_aligner.fc1.",
    "image_embedding.gen_aligner.2.": "model.generation_aligner.hidden_layers.0.",
    "image_head.output_mlp_projector.": "model.generation_head.proj_out.",
    "image_head.vision_head.": "model.generation_head.vision_head.",
}


class TransformersJanus:
    """`JanusForConditionalGeneration` over the same tensors as `model`; nothing is copied."""

    def __init__(self, model: UniAdGen, prompter: Prompter, sampling: SamplingSettings):
        self.janus = _janus_over(model)
        self.sampling, self.num_tokens = sampling, model.config.image.tokens_per_picture
        self._ids = {name: prompter._special[getattr(prompter.template.tokens, name)] for name in _TOKENS}

    @torch.inference_mode()
    def paint(self, prompts: Sequence[Sequence[int]], steps: int | None = None, clock: StepClock | None = None) -> Tensor:
        """Codes (B, steps) for prompts of one length, ids as `Prompter.picture_prompt` gives them.

        steps: fewer than a picture has. The cache is as long as for a whole picture and attention reads all of it at
        every step, so each step costs the same wherever a run stops. The clock is struck once a step, before the draw.
        """
        janus, ids = self.janus, torch.tensor([list(prompt) for prompt in prompts], device=self.janus.device)
        janus.model.vision_model.config.num_image_tokens = steps or self.num_tokens
        return janus.generate(
            inputs=ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            generation_config=self._generation(ids.shape[1]),
            logits_processor=LogitsProcessorList([_Strike(clock)] if clock else []),
        )

    def _generation(self, prompt_length: int) -> GenerationConfig:
        temperature = self.sampling.picture_temperature
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        return GenerationConfig(
            guidance_scale=self.sampling.guidance,
            max_length=prompt_length + self.num_tokens,
            bos_token_id=self._ids["begin_of_sentence"],
            pad_token_id=self._ids["pad"],
            eos_token_id=None,
            generation_kwargs={"boi_token_id": self._ids["begin_of_image"]},
            **drawn,
        )


_TOKENS = ("begin_of_sentence", "pad", "begin_of_image")


class _Strike(LogitsProcessor):
    """Strikes a clock at every step and changes nothing."""

    def __init__(self, clock: StepClock):
        self.clock = clock

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.clock.strike()
        return scores


def _janus_over(model: UniAdGen) -> JanusForConditionalGeneration:
    """Built without memory, then given the model's own tensors."""
    config = _janus_config(model.config)
    with torch.device("meta"):
        janus = JanusForConditionalGeneration(config).eval()
        # transformers has one size for the aligner's output and the head's inner width.
        head = config.vq_config.__class__(**config.vq_config.to_dict() | {"projection_dim": model.config.image.head_size})
        janus.model.generation_head = type(janus.model.generation_head)(head)
    weights = {
        new + name.removeprefix(old): tensor
        for name, tensor in model.state_dict().items()
        for old, new in _SHARED.items()
        if name.startswith(old)
    }
    janus.load_state_dict(weights, strict=False, assign=True)
    for unused in (janus.model.vision_model, janus.model.aligner, janus.model.vqmodel):
        unused.to(model.dtype).to_empty(device=model.device)
    language = janus.model.language_model
    with model.device:
        language.rotary_emb = type(language.rotary_emb)(language.config)  # its table is no weight
    left = [name for name, parameter in janus.named_parameters() if parameter.is_meta]
    if left:
        raise RuntimeError(f"transformers' Janus has weights that this model lacks: {', '.join(left[:5])}")
    return janus.requires_grad_(False)


def _janus_config(config: ModelConfig) -> JanusConfig:
    """The same decoder and head; what image tokens do not need is as small as it may be."""
    sizes, image = config.decoder, config.image
    text = LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        max_position_embeddings=sizes.max_positions,
        rms_norm_eps=sizes.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
    )
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=1, projection_dim=sizes.hidden_size, mlp_ratio=1.0, depth=1
    )
    vq = JanusVQVAEConfig(
        embed_dim=image.code_size,
        num_embeddings=image.codebook_size,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1],
        num_res_blocks=1,
        projection_dim=sizes.hidden_size,
        image_token_embed_dim=sizes.hidden_size,
    )
    return JanusConfig(text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False)
