"""Second opinions on backgrounds without a PBS encoder: DINOv2's patches outside the product, the spread between seeds,
and whether a picture copies one that the user clicked.

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
from adgen.evaluation.local_weights import local_model
from adgen.model.uniadgen import UniAdGen

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN_ADAPTER = "own adapter"
_MOSTLY = 0.5  # a patch with more product than this says nothing of the background
_THUMBNAIL = 12  # pixels a side; finer ones lose copies that are cropped a little
COPY_CORRELATION, COPY_DIFFERENCE = 0.8, 0.08


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


def diversity(features: Tensor) -> Tensor:
    """Features (P, K, D) of K pictures of each of P pairs, made with different seeds -> (P,): the mean of 1 - cosine
    over its pairs of pictures; 0 when all are alike. ValueError when K < 2."""
    num_seeds = features.shape[1]
    if num_seeds < 2:
        raise ValueError(f"diversity between seeds needs two pictures of a pair at least, found {num_seeds}")
    unit = F.normalize(features, dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    return 1 - (cosine.sum((1, 2)) - num_seeds) / (num_seeds * (num_seeds - 1))


# -- copies ----------------------------------------------------------------------------------------------------


class Nearest(NamedTuple):
    """The history picture that each of B pictures is most like; all (B,)."""

    copied: Tensor
    """Whether they are near-duplicates."""
    correlation: Tensor
    """Of their thumbnails outside the product, -1..1; -1 where the history is empty."""
    index: Tensor
    """Which one it is; -1 where the history is empty."""


@torch.no_grad()
def nearest_history(pixels: Tensor, product: Tensor, history: Tensor, present: Tensor) -> Nearest:
    """Pictures (B, 3, S, S) in 0..1, their products' masks (B, S, S), history pictures (B, N, 3, S, S) of which
    `present` (B, N) are there.

    A near-duplicate has nearly the same colours and the same light and dark places: thumbnails of 12 pixels, compared
    outside the product, correlate at 0.8 or more and differ by 0.08 or less. On the synthetic shop that finds four of
    five copies that were cropped by up to a tenth, halved in size, relit and saved at JPEG quality 50; of 4,897 pairs of a
    reference and a clicked picture, which never are copies, it takes 7 for one, so a rate has to be seen beside that of
    references. An encoder's cosine cannot serve: following a style is no copying.
    """
    if not history.shape[1]:
        nothing = torch.full((len(pixels),), -1.0, device=pixels.device)
        return Nearest(nothing > 0, nothing, nothing.long())
    mine, theirs = _thumbnail(pixels)[:, None], _thumbnail(history.flatten(0, 1)).unflatten(0, history.shape[:2])
    weight = (F.adaptive_avg_pool2d(product[:, None], _THUMBNAIL) <= _MOSTLY)[:, None].float()
    area = weight.sum((2, 3, 4)).clamp(min=1)
    difference = ((mine - theirs).abs().mean(2, keepdim=True) * weight).sum((2, 3, 4)) / area
    a, b = (_centred(part, weight, area) for part in (mine, theirs))
    norms = a.flatten(2).norm(dim=2) * b.flatten(2).norm(dim=2)
    correlation = ((a * b).sum((2, 3, 4)) / norms.clamp(min=1e-6)).masked_fill(~present, -1.0)
    copies = present & (correlation >= COPY_CORRELATION) & (difference <= COPY_DIFFERENCE)
    best, index = correlation.max(1)
    return Nearest(copies.any(1), best, index.masked_fill(~present.any(1), -1))


def _thumbnail(pixels: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(pixels, _THUMBNAIL)


def _centred(pixels: Tensor, weight: Tensor, area: Tensor) -> Tensor:
    mean = (pixels * weight).sum((3, 4), keepdim=True) / area[..., None, None, None]
    return (pixels - mean) * weight
