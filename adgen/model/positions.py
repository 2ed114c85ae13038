"""Position tables at other grids. docs/design.md 6.6."""

import torch
from torch import Tensor
from torch.nn import functional as F


def resample_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table (1, 1 + n*n, D), class row first, at another grid: (1, 1 + h*w, D).

    Bicubic with scale factors (h + 0.1)/n and (w + 0.1)/n, so that sampling coordinates use 24.1/37 and not 24/37: the
    published weights were trained with it. transformers (5.17 and 5.23) passes `size=` instead, which moves DINOv2's
    output by O(0.1). A table of the same grid is returned as it is.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    patches = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    patches = F.interpolate(patches, scale_factor=scale, mode="bicubic", align_corners=False)
    if patches.shape[-2:] != torch.Size(grid):
        raise ValueError(f"position table of {side}x{side} resampled to {tuple(patches.shape[-2:])}, wanted {grid}")
    return torch.cat((table[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)), dim=1)
