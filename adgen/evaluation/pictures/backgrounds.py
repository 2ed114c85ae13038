"""Second opinions on backgrounds without a PBS encoder: DINOv2's patches outside the product.

Tensors in, tensors out. The patches come from a DINOv2 that the caller loads from a local directory, or from the model's
own foreground adapter; a report has to say which (`PatchEncoder.name`), since the adapter was trained on products.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adgen.errors import ModelError
from adgen.evaluation.pictures.local_weights import local_model
from adgen.model.uniadgen import UniAdGen

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN_ADAPTER = "own adapter"
_MOSTLY = 0.5  # a patch with more product than this says nothing of the background


class PatchEncoder(NamedTuple):
    """What makes patch features, and what a report calls it."""

    name: str
    side: int
    """Of the pictures it takes, pixels."""
    device: torch.device
    patches: Callable[[Tensor], Tensor]
    """Pictures (B, 3, side, side) in 0..1, on `device` -> features (B, h, w, D)."""


def load_dinov2(directory: str | Path, device: str | torch.device = "cpu", side: int = 224) -> PatchEncoder:
    """A DINOv2 in Hugging Face layout from a local directory, nothing downloaded. ModelError names what is missing."""
    from transformers import Dinov2Model

    model = local_model(directory, Dinov2Model, "dinov2").to(device)
    patch = model.config.patch_size
    grid = side // patch
    if not grid:
        raise ModelError(f"{directory}: config.json: patch_size {patch} is larger than the pictures of {side} pixels")
    mean, deviation = (torch.tensor(each, device=device)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_DEVIATION))

    def patches(pixels: Tensor) -> Tensor:
        return model((pixels - mean) / deviation).last_hidden_state[:, 1:].unflatten(1, (grid, grid))

    return PatchEncoder(f"DINOv2 {Path(directory).name}", grid * patch, mean.device, patches)


def own_adapter(model: UniAdGen) -> PatchEncoder:
    """The DINOv2 inside the model's foreground path, at the size that it takes products at; the model in fp32."""
    side = model.config.foreground.condition_size

    def patches(pixels: Tensor) -> Tensor:
        features = model.foreground.features(pixels * 2 - 1)
        grid = round(features.shape[1] ** 0.5)
        return features.unflatten(1, (grid, grid))

    return PatchEncoder(OWN_ADAPTER, side, model.device, patches)


# -- backgrounds -----------------------------------------------------------------------------------------------


@torch.no_grad()
def background_features(encoder: PatchEncoder, pixels: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, S, S) in 0..1 and their products' masks (B, S, S) in 0..1 -> features (B, D) of unit length, and
    (B,) whether there is any background; where there is none the feature is zero, and similar to nothing.

    The product is first painted over with the picture's mean background, or attention would carry it into every patch.
    """
    hidden = product[:, None] > 0
    background = (~hidden).sum((2, 3), keepdim=True).clamp(min=1)
    mean = pixels.masked_fill(hidden, 0).sum((2, 3), keepdim=True) / background
    patches = encoder.patches(torch.where(hidden, mean, pixels).to(encoder.device)).to(pixels.device)
    share = F.adaptive_avg_pool2d(product[:, None], patches.shape[1:3])[:, 0]
    weight = (1 - share) * (share <= _MOSTLY)
    pooled = (patches * weight[..., None]).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)[:, None]
    return F.normalize(pooled, dim=-1), weight.sum((1, 2)) > 0
