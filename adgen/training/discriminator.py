"""A patch discriminator (Isola et al. 2017) and its hinge losses, both from one backward pass."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """Pictures (B, 3, H, W) -> a verdict for each patch, (B, 1, h, w); positive is real."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 1, 1),
            nn.GroupNorm(8, 4 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4, 1, 1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def adversarial_losses(discriminator: PatchDiscriminator, real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """(the maker's loss (B,), the discriminator's (B,)): each moves its own weights only, so that one optimizer does both."""
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    maker = -functional_call(discriminator, frozen, (made,)).mean((1, 2, 3))
    judge = F.relu(1 - discriminator(real)).mean((1, 2, 3)) + F.relu(1 + discriminator(made.detach())).mean((1, 2, 3))
    return maker, judge


def feature_distance(features, real: Tensor, made: Tensor) -> Tensor:
    """Mean squared distance (B,) of a frozen network's features of two pictures."""
    with torch.no_grad():
        target = features(real)
    return (features(made) - target).square().mean(tuple(range(1, target.dim())))
