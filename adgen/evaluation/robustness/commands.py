"""What `jobs/evaluate.py robustness` and `photographs` do: settings in, findings and their JSON record out."""

import time
from collections import Counter
from typing import Any

import torch

from adgen.evaluation.pictures.encoders import patch_encoder, pbs_encoder
from adgen.evaluation.robustness.pbs_robustness import Robustness, measure_robustness
from adgen.evaluation.robustness.photographs import Finding, compare_scores, photograph_features, read_photographs
from adgen.evaluation.robustness.scenes import drawn_scenes, table_scenes
from adgen.evaluation.robustness.settings import PhotographsSettings, RobustnessSettings
from adgen.model.device import pick_device
from adgen.progress import Progress
from adgen.shop.inputs.tables import open_inputs


def run_robustness(settings: RobustnessSettings, progress: Progress) -> tuple[Robustness, dict[str, Any]]:
    """The table, and its record: what was measured on what, and which pictures were left out for which reason."""
    start, problems = time.monotonic(), Counter()
    encoder = pbs_encoder(settings.encoder, torch.device(pick_device(settings.device)))
    progress.phase("changes", settings.pictures)
    if settings.inputs is None:
        scenes = drawn_scenes(settings.pictures, settings.side, settings.seed)
    else:
        inputs = open_inputs(settings.inputs, ("products", "references"))
        scenes = table_scenes(inputs, settings.pictures, settings.side, settings.seed, problems)
    found = measure_robustness(encoder, scenes, settings.seed, settings.published, each=progress.advance)
    return found, _record(settings, problems, start) | found.as_dict()


def run_photographs(settings: PhotographsSettings, progress: Progress) -> tuple[list[Finding], dict[str, Any]]:
    """A finding a score and gallery, and their record."""
    start, problems = time.monotonic(), Counter()
    device = torch.device(pick_device(settings.device))
    encoder = pbs_encoder(settings.encoder, device)
    patches = patch_encoder(settings.dinov2, settings.model, device)
    photographs = read_photographs(settings.data, settings.labels, problems)
    features = photograph_features(photographs, encoder, patches)
    progress.phase("retrieval", len(features))
    findings = []
    for score, vectors in features.items():
        findings += compare_scores(photographs, {score: vectors}, settings.seed, settings.resamples)
        progress.advance(1)
    kinds = Counter(each.background for each in photographs)
    about = {"photographs": len(photographs), "kinds": len(kinds), "photographs_by_kind": dict(sorted(kinds.items()))}
    return findings, _record(settings, problems, start) | about | {"findings": [each.as_dict() for each in findings]}


def _record(settings: RobustnessSettings | PhotographsSettings, left_out: Counter, start: float) -> dict[str, Any]:
    return {
        "settings": settings.model_dump(mode="json"),
        "left_out": dict(sorted(left_out.items())),
        "seconds": round(time.monotonic() - start, 1),
    }
