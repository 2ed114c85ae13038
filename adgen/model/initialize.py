"""How new weights begin (docs/design.md 6.5: the published initialisers have no effect, so this is ours to say)."""

import torch
from torch import nn

from adgen.model import dinov2
from adgen.model.decoder import Decoder
from adgen.model.foreground import ForegroundPerception
from adgen.model.lora import LoRALinear
from adgen.model.preference import DualModalityFusion, Preference
from adgen.model.uniadgen import UniAdGen

_STD = 0.02


@torch.no_grad()
def initialize(model: UniAdGen, seed: int = 0) -> UniAdGen:
    """Fill every parameter of a materialised model; the same seed gives the same weights on every device."""
    for part in model.children():
        initialize_part(part, seed)
    return model


@torch.no_grad()
def initialize_part(part: nn.Module, seed: int = 0) -> None:
    """Fill the parameters of one child of UniAdGen (decoder, foreground, preference, ...)."""
    generator = torch.Generator().manual_seed(seed)
    for module in part.modules():
        _fill(module, generator)
    if isinstance(part, Decoder):
        _scale_residual_branches(part)
    if isinstance(part, Preference):
        _start_preference(part, generator)
    if isinstance(part, ForegroundPerception):
        for layer in part.condition_layers:
            # Control starts at nothing and is learned: an untrained path must not disturb a trained decoder.
            layer.newfc2.weight.zero_()


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    if isinstance(module, LoRALinear):
        _normal(module.lora_A, module.in_features**-0.5, generator)
        module.lora_B.zero_()
    if isinstance(module, nn.Linear | nn.Conv2d):
        fan_in = module.weight[0].numel()
        _normal(module.weight, min(_STD, fan_in**-0.5) if isinstance(module, nn.Linear) else fan_in**-0.5, generator)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.Embedding):
        _normal(module.weight, _STD, generator)
    elif isinstance(module, dinov2.Embeddings):
        for table in (module.cls_token, module.position_embeddings):
            _normal(table, _STD, generator)
        module.mask_token.zero_()
    elif isinstance(module, dinov2.LayerScale):
        module.lambda1.fill_(1.0)
    elif hasattr(module, "weight") and module.weight is not None:  # norms
        module.weight.fill_(1.0)
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()


def _scale_residual_branches(decoder: Decoder) -> None:
    """Outputs into the residual stream shrink with depth, as GPT-2's do (Radford et al. 2019)."""
    for layer in decoder.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.mul_((2 * len(decoder.layers)) ** -0.5)


def _start_preference(preference: Preference, generator: torch.Generator) -> None:
    """As docs/design.md 6.5 intends; with the residual the fused part starts at zero, and so does the style embedding."""
    for module in preference.modules():
        if isinstance(module, nn.Linear):
            rows, columns = module.weight.shape
            _normal(module.weight, (2.0 / (rows + columns)) ** 0.5, generator)
        if isinstance(module, DualModalityFusion):
            for table in (module.image_pos_encoding, module.text_pos_encoding):
                _normal(table, 0.01, generator)
    for mask in (preference.visual_mask_generator, preference.text_mask_generator):
        _normal(mask.base_transformer.pos_encoding, 0.01, generator)
    if preference.style_encoder is not None:
        _normal(preference.style_encoder.pos_encoding, 0.01, generator)
        preference.style_encoder.output_proj.weight.zero_()
    if preference.residual:
        preference.dual_modality_fusion_encoder.output_proj.weight.zero_()


def _normal(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Drawn on the CPU in fp32 and copied, so that device and dtype do not change the draw."""
    weight.copy_(torch.randn(weight.shape, generator=generator).mul_(std))
