"""Networks that score pictures, random and of the smallest sizes, in Hugging Face layout."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_dinov2(folder: Path, seed: int = 0) -> Path:
    """A DINOv2 of one layer."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, patch_size=14, image_size=28)).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A CLIP of one layer, with tokenizer and preprocessor."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    text = SIZES | {"vocab_size": 514, "intermediate_size": 32, "max_position_embeddings": 16}
    tokens = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    vision = SIZES | {"intermediate_size": 32, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text | tokens, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={piece: at for at, piece in enumerate(pieces)}, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder
