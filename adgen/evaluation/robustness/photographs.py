"""Real photographs with labelled kinds of background, in PAd1M format: does a score separate the kinds?

Nobody tuned anything for them, so they check what was tuned on drawn pictures. Each photograph looks for others of its
kind among all other products, and once more among products of other sorts only, so that a feature that sees shirts and
not their background gains nothing. The mean colour of the background is a baseline for the encoders: labels that were made
by clustering colours are found by colour.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adgen.errors import InputError, PairError
from adgen.evaluation.pictures.backgrounds import PatchEncoder, background_features
from adgen.evaluation.pictures.pbs_features import pbs_features
from adgen.evaluation.pictures.tensors import stacked
from adgen.evaluation.robustness.retrieval import average_precision, interval
from adgen.images import read_picture
from adgen.model.pbs import PBSEncoder, initialize_pbs
from adgen.shop.inputs.pad1m_file import read_entries

LABELS, DATA = "labels.json", "pad1m.json"
_COLOUR_SIDE = 64


class Photograph(NamedTuple):
    """A picture, its cut-out, and what is said of both."""

    name: str
    picture: Image.Image
    cutout: Image.Image
    background: str
    sort: str
    """Of the product."""


@dataclass(frozen=True)
class Finding:
    """How well one score finds photographs of the same kind of background."""

    score: str
    gallery: str
    """Which other photographs are searched: `all products` or `other sorts`."""
    mean_average_precision: float
    low: float
    high: float
    """95% bootstrap interval over queries."""
    chance: float
    queries: int
    without_match: int
    """Queries that were left out, as no other photograph has their kind."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


# -- reading ---------------------------------------------------------------------------------------------------


def read_photographs(data: Path, labels: Path | None = None, problems: Counter | None = None) -> list[Photograph]:
    """Every labelled photograph of a PAd1M file that can be read and has a cut-out; the others are counted in `problems`.

    A clicked product's cut-out is looked for in the folders of the targets' cut-outs, under the same name. InputError when labels
    are no JSON object of objects, or fewer than two photographs are left.
    """
    problems = Counter() if problems is None else problems
    file = data / DATA if data.is_dir() else data
    known = _read_labels(labels or file.parent / LABELS)
    found = []
    for picture, cutout in sorted(_pictures(file).items()):
        label = known.get(PurePosixPath(picture).stem)
        if label is None:
            problems["no label"] += 1
            continue
        if cutout is None:
            problems["no cut-out"] += 1
            continue
        try:
            pair = read_picture(file.parent / picture, "picture").convert("RGB"), read_picture(file.parent / cutout, "cut-out")
        except PairError as error:
            problems[error.reason] += 1
            continue
        if pair[1].mode != "RGBA" or pair[1].size != pair[0].size:
            problems["cut-out of another frame"] += 1
            continue
        found.append(Photograph(PurePosixPath(picture).stem, *pair, str(label["bg"]), str(label.get("cls"))))
    if len(found) < 2:
        raise InputError(f"{file}: {len(found)} labelled photographs with cut-outs can be used, two are needed: {dict(problems)}")
    return found


def _pictures(file: Path) -> dict[str, str | None]:
    """Picture -> cut-out of every product that the file names, targets and clicked ones."""
    targets, clicked = {}, set()
    for entry in read_entries(file):
        if isinstance(entry, dict) and isinstance(entry.get("f_path"), str):
            targets[entry["f_path"]] = entry.get("f_path_trans") or None
            clicked |= {each for each in entry.get("history_images") or () if isinstance(each, str)}
    folders = {str(PurePosixPath(each).parent) for each in targets.values() if each}
    for picture in clicked - set(targets):
        candidates = (f"{folder}/{PurePosixPath(picture).stem}.png" for folder in sorted(folders))
        targets[picture] = next((path for path in candidates if (file.parent / path).is_file()), None)
    return targets


def _read_labels(path: Path) -> dict[str, dict]:
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; --labels names what says each background's kind") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(labels, dict):
        raise InputError(f"{path}: expected an object of picture names, found {type(labels).__name__}")
    for name, label in labels.items():
        if not isinstance(label, dict) or not isinstance(label.get("bg"), str | int):
            raise InputError(f'{path}: {name}: expected {{"bg": kind of background, ...}}, found {label!r:.100}')
    return labels


# -- distinguishing kinds ---------------------------------------------------------------------------------------


def photograph_features(
    photographs: list[Photograph], encoder: PBSEncoder | None, patches: PatchEncoder | None, batch_size: int = 16
) -> dict[str, Tensor]:
    """Features (N, D) by score. Beside PBS stands what its network makes of the pictures untrained, and always the mean
    colour of the background."""
    found = {}
    if encoder is not None:
        untrained = initialize_pbs(PBSEncoder(encoder.config)).to(encoder.cls_token.device).eval()
        found["PBS"] = pbs_features(encoder, (each.picture for each in photographs))
        found["PBS, untrained"] = pbs_features(untrained, (each.picture for each in photographs))
    if patches is not None:
        found[patches.name] = _patch_features(photographs, patches, batch_size)
    found["mean colour"] = _mean_colours(photographs)
    return found


def _patch_features(photographs: list[Photograph], patches: PatchEncoder, batch_size: int) -> Tensor:
    features = []
    for start in range(0, len(photographs), batch_size):
        part = photographs[start : start + batch_size]
        pixels = stacked([each.picture for each in part], patches.side)
        product = stacked([each.cutout for each in part], patches.side)[:, 3]
        features.append(background_features(patches, pixels, product)[0])
    return torch.cat(features)


def _mean_colours(photographs: list[Photograph]) -> Tensor:
    """The mean background colour of each, around the mean of all, so that a cosine compares directions of colour."""
    pixels = stacked([each.picture for each in photographs], _COLOUR_SIDE)
    background = 1 - stacked([each.cutout for each in photographs], _COLOUR_SIDE)[:, 3:]
    colours = (pixels * background).sum((2, 3)) / background.sum((2, 3)).clamp(min=1)
    return colours - colours.mean(0)


def compare_scores(photographs: list[Photograph], features: dict[str, Tensor], seed: int, resamples: int) -> list[Finding]:
    """Mean average precision of each score, among all other products and among other sorts of product."""
    labels = np.array([each.background for each in photographs])
    sorts = np.array([each.sort for each in photographs])
    findings = []
    for score, vectors in features.items():
        for gallery, apart in (("all products", None), ("other sorts", sorts)):
            found = average_precision(vectors, labels, apart)
            if not len(found.precision):
                raise InputError(f"no photograph has another of its kind of background among {gallery}: nothing to retrieve")
            mean, low, high = interval(found.precision, seed, resamples)
            findings.append(
                Finding(score, gallery, mean, low, high, float(found.chance.mean()), len(found.precision), found.without_match)
            )
    return findings
