"""Settings of `jobs/evaluate.py run` and `model`."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from tyro.conf import arg

from adgen.config import PLACE, Place, Settings
from adgen.creatives.storage import S3Access
from adgen.evaluation.statistics import RESAMPLES
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.sampling_settings import SamplingChoice
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.shop.key_files import KeySettings

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/")  # a Path has one slash of the two left


def local(folder: Path | None) -> Path | None:
    """The folder itself. ValueError where it is a URI: as a path it would be a folder with a strange name."""
    if folder is not None and _SCHEME.match(str(folder)):
        raise ValueError(f"{folder}: must be a local folder; only `run` writes to other places, with --out")
    return folder


class ScoringSettings(Settings):
    """How creatives are scored and reported."""

    inputs: Place
    """Folder or URI of the tables: products, and references where there are any."""
    encoder: Path | None = None
    """A PBS encoder: a directory of stage pbs, or the published checkpoint file. Default the one that ships with the package;
    where there is none, scores of backgrounds are left out."""
    dinov2: Path | None = None
    """A DINOv2 in Hugging Face layout: a second opinion on backgrounds, of a network that nobody here trained. Default the
    adapter of `adapter`."""
    adapter: Path | None = None
    """Model directory whose own foreground adapter stands in for DINOv2. Default the model that ships with the package, whatever
    model is evaluated, so that evaluations can be compared."""
    fid: Path | None = None
    """Directory of the network for the distance of all creatives from all references: FID's Inception
    (pt_inception-2015-12-05-6726825d.pth), or a DINOv2 or CLIP in Hugging Face layout. Default no distance."""
    clip: Path | None = None
    """A CLIP in Hugging Face layout, for the score of pictures with their titles. Default no such score."""
    against: Path | None = None
    """Local folder of another evaluation of the same pairs, to compare with."""
    resamples: int = Field(default=RESAMPLES, ge=100)
    """Of BLEU's bootstrap, for its interval and significance."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap, and of what else is drawn."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    cluster: Annotated[ClusterSettings, arg()] = ClusterSettings()
    s3: S3Access = S3Access()

    _against_is_local = field_validator("against")(local)


class RunEvaluationSettings(ScoringSettings):
    """Which run."""

    ADDED = frozenset({"variants"})

    store: Place
    """Root of the store: a folder or s3://bucket/prefix."""
    campaign: str
    """Its published run is scored."""
    run: str | None = None
    """Another run of the campaign, such as one that a gate holds."""
    variants: Literal["best", "all"] = "best"
    """Where pairs have several creatives: those that rank first, which consumers show, or all."""
    out: Annotated[str | None, PLACE] = None
    """Folder or s3://bucket/prefix to write: rows/*.parquet, summary.json, report.html. Default evaluation-CAMPAIGN-RUN. The same
    command goes on where an earlier one stopped."""


class ModelEvaluationSettings(ScoringSettings):
    """Which model, on which pairs."""

    ADDED = frozenset({"keys", "allow_untrained"})

    model: Path | None = None
    """Model directory; default the one that ships with the package."""
    allow_untrained: bool = False
    """Take a model with untrained modules, to try the machinery."""
    out: Path
    """Local folder to write: rows/*.parquet, summary.json, report.html, and the creatives in store/, of further seeds in
    store-seed-1/ and so on. The same command goes on where an earlier one stopped."""
    seeds: int = Field(default=1, ge=1, le=100)
    """Creatives of each pair, drawn with different seeds: more than one show how far they differ."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first N pairs of the references."""
    sampling: SamplingChoice = SamplingChoice()
    engine: EngineSettings = EngineSettings()
    keys: KeySettings = KeySettings()
    """Default random keys in OUT/store/private, or with `against` the ones there: creatives are compared by what they make."""

    _is_local = field_validator("out")(local)
