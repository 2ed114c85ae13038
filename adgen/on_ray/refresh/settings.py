"""Settings of the refresh job: one tree, saved whole with the run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from tyro.conf import Suppress, arg

from adgen.config import FinishSettings, PictureSettings, Place, Settings
from adgen.creatives.cleanup import KEEP_RUNS
from adgen.creatives.storage import S3Access
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.sampling_settings import SamplingChoice
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.records import digest
from adgen.shop.key_files import KeySettings

if TYPE_CHECKING:
    from adgen.generation.model_directory import ModelDirectory


class PlanSettings(Settings):
    """What a run does, and in which portions."""

    ADDED = frozenset({"variants"})

    pairs_per_shard: Annotated[int, arg(aliases=["--pairs-per-shard"])] = Field(default=256, gt=0)
    """Pairs of a shard: the unit of work, commit and what a crash costs."""
    limit: Annotated[int | None, arg(aliases=["--limit"])] = Field(default=None, gt=0)
    """Only the first N pairs. Such a run ends PARTIAL and is published only with `publish_partial`."""
    variants: int = Field(default=1, ge=1, le=16)
    """Creatives of each pair, drawn with seeds of their own and ranked; consumers take the first unless they ask for more. Raised,
    the creatives that are there stay; lowered, the highest go."""
    history_items: int | None = Field(default=None, ge=0)
    """Clicks drawn for a prompt; default the model's."""
    campaign_seed: int = 0
    """Change it to draw every creative of the campaign anew."""
    keep_previous: bool = True
    """A pair with unreadable input keeps its creative, marked stale."""


class CleanUpSettings(Settings):
    """What a refresh removes before it plans: runs that are no longer kept, and objects that nothing names any more."""

    keep_runs: int | None = Field(default=KEEP_RUNS, ge=2)
    """Newest published runs of the campaign that stay, and as many finished ones that were never published; the published run,
    the one before it, and unfinished ones with the runs they build on always do. null removes nothing: for where clean-up runs
    as a job of its own."""


class FailureSettings(Settings):
    """When a run stops instead of going on."""

    ADDED = frozenset({"min_ok_share"})

    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """Share of failed rows (rejected ones do not count) over which the run stops, once `after_rows` are done. Carried rows count as
    good; rows that failed in the published run, too, and rows whose input is bad do not count."""
    after_rows: int = Field(default=200, gt=0)
    """Rows before that share counts, or before a run that makes nothing stops."""
    min_ok_share: float = Field(default=0.5, ge=0, le=1)
    """Ok rows that a run must have, carried ones too, as a share of the published run's; with fewer it ends HELD, unless
    `publish_anyway`. Runs with a limit are free."""


class GateSettings(Settings):
    """What a sample of a run's creatives must come to before the run is published; null asks for nothing. A run that falls
    short, or has no row with the score of a threshold, ends HELD and the campaign's pointer stays where it is."""

    ADDED = frozenset({"templates_max"})

    sample: int = Field(default=200, gt=0)
    """Rows that are looked at, drawn evenly from the whole run, carried ones too; means are of those with status ok. Where pairs
    have several variants, about so many of those that rank first."""
    history_margin_min: float | None = Field(default=None, ge=-2, le=2)
    """PBS to the pictures that the user clicked, less PBS to another user's."""
    allowed_words_min: float | None = Field(default=None, ge=0, le=1)
    """Share of a title's words that are the product's own, or stop words."""
    copy_rate_max: float | None = Field(default=None, ge=0, le=1)
    """Share of pictures that are near-duplicates of one that the user clicked. Compare it with that of real pictures, which is not
    quite 0."""
    product_kept_min: float | None = Field(default=None, ge=0, le=1)
    """Overlap of the product found in the picture with where it should be (IoU)."""
    templates_max: float | None = Field(default=None, ge=0, le=1)
    """Share of titles that are by template."""
    encoder: Path | None = None
    """PBS encoder for history_margin_min; default the shipped one."""

    @property
    def is_on(self) -> bool:
        """Whether anything is asked for."""
        return any(getattr(self, name) is not None for name in type(self).model_fields if name.endswith(("_min", "_max")))


class ForecastSettings(Settings):
    """What `--dry-run` computes with: the first of these two that is given, else the speed of the published run."""

    seconds_a_creative: float | None = Field(default=None, gt=0)
    """Of one engine."""
    benchmark: Path | None = None
    """Speed of an engine: what `jobs/benchmark.py engine --save FILE` wrote."""
    price_an_hour: float = Field(default=0.0, ge=0)
    """Of one engine's machine with all its devices, in your currency."""


class RefreshSettings(Settings):
    """Refresh one campaign: tables in, published creatives out."""

    ADDED = frozenset({"pictures", "allow_untrained"})

    inputs: Place = ""
    """Folder or URI of the tables products, histories and pairs; {campaign} in it stands for the campaign's name."""
    store: Place = ""
    """Root of all outputs: a folder or s3://bucket/prefix."""
    campaign: Suppress[str] = ""
    """Name of the campaign. The command line has a flag of its own, which takes several."""
    model: Path | None = None
    """Model directory; default the small trained one of this package."""
    allow_untrained: bool = False
    """Take a model with untrained modules, to try the machinery."""
    publish_partial: bool = False
    """Publish a run with a limit, too."""
    publish_anyway: bool = False
    """Publish a run that falls short of its gate or of `failures.min_ok_share`, too. A run that is held is not made again."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where engines run."""
    plan: PlanSettings = PlanSettings()
    sampling: SamplingChoice = SamplingChoice()
    engine: EngineSettings = EngineSettings()
    pictures: PictureSettings = PictureSettings()
    finish: FinishSettings = FinishSettings()
    failures: FailureSettings = FailureSettings()
    gate: GateSettings = GateSettings()
    clean_up: CleanUpSettings = CleanUpSettings()
    cluster: ClusterSettings = ClusterSettings()
    forecast: ForecastSettings = ForecastSettings()
    keys: KeySettings = KeySettings()
    s3: S3Access = S3Access()

    def of(self, campaign: str) -> "RefreshSettings":
        """These settings for one of several campaigns."""
        return self.model_copy(update={"campaign": campaign, "inputs": self.inputs.replace("{campaign}", campaign)})

    def drawn_once(self) -> "RefreshSettings":
        """The same without attempts and fallbacks: what the model makes, as a measurement wants it."""
        sampling, finish = self.sampling.model_copy(update={"attempts": 1}), self.finish.model_copy(update={"fallbacks": False})
        return self.model_copy(update={"sampling": sampling, "finish": finish})

    def creative_digests(self, model: "ModelDirectory | None") -> tuple[str, ...]:
        """Hashes of the settings that change a creative; where and how fast it is made do not: of the engine only the options that
        trade something of a creative for speed."""
        return (
            self.sampling.of(model.sampling if model else {}).digest(),
            self.finish.digest(),
            digest(json.dumps(self.engine.lossy_options(), sort_keys=True)),
        )
