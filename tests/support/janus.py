"""Janus of transformers, random and of the smallest size, in its own layout.

Model classes are named where they are used: each takes seconds to import, which every worker would wait for.
"""

from pathlib import Path

import torch
import transformers

from adgen.model.config import ModelConfig
from support.models import small_config


def transformers_config(config: ModelConfig, tied: bool = False) -> "transformers.JanusConfig":
    image, decoder = config.image, config.decoder
    return transformers.JanusConfig(
        tie_word_embeddings=tied,
        text_config={
            "model_type": "llama",
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_layers,
            "num_attention_heads": decoder.num_heads,
            "num_key_value_heads": decoder.num_key_value_heads,
            "vocab_size": decoder.vocab_size,
            "max_position_embeddings": decoder.max_positions,
            "rms_norm_eps": decoder.rms_norm_eps,
        },
        vq_config={
            "embed_dim": image.code_size,
            "num_embeddings": image.codebook_size,
            "latent_channels": image.latent_channels,
            "base_channels": image.base_channels,
            "channel_multiplier": list(image.channel_multiplier),
            "num_res_blocks": image.num_res_blocks,
            "num_patches": image.image_size // image.factor,
            "projection_dim": decoder.hidden_size,
            "image_token_embed_dim": decoder.hidden_size,
        },
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "projection_dim": decoder.hidden_size,
        },
    )


def save_janus(directory: Path, tied: bool, max_positions: int = 800) -> "transformers.JanusForConditionalGeneration":
    torch.manual_seed(0)
    config = small_config()
    config = small_config(decoder=config.decoder.model_copy(update={"max_positions": max_positions}))
    config = config.model_copy(update={"image": config.image.model_copy(update={"head_size": config.decoder.hidden_size})})
    model = transformers.JanusForConditionalGeneration(transformers_config(config, tied)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    return model
