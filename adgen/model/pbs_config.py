"""Sizes of the PBS encoder, apart from the encoder: settings name them where no torch is loaded."""

from pydantic import Field

from adgen.config import Settings


class PBSConfig(Settings):
    """Sizes of the encoder; the defaults are the published ViT-B/16."""

    image_size: int = Field(224, gt=0)
    resize_to: int = Field(256, gt=0)
    """The shorter side before the centre crop."""
    patch_size: int = Field(16, gt=0)
    hidden_size: int = Field(768, gt=0)
    num_layers: int = Field(12, gt=0)
    num_heads: int = Field(12, gt=0)
    mlp_ratio: int = Field(4, gt=0)
    feature_size: int = Field(64, gt=0)
