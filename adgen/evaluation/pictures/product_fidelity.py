"""Whether a picture shows the product: where it is meant to be, in its colours, and nowhere else.

The product's pixels are known, so it need not be recognised: each pixel is either nearer in colour to the product's at
that place or to the background's, which is sampled far from the product. That holds for a picture whose product was
pasted and for one whose product the model painted. A product of its background's colour cannot be separated from it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_SLACK = 1  # pixels by which a painted product may be off and still be where it should
_REACH = 16  # spill is looked for within a side's 16th part of the product
_SAMPLES = 128  # background pixels that stand for all of them
_CLEARER = 0.03  # how much nearer (0..1) a pixel must be to the other side than the mask says


@torch.no_grad()
def product_scores(pictures: Tensor, products: Tensor) -> dict[str, Tensor]:
    """Pictures (B, 3, S, S) and products (B, 4, S, S) in the same frames, 0..1, to (B,) each:

    product_iou - of the product found in the picture with the mask, 0..1; product_distance - mean absolute difference
    of its pixels' colours inside the mask, 0..1; product_spill - what was found outside, as a share of the mask.
    ValueError names a product without a visible pixel.
    """
    colours, alpha = products[:, :3], products[:, 3]
    inside = alpha > 0.5
    if not bool(inside.flatten(1).any(1).all()):
        raise ValueError(f"product {int((~inside.flatten(1).any(1)).nonzero()[0])} has no visible pixel")
    reach = max(2, pictures.shape[-1] // _REACH)
    around = _grown(inside, reach)
    near = _distance_to_product(pictures, colours, inside, _SLACK)
    wide = _distance_to_product(pictures, colours, inside, reach)
    background = _distance_to_background(pictures, ~around)
    found = inside & (near <= background + _CLEARER)
    # The soft edge belongs to both; a pixel of it is no spill.
    spilt = around & ~_grown(alpha > 0, 1) & (wide + _CLEARER < background)
    area, spill = inside.sum((1, 2)), spilt.sum((1, 2))
    difference = (pictures - colours).abs().mean(1)
    return {
        "product_iou": found.sum((1, 2)) / (area + spill),
        "product_distance": (difference * inside).sum((1, 2)) / area,
        "product_spill": spill / area,
    }


def _grown(mask: Tensor, by: int) -> Tensor:
    return F.max_pool2d(mask[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0


def _distance_to_product(pictures: Tensor, colours: Tensor, inside: Tensor, radius: int) -> Tensor:
    """(B, S, S): to the nearest colour that the product has within `radius` pixels of the place; inf where it has none."""
    side = pictures.shape[-1]
    padded, known = (F.pad(part, [radius] * 4) for part in (colours, inside))
    nearest = torch.full_like(pictures[:, 0], torch.inf)
    for top in range(2 * radius + 1):
        for left in range(2 * radius + 1):
            window = (..., slice(top, top + side), slice(left, left + side))
            distance = (pictures - padded[window]).square().mean(1).sqrt()
            nearest = torch.minimum(nearest, distance.masked_fill(~known[window], torch.inf))
    return nearest


def _distance_to_background(pictures: Tensor, outside: Tensor) -> Tensor:
    """(B, S, S): to the nearest of colours sampled evenly where `outside`; inf where all is product."""
    distances = []
    for picture, mask in zip(pictures.flatten(2), outside.flatten(1), strict=True):
        places = mask.nonzero()[:, 0]
        if not len(places):
            distances.append(torch.full_like(picture[0], torch.inf))
            continue
        chosen = places[torch.linspace(0, len(places) - 1, min(_SAMPLES, len(places)), device=places.device).long()]
        distances.append(torch.cdist(picture.T, picture[:, chosen].T).amin(1) / 3**0.5)
    return torch.stack(distances).unflatten(1, pictures.shape[-2:])
