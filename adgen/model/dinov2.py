"""The DINOv2 that sees products: transformers' network with the published position resampling. docs/design.md 6.6."""

from torch import Tensor
from transformers import Dinov2Config, Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from adgen.model.config import ModelConfig
from adgen.model.positions import resample_positions


def dinov2(config: ModelConfig) -> Dinov2Model:
    """The network, its weights not yet read."""
    network = Dinov2Model(dinov2_config(config))
    network.embeddings = ResampledEmbeddings(network.config)
    return network


class ResampledEmbeddings(Dinov2Embeddings):
    """DINOv2's patch embeddings with the published position resampling; see `resample_positions`."""

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Position rows for a picture of height x width pixels."""
        return resample_positions(self.position_embeddings, (height // self.patch_size, width // self.patch_size))


def dinov2_config(config: ModelConfig) -> Dinov2Config:
    """transformers' configuration of the DINOv2 in `config`."""
    sizes = config.foreground
    return Dinov2Config(
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        patch_size=sizes.patch_size,
        image_size=sizes.position_grid * sizes.patch_size,
        mlp_ratio=sizes.mlp_ratio,
        layer_norm_eps=1e-6,
    )
