"""Retrieval: does a feature find the pictures with the same label? Average precision, and what chance would give."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Retrieved(NamedTuple):
    """One entry a query that has anything to find, in the order of the pictures."""

    precision: np.ndarray
    """Average precision, 0..1."""
    chance: np.ndarray
    """What a random order gives on average."""
    without_match: int
    """Queries that were left out: no other picture that may be found has their label."""


def average_precision(features: Tensor, labels: np.ndarray, apart: np.ndarray | None = None) -> Retrieved:
    """Features (N, D), compared by cosine, and labels (N,): each picture in turn looks for the others of its label.

    `apart` (N,): pictures that agree in it do not meet, so that what they share cannot help.
    """
    from torchmetrics.functional.retrieval import retrieval_average_precision

    unit = F.normalize(features.float(), dim=-1)
    cosine = unit @ unit.T
    precision, chance, without_match = [], [], 0
    for query in range(len(labels)):
        met = np.arange(len(labels)) != query
        if apart is not None:
            met &= apart != apart[query]
        relevant = (labels == labels[query])[met]
        if not relevant.any():
            without_match += 1
            continue
        # Plus 2: torchmetrics takes what scores 0 or less for not relevant, whatever its target says.
        scores = cosine[query, torch.from_numpy(met)] + 2
        precision.append(float(retrieval_average_precision(scores, torch.from_numpy(relevant))))
        chance.append(expected_precision(int(relevant.sum()), len(relevant)))
    return Retrieved(np.array(precision), np.array(chance), without_match)


def expected_precision(num_relevant: int, number: int) -> float:
    """Mean average precision of a random order of `number` pictures with `num_relevant` to find (Bestgen 2015)."""
    if number == 1:
        return 1.0
    harmonic = float(np.sum(1 / np.arange(1, number + 1)))
    again = (num_relevant - 1) / (number - 1)
    return again + harmonic / number * (1 - again)


def interval(values: np.ndarray, seed: int, resamples: int) -> tuple[float, float, float]:
    """(mean, low, high): the 95% percentile bootstrap interval of a mean."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    return float(values.mean()), *(float(each) for each in np.percentile(means, (2.5, 97.5)))
