"""What is measured of creatives, as functions of pictures, styles and texts. Shares are 0..1; nothing here is NaN."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adgen.evaluation.pictures.product_fidelity import product_scores
from adgen.evaluation.pictures.tensors import stacked
from adgen.evaluation.titles.bleu import corpus_bleu, written
from adgen.evaluation.titles.scores import ProductTexts, title_scores
from adgen.model.pbs import pbs

PICTURES_AT_ONCE = 64


def style_hits(found: Sequence[str], favourites: Sequence[Collection[str]]) -> np.ndarray:
    """1.0 for each picture whose style is one of its favourites, else 0.0."""
    return np.array([style in liked for style, liked in zip(found, favourites, strict=True)], np.float64)


def chance(favourites: Sequence[Collection[str]], num_styles: int) -> float:
    """How often a style drawn from all is a favourite."""
    return float(np.mean([len(set(liked)) for liked in favourites])) / num_styles


def pbs_measures(creatives: Tensor, own: Tensor, other_users: Tensor) -> dict[str, float]:
    """Means of PBS to the user's reference, to another user's, and of the difference, from features (n, F)."""
    near, far = pbs(creatives, own), pbs(creatives, other_users)
    return {"pbs": near.mean().item(), "pbs_to_other_user": far.mean().item(), "pbs_margin": (near - far).mean().item()}


def product_measures(pictures: Sequence[Image.Image], products: Sequence[Image.Image]) -> dict[str, float]:
    """Means of the scores of RGB pictures whose products (RGBA) lie in the same frames, all of one size."""
    side, parts = pictures[0].width, range(0, len(pictures), PICTURES_AT_ONCE)
    rows = [
        product_scores(*(stacked(some[start : start + PICTURES_AT_ONCE], side) for some in (pictures, products))) for start in parts
    ]
    return {name: torch.cat([row[name] for row in rows]).mean().item() for name in rows[0]}


def title_measures(
    titles: Sequence[str], references: Sequence[Sequence[str]], products: Sequence[ProductTexts]
) -> dict[str, float]:
    """Means over the titles that have a score, BLEU of the whole, and the share of titles with no word and no
    number but the product's.

    A title without any word, so an empty one too, says nothing of its product and counts as not allowed.
    """
    rows = [title_scores(*row) for row in zip(titles, references, products, strict=True)]
    means = {
        name: _mean([row[name] for row in rows if name in row])
        for name in ("selling_point_coverage", "number_unit_agreement", "rouge_l", "title_empty")
    }
    allowed = [row.get("allowed_words", 0.0) for row in rows]
    true = [score == 1.0 and row.get("number_unit_agreement", 1.0) == 1.0 for score, row in zip(allowed, rows, strict=True)]
    bleu = corpus_bleu(titles, references, [product.locale for product in products])
    measured = means | {"bleu": bleu, "allowed_words": _mean(allowed), "allowed_words_rate": _mean(true)}
    measured["num_without_reference_title"] = float(sum(not written(row) for row in references))
    return {name: value for name, value in measured.items() if value is not None}


def _mean(scores: Sequence[float]) -> float | None:
    return float(np.mean(scores)) if len(scores) else None
