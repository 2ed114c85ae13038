"""What a history's clicks, each read by itself, say together. Ours: the published model has no such path.

A user who likes two things clicks both, and some of the clicks are strays. The mean of the readings lies between all of them, where
no picture is; what a picture can show is what many clicks say alike. So where a picture is made, clicks are weighted by how much
they agree: a mean shift (Cheng 1995) on the unit sphere, from the mean of the readings towards where they are dense. Training takes
the mean itself: what is learned there may be in any of the styles that a user likes, and all clicks tell of it.

Shapes: B samples, N clicks, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_SHIFTS = 2
"""How often the mean is weighted anew. Of six clicks of `tiny`'s users as many count as 3.9 after one shift, 3.4 after two, 3.3
after five (1 / the sum of squared shares)."""


def shared_taste(readings: Tensor, num_items: Tensor | None, focus: float) -> Tensor:
    """Readings (B, N, D) of the clicks -> (B, D): each sample's mean, weighted by agreement; zeros for one without clicks.

    num_items (B,): how many of the N clicks each sample has, all by default. focus: 0 for the plain mean. In fp32, whatever the
    readings are in: sums, and no products of matrices, which autocast would make bf16 of.
    """
    shares = click_shares(readings, num_items, focus)
    return (shares[..., None] * readings.float()).sum(1).to(readings.dtype)


@torch.no_grad()
def click_shares(readings: Tensor, num_items: Tensor | None, focus: float) -> Tensor:
    """Each click's share (B, N) of its sample's taste, fp32, summing to 1, or all 0 without clicks.

    Equal shares to begin with, then with each shift share ~ exp(focus * cosine of its reading to the weighted mean). Where as many
    clicks say one thing as another, nobody leads and shares stay equal. They have no gradient: what pulls on a taste pulls on the
    clicks that make it, and not on who agrees with whom.
    """
    count = torch.full((len(readings),), readings.shape[1], device=readings.device) if num_items is None else num_items
    own = torch.arange(readings.shape[1], device=readings.device) < count[:, None]
    shares = own / count.clamp_min(1)[:, None].float()
    unit = F.normalize(readings.float(), dim=-1)
    for _ in range(_SHIFTS if focus else 0):
        centre = F.normalize((shares[..., None] * unit).sum(1, keepdim=True), dim=-1)
        agreement = focus * (unit * centre).sum(-1)
        # Not -inf, of which a sample without clicks would have NaN; `own` makes it zeros.
        shares = agreement.masked_fill(~own, torch.finfo(torch.float32).min).softmax(-1) * own
    return shares
