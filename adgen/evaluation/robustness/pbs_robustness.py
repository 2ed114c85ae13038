"""How far PBS moves when a picture changes and its background does not, compared with how far backgrounds are from one another.

A movement alone says nothing: an encoder that maps all pictures to one point never moves. So each is also given as a share
of the margin, 1 minus the mean score of different backgrounds, and as how often the changed picture is still nearer to
its original than a picture of another background is, with the same product on it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adgen.errors import InputError
from adgen.evaluation.pictures.pbs_features import pbs_features, reencoded
from adgen.evaluation.robustness.changes import CHANGES, Change, Scene
from adgen.model.pbs import PBSEncoder, pbs
from adgen.shop.synthetic.drawing.backgrounds import set_on_background


@dataclass(frozen=True)
class Movement:
    """What one change does to the score of a picture with its unchanged self, which is 1."""

    change: str
    level: str
    pbs: float
    """Mean."""
    pbs_low: float
    """Of 20 pictures, 19 score higher."""
    share_of_margin: float | None
    """(1 - pbs) / (1 - pbs of other backgrounds): 0 does not move, 1 moves as far as another background. None without a margin."""
    nearer_than_other: float
    """Share of (picture, other background) pairs that the change leaves in order."""


@dataclass(frozen=True)
class Robustness:
    """The table, and what its rows must be seen against."""

    pictures: int
    other_background: float
    """Mean PBS of the same product on two backgrounds, of two styles where styles are known."""
    same_style: float | None
    """Mean PBS of the same product on two pictures of one style; None where styles are not known."""
    movements: tuple[Movement, ...]

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def measure_robustness(
    encoder: PBSEncoder,
    scenes: Iterable[Scene],
    seed: int = 0,
    published: bool = False,
    changes: Sequence[Change] = CHANGES,
    each: Callable[[int], None] = lambda count: None,
) -> Robustness:
    """Every change of every scene against its original. `each` is called after every scene.

    InputError with fewer than two scenes, or when all are of one style: then there is nothing to compare with.
    """
    kept, shown, changed = [], [], []
    for number, scene in enumerate(scenes):
        pictures = [scene.shown(), *(change.make(scene, np.random.default_rng([seed, number])) for change in changes)]
        features = pbs_features(encoder, map(reencoded, pictures) if published else pictures)
        kept.append(scene)
        shown.append(features[0])
        changed.append(features[1:])
        each(1)
    if len(kept) < 2:
        raise InputError(f"robustness needs two pictures at least, found {len(kept)}")
    other, same = _between(encoder, kept, torch.stack(shown), published)
    if torch.isnan(other).all():
        raise InputError(
            f"all {len(kept)} pictures are of the style {kept[0].style!r}: there is no other background to compare with"
        )
    movements = [
        _movement(change, pbs(torch.stack(shown), torch.stack([row[at] for row in changed])), other)
        for at, change in enumerate(changes)
    ]
    return Robustness(len(kept), _mean(other), None if torch.isnan(same).all() else _mean(same), tuple(movements))


def _between(encoder: PBSEncoder, scenes: list[Scene], shown: Tensor, published: bool) -> tuple[Tensor, Tensor]:
    """(PBS to pictures of other backgrounds, to other pictures of the same style), both (N, 2), NaN where there is none.

    Each scene's product is set on the next two backgrounds that are of another, and of the same style.
    """
    other, same = torch.full((2, len(scenes), 2), torch.nan)
    for number, scene in enumerate(scenes):
        following = [scenes[(number + turn) % len(scenes)] for turn in range(1, len(scenes))]
        unlike = [each for each in following if scene.style is None or each.style != scene.style][:2]
        like = [each for each in following if scene.style is not None and each.style == scene.style][:2]
        pictures = [_fitting(scene.cutout, each.background) for each in (*unlike, *like)]
        if pictures:
            features = pbs_features(encoder, map(reencoded, pictures) if published else pictures)
            scores = pbs(shown[number].expand_as(features), features)
            other[number, : len(unlike)], same[number, : len(like)] = scores[: len(unlike)], scores[len(unlike) :]
    return other, same


def _fitting(cutout: Image.Image, background: Image.Image) -> Image.Image:
    return set_on_background(cutout, background if background.size == cutout.size else background.resize(cutout.size))


def _movement(change: Change, scores: Tensor, other: Tensor) -> Movement:
    margin = 1 - _mean(other)
    known = ~torch.isnan(other)
    nearer = (scores[:, None] > other)[known].float().mean()
    mean = float(scores.mean())
    return Movement(
        change=change.name,
        level=change.level,
        pbs=mean,
        pbs_low=float(scores.quantile(0.05)),
        share_of_margin=(1 - mean) / margin if margin > 1e-6 else None,
        nearer_than_other=float(nearer),
    )


def _mean(scores: Tensor) -> float:
    return float(scores.nanmean())
